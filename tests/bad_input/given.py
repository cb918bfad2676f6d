"""The kinds of input that the table of test_bad_input.py holds, and how each is used."""

import json
from pathlib import Path
from typing import Callable, NamedTuple, Sequence, Union

import numpy as np
import torch
from annotation_samples import HEIGHT, IMAGE_SIZES, WIDTH, make_annotation, make_content
from PIL import Image

import train_net
from contrastmask.checkpoint import ContrastMaskCheckpointer
from contrastmask.data import AnnotationFileError, ContrastMaskDatasetMapper, read_annotations
from contrastmask.data.images import ImageFileError

ROOT = Path(__file__).parents[2]
# Colors (RGB) of the left and of the right half of the sample image.
LEFT, RIGHT = (200, 100, 50), (10, 20, 30)


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        given: the input; its method `use` does with it what training does.
        gives: pattern of the error's text, or a function that checks what `use` returns.
    """

    given: object
    gives: Union[str, Callable]


class Place(NamedTuple):
    """Where a row is used.

    Attributes:
        folder: empty at first.
        shapes: folder with the built-in data.
        caplog, monkeypatch: pytest's.
    """

    folder: Path
    shapes: Path
    caplog: object
    monkeypatch: object


class Loaded(NamedTuple):
    """An annotation file as it was loaded.

    Attributes:
        records: image id -> its dict in Detectron2's format.
        found: what -> ids of the annotations, from the warnings and repairs.
        counts: what -> number of annotations of a usual kind.
    """

    records: dict
    found: dict
    counts: dict

    def annotation(self):
        """The first annotation of image 7."""
        return self.records[7]["annotations"][0]

    def instances(self):
        """What training gets from image 7."""
        mapper = ContrastMaskDatasetMapper(**_MAPPER, instance_mask_format="bitmask")
        return mapper(self.records[7])["instances"]


class AnnotationFile(NamedTuple):
    """An annotation file: its text, or a change to a sound file with the annotations 1 and 2."""

    change: Union[str, bytes, Callable]
    errors = AnnotationFileError

    def write(self, folder):
        images = folder / "images"
        images.mkdir()
        content = make_content([make_annotation(1), make_annotation(2, bbox=[2, 2, 11, 8])])
        for image in content["images"]:
            sample_image(IMAGE_SIZES[image["file_name"]]).save(images / image["file_name"])
        path = folder / "file.json"
        if isinstance(self.change, str):
            path.write_text(self.change)
        elif isinstance(self.change, bytes):
            path.write_bytes(self.change)
        else:
            self.change(content)
            path.write_text(json.dumps(content))
        return str(path), str(images)

    def use(self, place):
        annotations = read_annotations(*self.write(place.folder))
        report = annotations.report
        return Loaded(
            {x["image_id"]: x for x in annotations.records},
            {x.what: [where.split()[1] for where in x.where] for x in report.findings},
            dict(report.counts),
        )


class ImageFile(NamedTuple):
    """An image file.

    Attributes:
        name: of the file.
        write: called with the sample image and the path.
    """

    name: str
    write: Callable
    errors = ImageFileError

    def use(self, place):
        """RGB colors of the left and of the right half."""
        path = place.folder / self.name
        self.write(sample_image(), str(path))
        record = {"file_name": str(path), "image_id": 7, "height": HEIGHT, "width": WIDTH}
        mapper = ContrastMaskDatasetMapper(**_MAPPER, instance_mask_format="bitmask")
        image = mapper({**record, "annotations": []})["image"].numpy()
        assert image.shape == (3, HEIGHT, WIDTH) and image.dtype == np.uint8
        return image[::-1, HEIGHT // 4, WIDTH // 4], image[::-1, HEIGHT // 4, -WIDTH // 4]


class Training(NamedTuple):
    """A start of train_net.py.

    Attributes:
        overrides: KEY VALUE pairs.
        config: text of a config file; None for the quickstart's.
        change: change to the content of the annotation file, or None.
        files: file name -> content, written to the folder FOLDER.
    """

    overrides: Sequence[str] = ()
    config: Union[str, None] = None
    change: Union[Callable, None] = None
    files: dict = {}
    errors = (ValueError, OSError)

    def use(self, place):
        annotations = place.shapes / "annotations" / "train.json"
        if self.change is not None:
            content = json.loads(annotations.read_text())
            self.change(content)
            annotations = place.folder / "train.json"
            annotations.write_text(json.dumps(content))
        for name, content in self.files.items():
            content = content.replace(b"FOLDER", str(place.folder).encode())
            (place.folder / name).write_bytes(content)
        config_file = ROOT / "configs" / "quickstart.yaml"
        if self.config is not None:
            config_file = place.folder / "own.yaml"
            config_file.write_text(self.config.replace("FOLDER", str(place.folder)))
        name = f"bad_input_{place.folder.name}"
        images = place.shapes / "train"
        opts = ["DATASETS.COCO_FORMAT", f"[['NAME', '{annotations}', '{images}']]"]
        opts += ["DATASETS.TRAIN", "('NAME',)", "DATASETS.TEST", "('NAME',)", *self.overrides]
        opts += ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(place.folder / "output")]
        opts = [x.replace("NAME", name).replace("FOLDER", str(place.folder)) for x in opts]
        args = train_net.default_argument_parser().parse_args(
            ["--config-file", str(config_file), *opts]
        )
        place.monkeypatch.setattr(train_net, "Trainer", _NoTrainer)
        return train_net.main(args)


class _NoTrainer:
    """Training is not what these tests are about."""

    def __init__(self, cfg):
        self.cfg = cfg

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        pass

    def resume_or_load(self, resume):
        pass

    def train(self):
        return self.cfg


class Weights(NamedTuple):
    """A checkpoint file.

    Attributes:
        name: of the file.
        content: bytes, or an object for torch.save.
    """

    name: str
    content: object
    errors = (ValueError, OSError)

    def use(self, place):
        """A linear layer with these weights."""
        path = place.folder / self.name
        if isinstance(self.content, bytes):
            path.write_bytes(self.content)
        elif callable(self.content):
            self.content(path)
        elif self.content is not None:
            torch.save(self.content, path)
        model = torch.nn.Linear(3, 2)
        ContrastMaskCheckpointer(model, require_all=True).load(str(path))
        return model


_MAPPER = {
    "is_train": True,
    "augmentations": [],
    "image_format": "BGR",
    "use_instance_mask": True,
}


def sample_image(size=(HEIGHT, WIDTH)):
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[:, : size[1] // 2], pixels[:, size[1] // 2 :] = LEFT, RIGHT
    return Image.fromarray(pixels)
