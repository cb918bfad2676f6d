"""What training and evaluation programs share."""

from .launching import launch
from .setup import load_config, read_config_file, setup
from .trainer import Trainer
