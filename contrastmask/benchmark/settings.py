"""What a benchmark run measures, and how often."""

from dataclasses import dataclass, field
from typing import Optional, Sequence

import torch


@dataclass(frozen=True)
class Settings:
    """
    device (str): torch device.
    dtypes (sequence[str]): "float32", "bfloat16" or "float16"; the lower ones by autocast.
    rois (sequence[int]): RoI counts, or None for the counts of each part.
    classes (sequence[int]): numbers of classes.
    config_file (str), opts (sequence[str]): the model, with KEY VALUE overrides.
    images (int): images of the COCO evaluation, or None for 5,000.
    repeats (int): measurements of each function, or None for the number of each part.
    quick (bool): sizes for a test of the benchmark; the numbers mean nothing.
    """

    config_file: str
    device: str = "cpu"
    dtypes: Sequence[str] = ("float32",)
    rois: Optional[Sequence[int]] = None
    classes: Sequence[int] = (80, 1200, 3000)
    opts: Sequence[str] = field(default_factory=tuple)
    images: Optional[int] = None
    repeats: Optional[int] = None
    quick: bool = False

    def num_repeats(self, default):
        """int: measurements of each function in a part that usually takes `default`."""
        return self.repeats or (2 if self.quick else default)

    def roi_counts(self, default):
        """sequence[int]: of a part that usually takes `default`."""
        return self.rois or ((2, 4) if self.quick else default)

    @property
    def channels(self):
        """int: channels of features and heads; the paper's, or few."""
        return 8 if self.quick else 256

    @property
    def side(self):
        """int: side of the RoI features of the contrastive head, in cells."""
        return 14 if self.quick else 28

    def autocast(self, dtype):
        """
        Args:
            dtype (str): one of `dtypes`.

        Returns:
            context manager: autocast to that type, or none for float32.
        """
        device_type = torch.device(self.device).type
        if dtype == "float32":
            return torch.autocast(device_type, enabled=False)
        return torch.autocast(device_type, dtype=getattr(torch, dtype))
