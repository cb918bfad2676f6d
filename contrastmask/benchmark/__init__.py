"""
Measurements of speed and memory, each a comparison within one run.

Not imported by the rest of the package; ``tools/benchmark.py`` is the program.
"""

from .machine import describe_machine
from .memory import keep_freed_memory
from .parts import PARTS
from .settings import Settings
