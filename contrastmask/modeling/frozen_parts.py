"""Parts of a model that do not learn."""

from detectron2.layers import FrozenBatchNorm2d


def freeze_parts(model, prefixes):
    """
    Parameters stop learning, and batch normalisation keeps its statistics.

    Args:
        model (nn.Module): changed in place.
        prefixes (list[str]): of parameter names; whole parts between dots.

    Raises:
        ValueError: if there is no such part.
    """
    all_parameters = dict(model.named_parameters())
    for prefix in prefixes:
        parameters = [
            p for name, p in all_parameters.items() if f"{name}.".startswith(f"{prefix}.")
        ]
        if not parameters:
            parts = sorted({name.split(".")[0] for name in all_parameters})
            raise ValueError(
                f"MODEL.FROZEN_PARTS: the model has no part {prefix!r}. Give the beginning of "
                f"parameter names, up to a dot; the largest parts are {parts}"
            )
        for parameter in parameters:
            parameter.requires_grad = False
        parent_name, _, name = prefix.rpartition(".")
        parent = model.get_submodule(parent_name)
        if name in dict(parent.named_children()):
            part = getattr(parent, name)
            setattr(parent, name, FrozenBatchNorm2d.convert_frozen_batchnorm(part))
