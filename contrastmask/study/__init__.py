"""Training several variants with several seeds, and comparing them."""

from .plan import Study, Variant, load_study
from .plot import plot_study
from .runner import run_study
from .summary import format_study, summarize_study

__all__ = [
    "Study",
    "Variant",
    "format_study",
    "load_study",
    "plot_study",
    "run_study",
    "summarize_study",
]
