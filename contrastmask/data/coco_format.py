"""
Reading COCO-format annotation files in which any instance may lack a mask. What an annotation means
is decided here, once: what is unusual and clear is repaired and counted, what is not is refused
with its value. Training stops at the first error, `tools/inspect_dataset.py` collects all of them.
"""

import contextlib
import gc
import json
import logging
import os
from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Optional

from detectron2.utils.logger import log_first_n
from tabulate import tabulate

from .annotation_values import MAX_COORDINATE, Ids, ReadingOptions, id_key, to_id
from .coco_annotations import AnnotationReader
from .images import ImageFileError, ImageFolder, ImageHeader, read_headers
from .masks import is_nothing, parse_number
from .reading_report import AnnotationFileError, ReadingReport, names, short

__all__ = [
    "Annotations",
    "load_json",
    "log_reading",
    "paused_garbage_collection",
    "read_annotations",
]

# Run lengths of masks are numbers of 32 bits.
_MAX_IMAGE_PIXELS = 2**32 - 1
_NOT_COCO = (
    "'{key}' {problem}; is this a COCO instances file? docs/EXCHANGE.md says how to get one from "
    "labeling tools"
)


@dataclass
class Annotations:
    """The content of an annotation file.

    Attributes:
        path: of the file.
        class_names: by contiguous id, in the order of the category ids.
        category_ids: id in the file of each class.
        records: one for each image, by ascending id, in Detectron2's dataset format, category ids
            being contiguous. Beside Detectron2's keys an annotation has its "id" and its "index"
            in the file; "area", if the file says one; and "thin_segmentation": polygons that cover
            no pixel, of an object thinner than 3 pixels, which only the evaluation uses.
        report: what was found on the way.
        is_federated: in each image only some classes are annotated (LVIS).
        checked_for: what the image files have been checked for, see :func:`.check_image_files`.
    """

    path: str
    class_names: List[str]
    category_ids: List[int]
    records: List[dict]
    report: ReadingReport
    is_federated: bool = False
    checked_for: Optional[tuple] = None


@contextlib.contextmanager
def paused_garbage_collection():
    """Python looks for cycles whenever there are a quarter more objects, which takes a third of the
    time of reading a large file and finds none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@paused_garbage_collection()
def read_annotations(
    path: str,
    image_root: Optional[str] = None,
    *,
    options: Optional[ReadingOptions] = None,
    report: Optional[ReadingReport] = None,
    needs_images: bool = True,
    content: Optional[dict] = None,
) -> Annotations:
    """Read a COCO-format file where annotations may have a mask or only a box.

    Box-only are annotations without ``segmentation``, with an empty one, or with one that covers no
    pixel of its image; they have no key "segmentation". Where some polygons of an instance are
    unusable, it keeps the others. Crowds, and annotations marked "ignore", have "iscrowd" 1, and
    training leaves them out. Keypoints are not read. docs/CUSTOM_DATA.md lists what is repaired.

    Args:
        path: of the annotation file.
        image_root: folder of the images. None: file names stay as they are, no file is looked for,
            and 'annotations' may be missing, as for the test sets of COCO.
        options: how crowds and boxes are meant.
        report: where findings go; it also decides whether errors are raised or collected. With
            collected errors, faulty entries are left out of the result.
        needs_images: False makes a missing image file a warning.
        content: of the file, from :func:`load_json`, if the caller has it. It is not changed; the
            records share lists with it.

    Returns:
        Annotations

    Raises:
        AnnotationFileError: if the file is not sound, or an image file is missing.
    """
    report = report or ReadingReport(path)
    content = load_json(path) if content is None else content
    if image_root is None:
        content = {"annotations": [], **content}
    content = _sections(content, report)
    categories = _Categories(content, report)
    images = _Images(content["images"], image_root, report, needs_images)
    reader = AnnotationReader(categories, images, options or ReadingOptions(), report)
    instances = reader.read(content["annotations"])
    records = [
        {
            "file_name": image.file,
            "height": image.height,
            "width": image.width,
            "image_id": image.id,
            "annotations": instances[index],
        }
        for index, image in enumerate(images.entries)
    ]
    records.sort(key=lambda x: (isinstance(x["image_id"], str), x["image_id"]))
    return Annotations(
        path,
        [x.name for x in categories.entries],
        [x.id for x in categories.entries],
        records,
        report,
        any("neg_category_ids" in x for x in content["images"]),
    )


@paused_garbage_collection()
def load_json(path: str) -> dict:
    """
    Args:
        path: of an annotation file, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Returns:
        dict: its content.

    Raises:
        AnnotationFileError: if it is missing or damaged, or does not hold an object.
    """
    try:
        with open(path, "rb") as f:
            content = json.loads(f.read())
    except FileNotFoundError:
        raise AnnotationFileError(path, "there is no such annotation file") from None
    except OSError as error:
        raise AnnotationFileError(path, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also what is not Unicode
        raise AnnotationFileError(path, f"is not JSON, or was cut off: {error}") from None
    if not isinstance(content, dict):
        is_result = isinstance(content, list) and content and isinstance(content[0], dict)
        hint = "a list of detections cannot be trained on" if is_result else "COCO's format is one"
        raise AnnotationFileError(path, f"is not a JSON object; {hint}")
    return content


def log_reading(annotations: Annotations) -> None:
    """Log, once per file, what was read, left out and repaired."""
    report = annotations.report
    counts = sorted(report.counts.items(), key=lambda x: -x[1])
    text = (
        f"Read {len(annotations.records)} images and {len(annotations.class_names)} classes from "
        f"{annotations.path}\n"
        + tabulate(counts, headers=["annotations", "number"], tablefmt="pipe")
    )
    if report.findings:
        text += f"\n{report.table()}"
    level = logging.WARNING if any(x.level == "warning" for x in report.findings) else logging.INFO
    log_first_n(level, text, name=__name__, key="message")


def _sections(content: dict, report: ReadingReport) -> Dict[str, List[dict]]:
    sections = {}
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list):
            problem = "is not a list" if key in content else "is missing"
            raise AnnotationFileError(report.path, _NOT_COCO.format(key=key, problem=problem))
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise AnnotationFileError(
                    report.path, f"entry {index} of '{key}' is not an object", value=short(entry)
                )
        sections[key] = entries
    return sections


class _Category(NamedTuple):
    """
    id (int): as in the file. name (str): of the class.
    """

    id: int
    name: str


class _Categories:
    """The sound entries of 'categories'; their place is the contiguous id."""

    def __init__(self, content: Dict[str, List[dict]], report: ReadingReport):
        self._report = report
        self.has_faulty = not content["categories"]
        self.lookup = Ids()
        entries: List[_Category] = []
        if self.has_faulty:
            report.error("'categories' is empty: name the classes in the labeling tool")
        for category in content["categories"]:
            entry = self._entry(category)
            if entry is None:
                self.has_faulty = True
            elif entry in entries:
                report.repaired("category repeated, taken once", f"category {entry.id!r}")
            elif any(entry.id == other.id for other in entries):
                names_of_id = [x.name for x in (*entries, entry) if x.id == entry.id]
                what = "categories of different names have this id: change one"
                report.error(what, f"{entry.id!r} ({names(map(repr, names_of_id))})")
            else:
                entries.append(entry)
        self.entries = sorted(self._without_root(entries, content), key=lambda x: x.id)
        names_seen = [x.name for x in self.entries]
        for name in sorted({x for x in names_seen if names_seen.count(x) > 1}):
            ids = [repr(x.id) for x in self.entries if x.name == name]
            report.error(
                "several categories have this name: rename them, or give their annotations one "
                "category_id",
                f"'{name}'",
                f"the ids {names(ids)}",
            )
        for index, entry in enumerate(self.entries):
            self.lookup.add(entry.id, index)

    def is_excused(self, category_id) -> bool:
        """Whether an annotation may point to an entry whose fault has been reported."""
        return self.has_faulty

    def _entry(self, category: dict) -> Optional[_Category]:
        category_id = parse_number(category.get("id"))
        if category_id is None or category_id != int(category_id):
            self._report.error("a category has no whole number as 'id'", value=short(category))
            return None
        where = f"category {category['id']!r}"
        if type(category["id"]) is not int:
            self._report.repaired("category id as text or as a float", where)
        name = category.get("name")
        if type(name) in (int, float):
            name = str(name)
            self._report.repaired("category name as a number", where)
        if not isinstance(name, str) or not name.strip():
            self._report.error("it has no 'name'", where)
            return None
        if not _is_unicode(name):
            self._report.error("its 'name' is not Unicode text", where, short(name))
            return None
        return _Category(int(category_id), name)

    def _without_root(self, entries: List[_Category], content) -> List[_Category]:
        """
        Leave out categories that nothing belongs to, where they are above the classes (Roboflow
        writes one) or have the name of another one.
        """
        used = {id_key(x.get("category_id")) for x in content["annotations"]}
        parents = {
            x.get("supercategory")
            for x in content["categories"]
            if isinstance(x.get("supercategory"), str) and x["supercategory"] != x.get("name")
        }
        kept = []
        for index, entry in enumerate(entries):
            what = ""
            others = [k for k, x in enumerate(entries) if x.name == entry.name and k != index]
            if entry.id in used:
                pass
            elif entry.name in parents:
                what = "category above the others (Roboflow's root), left out"
            elif any(entries[k].id in used or k > index for k in others):
                what = "unused category with the name of another one (Roboflow's root), left out"
            if what:
                self._report.repaired(what, f"category {entry.id!r} '{entry.name}'")
            else:
                kept.append(entry)
        return kept or entries


class _Image(NamedTuple):
    """
    id (int or str): as in the file; file: path of the image; height, width (int): in pixels.
    """

    id: object
    file: str
    height: int
    width: int


class _Images:
    """The sound entries of 'images', with their files."""

    def __init__(
        self, entries: List[dict], root: Optional[str], report: ReadingReport, needs_files: bool
    ):
        self._report = report
        self._root = root
        self._needs_files = needs_files
        self.entries: List[_Image] = []
        self.lookup = Ids()
        self.faulty = Ids()
        self.has_nameless = False  # an entry without id: nobody knows which annotations are its own
        if not entries:
            report.error("'images' is empty")
        folder = None
        if root is not None:
            if not os.path.isdir(root):
                report.error(f"the image folder '{root}' does not exist")
            else:
                folder = ImageFolder(root)
        found = self._files(entries, folder)
        seen = {}
        for entry, file in zip(entries, found):
            image_id = _image_id(entry)
            image = (
                self._image(entry, image_id, file) if self._is_new(entry, image_id, seen) else None
            )
            if image is not None:
                self.lookup.add(image.id, len(self.entries))
                self.entries.append(image)
            elif image_id is None:
                self.has_nameless = True
            elif image_id not in self.lookup:
                self.faulty.add(image_id, 0)
        texts = [str(x.id) for x in self.entries]
        if len(set(texts)) < len(texts):
            double = next(x for x in texts if texts.count(x) > 1)
            report.error(f"two images have the id {double!r}, once as a number and once as text")

    def header_of(self, index: int) -> Optional[ImageHeader]:
        """Header of the file of an entry; None if files are not looked for, or it is damaged."""
        if self._root is None:
            return None
        (header,) = read_headers([self.entries[index].file])
        return header if isinstance(header, ImageHeader) else None

    def is_excused(self, image_id) -> bool:
        """Whether an annotation may point to an entry whose fault has been reported."""
        return self.has_nameless or self.faulty.find(image_id) is not None

    def _is_new(self, entry: dict, image_id, seen: dict) -> bool:
        if image_id is None:
            self._report.error("an image has no number or string as 'id'", value=short(entry))
            return False
        essence = [entry.get(key) for key in ("file_name", "coco_url", "height", "width")]
        if image_id not in seen:
            seen[image_id] = essence
            return True
        if seen[image_id] == essence:
            self._report.repaired("image entry repeated, taken once", f"image {image_id!r}")
        else:
            self._report.error("two images have this id", f"image {image_id!r}")
        return False

    def _image(self, entry: dict, image_id, file: Optional[str]) -> Optional[_Image]:
        where = f"image {image_id!r}"
        if file is None:
            return None
        sides = []
        for key in ("height", "width"):
            value, side = entry.get(key), parse_number(entry.get(key))
            if is_nothing(value) or side == 0:
                sides.append(None)
            elif side is None or side != int(side) or not 0 < side <= MAX_COORDINATE:
                self._report.error(
                    f"'{key}' must be a whole number of 1 to {MAX_COORDINATE} pixels",
                    where,
                    short(value),
                )
                return None
            else:
                if type(value) is not int:
                    self._report.repaired("height or width as text or with a point", where)
                sides.append(int(side))
        if None in sides:
            if self._root is None:
                self._report.error("it has no 'height' and 'width'", where)
                return None
            (header,) = read_headers([file])
            if isinstance(header, ImageFileError):
                reason = "image without 'height' or 'width', whose file cannot be read"
                self._report.error(reason, where, str(header))
                return None
            sides = header.size
            self._report.repaired("height and width taken from the image file", where)
        height, width = sides
        if height * width > _MAX_IMAGE_PIXELS:
            self._report.error(f"it has more than {_MAX_IMAGE_PIXELS} pixels", where)
            return None
        return _Image(image_id, file, height, width)

    def _files(self, entries: List[dict], folder: Optional[ImageFolder]) -> List[Optional[str]]:
        """Path of the file of each entry; None for those without."""
        files, how, missing = [], [], []
        for entry in entries:
            where = f"image {entry.get('id')!r}"
            name, file, way = image_file_name(entry), None, ""
            if _image_id(entry) is None:
                pass  # reported elsewhere
            elif not isinstance(name, str) or not name:
                self._report.error("it has no 'file_name'", where)
            elif not _is_unicode(name):
                self._report.error("its 'file_name' is not Unicode text", where, short(name))
            elif folder is None:
                file = os.path.join(self._root or "", name)
            else:
                file, way = folder.find(name)
                if file is None and self._needs_files:
                    missing.append(name)
                elif file is None:
                    file, way = os.path.join(self._root, name), ""
                    self._report.warn("missing image file", f"{where} ({name})")
            files.append(file)
            how.append(way)
        claimed: Dict[str, set] = {}
        for file, entry in zip(files, entries):
            claimed.setdefault(file, set()).add(image_file_name(entry) if file else None)
        for index, (file, way) in enumerate(zip(files, how)):
            if not way or file is None:
                continue
            if len(claimed[file]) > 1:  # two names that end alike: neither is sure
                missing.append(image_file_name(entries[index]))
                files[index] = None
            else:
                name = os.path.basename(file)
                self._report.repaired(way, f"image {entries[index].get('id')!r} ({name})")
        self._report_missing(missing, len(entries))
        return files

    def _report_missing(self, missing: List[str], num_images: int) -> None:
        if not missing:
            return
        if self._report.stop_at_errors:
            self._report.error(
                f"{len(missing)} of {num_images} images are not in the folder '{self._root}', such "
                f"as {names(missing, 5)}"
            )
        for name in missing:
            self._report.error(f"missing image file in '{self._root}'", name)


def _image_id(image: dict):
    return to_id(image.get("id", image.get("image_id")))


def image_file_name(image: dict):
    """The file name of an image entry; files of LVIS have it in "coco_url" only, as its end."""
    url = image.get("coco_url")
    if image.get("file_name") is None and isinstance(url, str):
        return "/".join(url.split("/")[-2:])
    return image.get("file_name")


def _is_unicode(text: str) -> bool:
    """False for half a UTF-16 pair, which JSON can hold and no file can be written with."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
