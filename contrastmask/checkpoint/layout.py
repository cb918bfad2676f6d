"""What the checkpointer has to know about a layout of names other than Detectron2's."""

from dataclasses import dataclass
from typing import Callable, Tuple


@dataclass(frozen=True)
class Layout:
    """
    A way of naming the tensors of a checkpoint.

    Attributes:
        name: for the log.
        recognises: state dict -> whether it has this layout. It looks up a few names only, so that
            ordinary checkpoints load as fast as without it.
        rename: function of one name to the name in this project's model. Names without a place
            there are returned as they are, and are reported as unused when they are loaded.
        covers: prefixes of the model's names. Of these parts a checkpoint in this layout has to
            fill every tensor and to leave none over.
    """

    name: str
    recognises: Callable[[dict], bool]
    rename: Callable[[str], str]
    covers: Tuple[str, ...]

    def convert(self, state_dict):
        """
        Args:
            state_dict (dict[str, Tensor]): in this layout.

        Returns:
            dict[str, Tensor]: under this project's names; half precision becomes float32.

        Raises:
            ValueError: if two tensors get one name.
        """
        converted = {}
        for name, value in state_dict.items():
            new_name = self.rename(name)
            if new_name in converted:
                raise ValueError(f"two tensors of the {self.name} layout become {new_name}")
            converted[new_name] = value.float() if value.is_floating_point() else value
        return converted
