"""Decoding of box deltas with a lower limit on sizes."""

import torch
from detectron2.modeling.box_regression import Box2BoxTransform


class TwoSidedClampBox2BoxTransform(Box2BoxTransform):
    """
    Clamps the log-size deltas from below too, at the negative of `scale_clamp` (MMDetection's rule;
    Detectron2 clamps from above only): no box shrinks to less than 16/1000 of its source.
    """

    def apply_deltas(self, deltas, boxes):
        """
        Args:
            deltas (Tensor): (N, 4k), k deltas (dx, dy, dw, dh) for each box.
            boxes (Tensor): (N, 4) XYXY.

        Returns:
            Tensor: (N, 4k) float32, the decoded boxes.
        """
        dx, dy, dw, dh = deltas.float().unflatten(1, (-1, 4)).unbind(2)
        dw = dw.clamp(min=-self.scale_clamp * self.weights[2])
        dh = dh.clamp(min=-self.scale_clamp * self.weights[3])
        return super().apply_deltas(torch.stack([dx, dy, dw, dh], dim=2).flatten(1), boxes)


def build_box2box_transform(cfg, weights):
    """
    Args:
        cfg (CfgNode): ``MODEL.CLAMP_BOX_DELTAS_BELOW`` is used.
        weights (tuple[float]): of the deltas dx, dy, dw, dh.

    Returns:
        Box2BoxTransform
    """
    two_sided = cfg.MODEL.CLAMP_BOX_DELTAS_BELOW
    return (TwoSidedClampBox2BoxTransform if two_sided else Box2BoxTransform)(weights=weights)
