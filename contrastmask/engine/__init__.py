"""What training and evaluation programs share."""

from .setup import load_config, setup
from .trainer import Trainer
