"""What training and evaluation programs share."""

from .launch import launch
from .setup import load_config, setup
from .trainer import Trainer
