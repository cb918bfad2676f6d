"""Detectron2 0.6 as tools/install/detectron2.sh builds it."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import detectron2
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
built_here = pytest.mark.skipif(
    not Path(detectron2.__file__).with_name("_C.py").exists(), reason="another Detectron2"
)


def test_export_can_be_imported():
    from detectron2.export import TracingAdapter

    image = torch.rand(3, 4, 5)
    adapter = TracingAdapter(torch.nn.Identity(), image, lambda model, x: [2 * model(x)])
    assert torch.equal(adapter(image)[0], 2 * image)


@built_here
def test_missing_operators_say_so_when_used():
    from detectron2.layers.rotated_boxes import pairwise_iou_rotated
    from detectron2.utils.collect_env import collect_env_info

    boxes = torch.tensor([[5.0, 6.0, 3.0, 4.0, 30.0]])
    with pytest.raises(NotImplementedError, match="box_iou_rotated.*without its C\\+\\+ operators"):
        pairwise_iou_rotated(boxes, boxes)
    assert "without C++ operators" in collect_env_info()


@built_here
@pytest.mark.filterwarnings("error")
def test_anchors_and_masks_do_not_warn():
    from detectron2.data.detection_utils import annotations_to_instances
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

    generator = DefaultAnchorGenerator(sizes=[[16]], aspect_ratios=[[1.0]], strides=[8], offset=0)
    (anchors,) = generator([torch.zeros(1, 1, 2, 3)])
    assert anchors.tensor[-1].tolist() == [8, 0, 24, 16]

    mask = np.zeros((4, 6), bool)
    mask[1, 2:] = True
    mask.flags.writeable = False
    record = {"bbox": [0, 0, 6, 4], "bbox_mode": 0, "category_id": 3, "segmentation": mask}
    instances = annotations_to_instances([record], mask.shape, mask_format="bitmask")
    assert np.array_equal(instances.gt_masks.tensor[0].numpy(), mask)


@built_here
def test_programs_start_without_warnings():
    command = [sys.executable, ROOT / "train_net.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.stdout[:7], done.stderr) == ("usage: ", "")


def test_another_source_is_refused_and_nothing_is_installed(tmp_path):
    """A Python whose pip downloads an archive that is not Detectron2 0.6."""
    (tmp_path / "source").mkdir()
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "source", "other-1.0")
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$*" in *" download "*) while [ "$1" != --dest ]; do shift; done\n'
        f'cp "{tmp_path}/other.tar.gz" "$2";; *) touch "{tmp_path}/installed";; esac\n'
    )
    python.chmod(0o755)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)  # there, git apply may skip files
    done = subprocess.run(
        [ROOT / "tools/install/detectron2.sh", python],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "detectron2/data/build.py" in done.stderr
    assert not (tmp_path / "installed").exists()
