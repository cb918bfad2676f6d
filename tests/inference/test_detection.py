import cv2
import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances

from contrastmask import add_contrastmask_config
from contrastmask.inference import predict

SIZE = 500, 600


class OneBoxModel(torch.nn.Module):
    """Detects the whole image; fails if it is used as in training."""

    def forward(self, batched_inputs):
        assert not self.training and not torch.is_grad_enabled()
        (model_input,) = batched_inputs
        assert model_input["image"].shape[1:] == (250, 300)  # INPUT.MIN_SIZE_TEST
        instances = Instances((model_input["height"], model_input["width"]))
        instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, *SIZE[::-1]]]))
        return [{"instances": instances}]


def test_predict(tmp_path):
    image = np.full((*SIZE, 3), 100, dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    record = {"file_name": str(tmp_path / "image.png"), "annotations": [{"category_id": 3}]}
    cfg = get_cfg()
    add_contrastmask_config(cfg)
    cfg.INPUT.MIN_SIZE_TEST = 250
    model = OneBoxModel().train()
    instances = predict(cfg, model, {**record, "height": SIZE[0], "width": SIZE[1]})
    assert instances.image_size == SIZE and len(instances) == 1
    assert model.training
    assert record["annotations"] == [{"category_id": 3}]
