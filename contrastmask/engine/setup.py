"""From command line arguments to a config that is ready to use."""

import logging

import torch
from detectron2.config import get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import add_contrastmask_config
from ..data import register_datasets
from ..output import check_output_dir

logger = logging.getLogger(__name__)


def load_config(config_file, opts=()):
    """
    Args:
        config_file (str): a YAML file.
        opts (list[str]): KEY VALUE pairs that override the file.

    Returns:
        CfgNode: frozen; its datasets are registered. The device is the CPU where CUDA is missing.
    """
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.merge_from_file(config_file)
    cfg.merge_from_list(list(opts))
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but there is no CUDA: using the CPU")
        cfg.MODEL.DEVICE = "cpu"
    register_datasets(cfg)
    cfg.freeze()
    return cfg


def setup(args):
    """
    Config, output folder, logs and seeds of a training or evaluation program.

    Args:
        args (argparse.Namespace): from Detectron2's ``default_argument_parser``.

    Returns:
        CfgNode: frozen.

    Raises:
        OutputError: if nothing can be written to the output folder.
    """
    cfg = load_config(args.config_file, args.opts)
    check_output_dir(cfg.OUTPUT_DIR)
    default_setup(cfg, args)
    setup_logger(output=cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="contrastmask")
    return cfg
