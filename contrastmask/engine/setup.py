"""From command line arguments to a config that is ready to use."""

import argparse
import os
import tempfile
from typing import Sequence

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint.description import model_config
from ..config import get_config, naming_config, use_available_device
from ..data import register_datasets, set_num_classes
from .launching import share_cores
from .programs import hide_tracebacks


def load_config(config_file: str, opts: Sequence[str] = (), *, trained: bool = False) -> CfgNode:
    """
    Args:
        config_file (str): a YAML file, or its name in ``configs``. May be empty for a trained model
            whose checkpoint holds its config.
        opts (list[str]): KEY VALUE pairs that override the file.
        trained (bool): ``MODEL.WEIGHTS`` is a trained model, see :func:`model_config`.

    Returns:
        CfgNode: frozen; its datasets are registered. The device is the CPU where CUDA is missing.

    Raises:
        ValueError: if the file cannot be read, and for keys and values that do not exist; it names
            the file or the key.
    """
    cfg = (model_config if trained else get_config)(config_file, opts)
    use_available_device(cfg)
    register_datasets(cfg)
    set_num_classes(cfg)
    cfg.freeze()
    return cfg


def read_config_file(config_file: str) -> dict:
    """
    Args:
        config_file (str): a YAML file.

    Returns:
        dict: what is written in it and in the files that it names as ``_BASE_``.

    Raises:
        ValueError: if the file cannot be read; it names the file.
    """
    with naming_config(f"config file {config_file}"):
        content = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)
        return dict(content.items())


def setup(args: argparse.Namespace) -> CfgNode:
    """
    Config, output folder, logs and seeds of a training or evaluation program.

    Args:
        args (argparse.Namespace): from Detectron2's ``default_argument_parser``.

    Returns:
        CfgNode: frozen.

    Raises:
        OSError: if files cannot be written to the output folder.
    """
    opts = list(args.opts)
    if args.eval_only and args.resume:
        opts += _last_checkpoint(args.config_file, opts)
    cfg = load_config(args.config_file, opts, trained=args.eval_only)
    _check_output_dir(cfg.OUTPUT_DIR)
    default_setup(cfg, args)
    hide_tracebacks()
    setup_logger(output=cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="contrastmask")
    share_cores()
    return cfg


def _check_output_dir(folder):
    """Rather now than when the first checkpoint is written."""
    if "://" in folder:
        return
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as f:
            f.write(bytes(4096))
    except OSError as error:
        problem = f"OUTPUT_DIR cannot be written to ({error.strerror}), set another"
        raise OSError(error.errno, problem, folder) from error


def _last_checkpoint(config_file, opts):
    """MODEL.WEIGHTS and the last checkpoint of the output folder, if there is one."""
    folder = dict(zip(opts[::2], opts[1::2])).get("OUTPUT_DIR")
    if folder is None and config_file:
        folder = get_config(config_file).OUTPUT_DIR
    path = os.path.join(folder or "", "last_checkpoint")
    if not os.path.isfile(path):
        return []
    with open(path, encoding="utf-8") as f:
        return ["MODEL.WEIGHTS", os.path.join(folder, f.read().strip())]
