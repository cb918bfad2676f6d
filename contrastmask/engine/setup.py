"""From command line arguments to a config that is ready to use."""

import logging
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from yaml import YAMLError

from ..config import add_contrastmask_config, check_contrastmask_config
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

    Raises:
        ValueError: if the file cannot be read, and for keys and values that do not exist; it names
            the file or the key.
    """
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    with _naming(f"config file {config_file}"):
        # Detectron2's default would run code that is written in the file.
        cfg.merge_from_file(config_file, allow_unsafe=False)
    with _naming("config override"):
        cfg.merge_from_list(list(opts))
    check_contrastmask_config(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but there is no CUDA: using the CPU")
        cfg.MODEL.DEVICE = "cpu"
    register_datasets(cfg)
    cfg.freeze()
    return cfg


def read_config_file(config_file):
    """
    Args:
        config_file (str): a YAML file.

    Returns:
        dict: what is written in it and in the files that it names as ``_BASE_``.

    Raises:
        ValueError: if the file cannot be read; it names the file.
    """
    with _naming(f"config file {config_file}"):
        content = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)
        return dict(content.items())


@contextmanager
def _naming(source):
    """Make what goes wrong inside a ValueError that begins with `source`."""
    try:
        yield
    except RecursionError:
        raise ValueError(f"{source}: its _BASE_ leads back to itself") from None
    except (TypeError, AttributeError) as error:  # an empty file, or a list
        raise ValueError(f"{source}: it has to hold keys with values ({error})") from error
    except (AssertionError, KeyError, OSError, ValueError, YAMLError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ValueError(f"{source}: {reason}") from error


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
