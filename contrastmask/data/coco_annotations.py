"""The entries of 'annotations' in a COCO-format file: from values to masks and boxes."""

from array import array
from collections import Counter
from itertools import chain, groupby
from typing import List, NamedTuple, Optional, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from .annotation_geometry import check_geometry, is_rectangle, true_image_sizes
from .annotation_values import (
    BOX_FORMATS,
    MAX_COORDINATE,
    AnnotationParser,
    ParsedAnnotation,
    ReadingOptions,
    refuse_mask,
)
from .masks import (
    MIN_NUMBERS,
    SegmentationError,
    check_polygons,
    compressed_rle,
    has_hole,
    parse_number,
    parse_polygons,
)
from .reading_report import ReadingReport

__all__ = ["CROWD_WARNING", "NO_PIXEL", "NO_POLYGON", "ONLY_BOX", "AnnotationReader"]

BOX_MASK_WARNING = (
    "most masks of the class are rectangles drawn as polygons. If the labeling tool wrote boxes so "
    "(VIA, Roboflow), set DATASETS.BOX_MASKS boxes"
)
# What is counted, or warned of, where a drawn mask does not count.
NO_PIXEL = "segmentation without a pixel of its image: box only"
NO_POLYGON = "segmentation without three points: box only"
ONLY_BOX = "box drawn as a polygon: box only (DATASETS.BOX_MASKS boxes)"
CROWD_WARNING = (
    "crowd (iscrowd 1), left out of training. CVAT and V7 mark drawn masks in this way: if these "
    "are objects, set DATASETS.CROWDS objects"
)
# Boxes with a shorter side, in pixels, are left out; scaling and rounding would make them empty.
_MIN_BOX_SIDE = 0.01
# An object with a shorter side, in pixels, may lie between the centers of pixels.
_MIN_MASK_SIDE = 3.0
# A rectangle is its box if they differ by at most this, in pixels. Fewer of them prove nothing.
_BOX_SLACK = 1.5
_MIN_BOX_MASKS = 3
# Polygons are checked in batches of this many annotations to bound the memory this takes.
_CHECK_BATCH = 20_000


class _Mask(NamedTuple):
    """
    segmentation (list or dict or None): the usable mask in Detectron2's format, or None.
    extent (tuple or None): x0, y0, x1, y1 of what was drawn, usable or not; None for nothing.
    thin (list or None): polygons of an object so thin that they cover no pixel.
    warning (str): what deserves a look; empty for nothing.
    is_rectangle (bool): an upright one.
    is_faulty (bool): refused, and reported.
    """

    segmentation: object = None
    extent: Optional[Tuple[float, float, float, float]] = None
    thin: Optional[list] = None
    warning: str = ""
    is_rectangle: bool = False
    is_faulty: bool = False


class AnnotationReader:
    """From the entries of 'annotations' to Detectron2's format."""

    def __init__(self, categories, images, options: ReadingOptions, report: ReadingReport):
        """
        Args:
            categories, images: the sound entries of the file, see coco_format.py.
            options: how values are read.
            report: where findings go.
        """
        self._categories = categories
        self._images = images
        self._options = options
        self._report = report
        self._num_masks: Counter = Counter()  # by class
        self._num_box_masks: Counter = Counter()

    def read(self, annotations: List[dict]) -> List[List[dict]]:
        """
        Args:
            annotations: the entries of the file.

        Returns:
            list[list[dict]]: for each image entry its annotations, in the order of the file.
        """
        parser = AnnotationParser(self._categories, self._images, self._options, self._report)
        parsed = parser.parse(annotations)
        self._correct_image_sizes(parsed)
        masks = self._masks(parsed)
        sound = [k for k, mask in enumerate(masks) if not mask.is_faulty]
        parsed, masks = [parsed[k] for k in sound], [masks[k] for k in sound]
        is_plausible = check_geometry(
            self._report,
            boxes=[x.box for x in parsed],
            extents=[mask.extent for mask in masks],
            is_usable=[mask.segmentation is not None or mask.thin is not None for mask in masks],
            sizes=[self._size(x) for x in parsed],
            where=[x.where for x in parsed],
            options=self._options,
        )
        instances: List[List[dict]] = [[] for _ in self._images.entries]
        if not is_plausible:  # what could be said of single annotations would only follow from it
            return instances
        for x, mask in zip(parsed, masks):
            instance = self._instance(x, mask)
            if instance is not None:
                instances[x.image].append(instance)
        self._warn_of_box_masks()
        self._warn_of_doubles(instances)
        return instances

    def _correct_image_sizes(self, parsed: List[ParsedAnnotation]) -> None:
        """Take sizes of images from their files, where annotations prove those stated wrong."""
        to_xywh = BOX_FORMATS[self._options.box_format]
        corners = [[0.0, 0.0] for _ in self._images.entries]
        for x in parsed:
            if x.box is not None:
                left, top, width, height = to_xywh(*x.box)
                corner = corners[x.image]
                corner[:] = max(corner[0], left + width), max(corner[1], top + height)
        has_rle = {x.image for x in parsed if isinstance(x.mask, dict)}
        sizes = [(x.height, x.width) for x in self._images.entries]
        found = true_image_sizes(corners, sizes, self._images.header_of, has_rle)
        for index, size in sorted(found.items()):
            entry = self._images.entries[index]
            self._images.entries[index] = entry._replace(height=size[0], width=size[1])
            self._report.repaired(
                "height and width that do not fit the annotations, taken from the image file",
                f"image {entry.id!r}",
            )

    # -- masks ------------------------------------------------------------------------------------

    def _masks(self, parsed: List[ParsedAnnotation]) -> List[_Mask]:
        masks = [_Mask()] * len(parsed)
        with_polygons = []
        for k, x in enumerate(parsed):
            if isinstance(x.mask, list):
                with_polygons.append(k)
            elif x.mask is not None:
                try:
                    rle = compressed_rle(x.mask, *self._size(x))
                except SegmentationError as error:
                    masks[k] = self._refuse_mask(error, x.where, x.original)
                    continue
                if rle is not None:
                    left, top, width, height = mask_util.toBbox(rle).tolist()
                    masks[k] = _Mask(rle, (left, top, left + width, top + height))
        for start in range(0, len(with_polygons), _CHECK_BATCH):
            self._check_polygons(parsed, with_polygons[start : start + _CHECK_BATCH], masks)
        return masks

    def _refuse_mask(self, error: SegmentationError, where: str, entry: dict) -> _Mask:
        refuse_mask(self._report, error, where, entry)
        return _Mask(is_faulty=True)

    def _check_polygons(
        self, parsed: List[ParsedAnnotation], which: List[int], masks: list
    ) -> None:
        """Set the masks of some thousand annotations with polygons."""
        polygons, owners = [], []
        for k in which:
            try:
                found = self._numeric_polygons(parsed[k])
            except SegmentationError as error:
                masks[k] = self._refuse_mask(error, parsed[k].where, parsed[k].original)
                continue
            polygons += found
            owners += [k] * len(found)
        if not polygons:
            return
        numbers = np.frombuffer(array("d", chain.from_iterable(polygons)))
        lengths = np.array([len(p) for p in polygons])
        sizes = np.array([self._size(parsed[k]) for k in owners])
        # A comparison with NaN is False.
        is_far = ~(np.abs(numbers) <= MAX_COORDINATE)
        far_owners = {owners[i] for i in np.repeat(np.arange(len(lengths)), lengths)[is_far]}
        usable, too_long = check_polygons(np.where(is_far, 0.0, numbers), lengths, sizes)
        points = numbers.reshape(-1, 2)
        starts = np.cumsum(lengths // 2) - lengths // 2
        low = np.minimum.reduceat(points, starts).tolist()
        high = np.maximum.reduceat(points, starts).tolist()
        usable, too_long = usable.tolist(), too_long.tolist()
        for k, group in groupby(range(len(owners)), key=owners.__getitem__):
            own = list(group)
            if k in far_owners:
                reason = f"a polygon has values that are no pixels, or beyond {MAX_COORDINATE}"
            elif any(too_long[i] for i in own):
                reason = "the outline of a polygon is too long"
            else:
                kept = [i for i in own if usable[i]]
                extent = _extent([low[i] for i in kept or own], [high[i] for i in kept or own])
                masks[k] = self._mask_of_polygons(
                    [polygons[i] for i in own], [polygons[i] for i in kept], extent
                )
                continue
            masks[k] = self._refuse_mask(
                SegmentationError(reason), parsed[k].where, parsed[k].original
            )

    @staticmethod
    def _mask_of_polygons(polygons: List[list], kept: List[list], extent: tuple) -> _Mask:
        """
        Args:
            polygons: all polygons of an annotation.
            kept: those of them that cover a pixel.
            extent: x0, y0, x1, y1 of these, or of all if there are none.
        """
        outlines = [p for p in polygons if len(p) >= MIN_NUMBERS]
        if not outlines:
            return _Mask(warning=NO_POLYGON)
        if not kept:
            is_thin = min(extent[2] - extent[0], extent[3] - extent[1]) < _MIN_MASK_SIDE
            return _Mask(None, extent, outlines if is_thin else None, NO_PIXEL)
        if len(kept) < len(polygons):
            what = "polygon without three points, or without a pixel of its image, left out"
            return _Mask(kept, extent, warning=what)
        if len(kept) > 1 and has_hole(kept):
            what = "hole drawn as a second polygon: COCO fills it. Export masks with holes as RLE"
            return _Mask(kept, extent, warning=what)
        return _Mask(kept, extent, is_rectangle=len(kept) == 1 and is_rectangle(kept[0]))

    def _numeric_polygons(self, x: ParsedAnnotation) -> List[list]:
        """
        Raises:
            SegmentationError: for values that are no coordinates.
        """
        try:
            # Fails for text, null and lists among the numbers.
            array("d", chain.from_iterable(x.mask))
            if not any(len(p) % 2 for p in x.mask):
                return x.mask
        except (TypeError, OverflowError):
            pass
        polygons, repairs = parse_polygons(x.mask)
        for what in repairs:
            self._report.repaired(what, x.where)
        return polygons

    # -- result -----------------------------------------------------------------------------------

    def _instance(self, x: ParsedAnnotation, mask: _Mask) -> Optional[dict]:
        if mask.warning:
            self._report.warn(mask.warning, x.where)
        box = self._final_box(x, mask)
        if box is None:
            return None
        instance = {
            "id": x.id,
            "index": x.index,
            "bbox": box,
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": x.category,
            "iscrowd": int(x.is_ignored or self._is_left_out(x)),
        }
        is_box = mask.is_rectangle and self._is_box(x, mask)
        if is_box and self._options.box_masks == "boxes":
            self._report.count(ONLY_BOX)
        elif mask.segmentation is not None:
            instance["segmentation"] = mask.segmentation
        elif mask.thin is not None and min(box[2:]) < _MIN_MASK_SIDE:
            instance["thin_segmentation"] = mask.thin
        area = parse_number(x.original.get("area"))
        if area is not None:
            instance["area"] = area
        if not instance["iscrowd"]:
            self._num_masks[x.category] += mask.segmentation is not None
            self._num_box_masks[x.category] += is_box
        self._count(x, "segmentation" in instance)
        return instance

    def _is_left_out(self, x: ParsedAnnotation) -> bool:
        return x.is_crowd and self._options.crowds == "ignore"

    def _final_box(self, x: ParsedAnnotation, mask: _Mask) -> Optional[list]:
        """XYWH, or None for an annotation without a usable box, which is left out."""
        height, width = self._size(x)
        has_mask = mask.segmentation is not None
        box = None if x.box is None else BOX_FORMATS[self._options.box_format](*x.box)
        is_usable = box is not None and _is_usable(box, height, width)
        if is_usable and not (self._options.boxes_from_masks and has_mask):
            left, top, w, h = box
            # A rounding error is not worth a word.
            if min(left, top, width - left - w, height - top - h) < -1:
                self._report.warn("box partly outside of its image", x.where)
            return box
        if has_mask:
            if is_usable:
                self._report.count("box taken from the mask (DATASETS.BOXES_FROM_MASKS)")
            else:
                self._report.repaired("box missing, empty or outside: taken from the mask", x.where)
            x0, y0 = max(mask.extent[0], 0.0), max(mask.extent[1], 0.0)
            x1, y1 = min(mask.extent[2], float(width)), min(mask.extent[3], float(height))
            return [x0, y0, max(x1 - x0, _MIN_BOX_SIDE), max(y1 - y0, _MIN_BOX_SIDE)]
        if box is None:
            what = "neither box nor usable mask"
        else:
            what = "box outside of its image" if min(box[2:]) > 0 else "box without area"
        self._report.warn(f"{what}, left out", x.where)
        return None

    def _count(self, x: ParsedAnnotation, has_mask: bool) -> None:
        if x.is_ignored:
            self._report.count("marked 'ignore', left out of training")
            return
        if self._is_left_out(x):
            self._report.warn(CROWD_WARNING, x.where)
            return
        if x.is_crowd:
            self._report.count("iscrowd 1, taken as an object (DATASETS.CROWDS)")
        self._report.count("mask" if has_mask else "box only")
        attributes = x.original.get("attributes")
        if not has_mask and isinstance(attributes, dict):
            angle = parse_number(attributes.get("rotation")) or 0
            if angle % 360:
                self._report.warn(
                    "rotated box (attributes.rotation): 'bbox' is the box before it was turned",
                    x.where,
                )

    def _is_box(self, x: ParsedAnnotation, mask: _Mask) -> bool:
        """Whether a rectangle is the box of its annotation."""
        if x.box is None:
            return True
        left, top, width, height = BOX_FORMATS[self._options.box_format](*x.box)
        corners = (left, top, left + width, top + height)
        return max(abs(a - b) for a, b in zip(corners, mask.extent)) <= _BOX_SLACK

    def _warn_of_box_masks(self) -> None:
        found = {k: n for k, n in self._num_box_masks.items() if n > self._num_masks[k] / 2}
        if self._options.box_masks == "masks" and sum(found.values()) >= _MIN_BOX_MASKS:
            for category, number in found.items():
                name = self._categories.entries[category].name
                where = f"'{name}' ({number} of {self._num_masks[category]})"
                self._report.warn(BOX_MASK_WARNING, where)

    def _warn_of_doubles(self, instances: List[List[dict]]) -> None:
        for image, of_image in zip(self._images.entries, instances):
            seen = set()
            for x in of_image:
                box = (round(side, 2) for side in x["bbox"])  # tools compute with fractions
                if (key := (x["category_id"], *box)) in seen:
                    where = f"annotation {x['id']!r} (image {image.id!r})"
                    self._report.warn("same class and box as another one of the image", where)
                seen.add(key)

    def _size(self, x: ParsedAnnotation) -> Tuple[int, int]:
        """Height and width of the image of an annotation."""
        image = self._images.entries[x.image]
        return image.height, image.width


def _extent(low: List[list], high: List[list]) -> Tuple[float, float, float, float]:
    """x0, y0, x1, y1 around polygons whose smallest and largest x, y are given."""
    if len(low) == 1:
        return (*low[0], *high[0])
    return (*map(min, zip(*low)), *map(max, zip(*high)))


def _is_usable(box, height, width) -> bool:
    """Whether a box (XYWH) has some area inside of its image."""
    left, top, w, h = box
    inside_w = min(left + w, width) - max(left, 0)
    inside_h = min(top + h, height) - max(top, 0)
    return inside_w >= _MIN_BOX_SIDE and inside_h >= _MIN_BOX_SIDE
