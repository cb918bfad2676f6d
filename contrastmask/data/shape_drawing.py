"""
Drawing images of textured shapes. Everything is drawn from a random generator that is seeded per
image, so an image depends on its seed and size only. As in photos, most objects of a class have its
typical look (a hue and a texture), so masks of novel classes are for looks whose masks were never
seen. Few shapes fill their boxes: a detector that only fills boxes gets a low mask AP.
"""

from typing import Callable, Dict, List, Tuple

import cv2
import numpy as np

__all__ = ["SHAPE_BASE_CLASSES", "SHAPE_CLASSES", "SHAPE_NOVEL_CLASSES", "draw_image"]

# Side of an object's box as a fraction of the image side: 32 to 120 pixels of 192.
_OBJECT_SIZE = (32 / 192, 120 / 192)
_OBJECTS_PER_IMAGE = (2, 6)
# Less of an object than this is never left visible by other objects or by the image border.
_MIN_VISIBLE_FRACTION = 0.35
_PLACEMENT_TRIES = 20
# Distance in RGB space between the mean colors of an object and of what it is drawn on.
_MIN_CONTRAST = 80.0
# Fraction of the objects that have the look of their class; the others have any look.
_TYPICAL_FRACTION = 0.85
# In OpenCV's units: 180 are the whole circle. The golden ratio keeps hues of classes apart.
_HUE_STEP, _HUE_SPREAD = 180 * 0.618, 7

# Contours in a box of about [-1, 1]; those after the first are holes.
Contours = List[np.ndarray]


# ---------------------------------------------------------------------------------------------
# Outlines. Each takes a generator and gives contours with a little variation inside the class.
# ---------------------------------------------------------------------------------------------


def _polar(radius, angle) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def _circle(radius: float, num: int = 48) -> np.ndarray:
    return _polar(np.full(num, radius), np.arange(num) * (2 * np.pi / num))


def _triangle(rng) -> Contours:
    angle = np.radians([90.0, 210.0, 330.0]) + rng.uniform(-0.2, 0.2, 3)
    return [_polar(np.ones(3), angle)]


def _cross(rng) -> Contours:
    w = rng.uniform(0.2, 0.3)
    quarter = np.array([[w, w], [w, 1], [-w, 1]])
    turn = np.array([[0, 1], [-1, 0]])
    return [np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])]


def _ring(rng) -> Contours:
    return [_circle(1.0), _circle(rng.uniform(0.5, 0.66))]


def _arrow(rng) -> Contours:
    w, neck, head = rng.uniform(0.13, 0.2), rng.uniform(0.0, 0.25), rng.uniform(0.55, 0.7)
    upper = np.array([[-1, w], [neck, w], [neck, head], [1, 0]])
    return [np.concatenate([upper, upper[2::-1] * [1, -1]])]


def _heart(rng) -> Contours:
    t = np.arange(64) * (2 * np.pi / 64)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([x, y * rng.uniform(0.95, 1.15)], axis=-1) / 17]


def _gear(rng) -> Contours:
    teeth, inner = int(rng.integers(7, 10)), rng.uniform(0.66, 0.74)
    tooth = np.array([[inner, -0.5], [inner, -0.25], [1, -0.2], [1, 0.2], [inner, 0.25]])
    angle = (np.arange(teeth)[:, None] + tooth[:, 1]) * (2 * np.pi / teeth)
    radius = np.broadcast_to(tooth[:, 0], angle.shape)
    return [_polar(radius, angle).reshape(-1, 2), _circle(rng.uniform(0.25, 0.38), 32)]


def _leaf(rng) -> Contours:
    t = np.linspace(-1, 1, 24)
    upper = np.stack([t, rng.uniform(0.3, 0.42) * np.cos(t * np.pi / 2)], axis=-1)
    return [np.concatenate([upper, upper[-2:0:-1] * [1, -1]])]


def _hook(rng) -> Contours:
    w, foot = rng.uniform(0.4, 0.55), rng.uniform(0.4, 0.8)
    return [
        np.array([[-0.8, -1], [foot, -1], [foot, w - 1], [w - 0.8, w - 1], [w - 0.8, 1], [-0.8, 1]])
    ]


def _star(rng) -> Contours:
    radius = np.tile([1.0, rng.uniform(0.38, 0.46)], 5)
    return [_polar(radius, np.arange(10) * (np.pi / 5))]


def _crescent(rng) -> Contours:
    # A disc less a disc of radius r, moved by d along x; they cross at x = cross_x.
    d, r = rng.uniform(0.42, 0.55), rng.uniform(0.78, 0.88)
    cross_x = (1 + d * d - r * r) / (2 * d)
    outer_end = np.arccos(cross_x)
    inner_end = np.arctan2(np.sqrt(1 - cross_x**2), cross_x - d)
    outer = _polar(np.ones(40), np.linspace(outer_end, 2 * np.pi - outer_end, 40))
    inner = _polar(np.full(40, r), np.linspace(2 * np.pi - inner_end, inner_end, 40)) + [d, 0]
    return [np.concatenate([outer, inner[1:-1]])]


def _horseshoe(rng) -> Contours:
    inner, leg = rng.uniform(0.48, 0.6), rng.uniform(0.7, 1.1)
    arc = np.linspace(0, np.pi, 24)
    outside = np.concatenate([[[1, -leg]], _polar(np.ones(24), arc), [[-1, -leg]]])
    inside = np.concatenate([[[inner, -leg]], _polar(np.full(24, inner), arc), [[-inner, -leg]]])
    return [np.concatenate([outside, inside[::-1]])]


def _zigzag(rng) -> Contours:
    thick, height = rng.uniform(0.22, 0.3), rng.uniform(0.35, 0.5)
    x = np.linspace(-1, 1, 5)
    y = np.tile([height, -height], 3)[:5]
    upper = np.stack([x, y + thick], axis=-1)
    return [np.concatenate([upper, (upper - [0, 2 * thick])[::-1]])]


def _hourglass(rng) -> Contours:
    w, waist = rng.uniform(0.65, 0.85), rng.uniform(0.08, 0.16)
    right = np.array([[w, -1], [waist, 0], [w, 1]])
    return [np.concatenate([right, right[::-1] * [-1, 1]])]


def _propeller(rng) -> Contours:
    angle = np.arange(72) * (2 * np.pi / 72)
    hub = rng.uniform(0.16, 0.24)
    return [_polar(hub + (1 - hub) * (0.5 + 0.5 * np.cos(3 * angle)) ** 1.3, angle)]


_OUTLINES: Dict[str, Callable[..., Contours]] = {
    "arrow": _arrow,
    "crescent": _crescent,
    "cross": _cross,
    "gear": _gear,
    "heart": _heart,
    "hook": _hook,
    "horseshoe": _horseshoe,
    "hourglass": _hourglass,
    "leaf": _leaf,
    "propeller": _propeller,
    "ring": _ring,
    "star": _star,
    "triangle": _triangle,
    "zigzag": _zigzag,
}

SHAPE_CLASSES: Tuple[str, ...] = tuple(_OUTLINES)
SHAPE_NOVEL_CLASSES: Tuple[str, ...] = (
    "crescent",
    "horseshoe",
    "hourglass",
    "propeller",
    "star",
    "zigzag",
)
SHAPE_BASE_CLASSES: Tuple[str, ...] = tuple(
    name for name in SHAPE_CLASSES if name not in SHAPE_NOVEL_CLASSES
)


def _random_outline(rng, name: str, side: float) -> Contours:
    """Contours of class `name`, turned at random, the longer side of their box `side` pixels."""
    contours = _OUTLINES[name](rng)
    stretch = np.array([1.0, rng.uniform(0.8, 1.0)])
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    contours = [(contour * stretch) @ turn for contour in contours]
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    scale = side / (high - low).max()
    return [(contour - (low + high) / 2) * scale for contour in contours]


# ---------------------------------------------------------------------------------------------
# Textures: float32 arrays (H, W) in 0..1 that mix two colors.
# ---------------------------------------------------------------------------------------------


def _smooth_noise(rng, height: int, width: int, cells: int) -> np.ndarray:
    grid = rng.integers(0, 256, (cells, cells), dtype=np.uint8)
    noise = cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    return noise.astype(np.float32) / 255


def _rotated_axes(rng, height: int, width: int) -> Tuple[np.ndarray, np.ndarray]:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x - width / 2, y - height / 2
    return (
        np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y,
        np.float32(-np.sin(angle)) * x + np.float32(np.cos(angle)) * y,
    )


def _gradient_texture(rng, height, width):
    along, _ = _rotated_axes(rng, height, width)
    return np.clip(0.5 + along / max(height, width), 0, 1)


def _stripe_texture(rng, height, width):
    along, _ = _rotated_axes(rng, height, width)
    return (np.floor(along / rng.uniform(3.5, 8)) % 2).astype(np.float32)


def _checker_texture(rng, height, width):
    along, across = _rotated_axes(rng, height, width)
    cell = rng.uniform(4, 9)
    return ((np.floor(along / cell) + np.floor(across / cell)) % 2).astype(np.float32)


def _dot_texture(rng, height, width):
    along, across = _rotated_axes(rng, height, width)
    cell = rng.uniform(6, 11)
    u, v = along / cell % 1 - 0.5, across / cell % 1 - 0.5
    return (u * u + v * v < 0.1).astype(np.float32)


def _noise_texture(rng, height, width):
    return _smooth_noise(rng, height, width, max(3, int(max(height, width) / rng.uniform(3, 8))))


_TEXTURES = (
    _gradient_texture,
    _stripe_texture,
    _checker_texture,
    _dot_texture,
    _noise_texture,
)


def _random_color(rng, hue=None) -> np.ndarray:
    if hue is None:
        hue = rng.integers(0, 180)
    hsv = np.array([[[hue, rng.integers(60, 256), rng.integers(60, 256)]]])
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)


def _object_texture(rng, class_index: int, under: np.ndarray) -> np.ndarray:
    """A texture whose mean color differs from that of `under`, the pixels it will hide.

    Args:
        class_index (int): of the object's class.
        under (array): float32, (H, W, 3).

    Returns:
        array: float32, (H, W, 3), 0 to 255.
    """
    height, width = under.shape[:2]
    if rng.uniform() < _TYPICAL_FRACTION:
        texture = _TEXTURES[class_index % len(_TEXTURES)]
        hue = int(_HUE_STEP * class_index + rng.uniform(-_HUE_SPREAD, _HUE_SPREAD)) % 180
    else:
        texture = _TEXTURES[rng.integers(len(_TEXTURES))]
        hue = rng.integers(0, 180)
    mix = texture(rng, height, width)[..., None]
    grain = (_smooth_noise(rng, height, width, max(2, max(height, width) // 2)) - 0.5)[..., None]
    mean_under, mean_mix = under.mean(axis=(0, 1)), mix.mean()
    for _ in range(_PLACEMENT_TRIES):
        first, second = _random_color(rng, hue), _random_color(rng)
        second = first + 0.4 * (second - first)
        mean = first + (second - first) * mean_mix
        if np.linalg.norm(mean - mean_under) > _MIN_CONTRAST:
            break
    return first + (second - first) * mix + 24 * grain


def _draw_background(rng, size: int) -> np.ndarray:
    """Noise at several scales, a gradient, and clutter of strokes and specks: float32 RGB."""
    first = _random_color(rng) * 0.8 + 20
    second = first + 0.5 * (_random_color(rng) - first)
    mix = 0.5 * _gradient_texture(rng, size, size)
    for cells, weight in ((4, 0.5), (12, 0.3), (32, 0.2)):
        mix = mix + weight * _smooth_noise(rng, size, size, cells)
    image = first + (second - first) * mix[..., None]
    image += 30 * (_smooth_noise(rng, size, size, size // 2) - 0.5)[..., None]
    for _ in range(rng.integers(4, 12)):
        clutter = np.zeros((size, size), np.uint8)
        start, end = rng.integers(0, size, (2, 2)).tolist()
        if rng.uniform() < 0.5:
            end = [s + (e - s) // 3 for s, e in zip(start, end)]
            cv2.line(clutter, start, end, 255, int(rng.integers(1, 4)), cv2.LINE_AA)
        else:
            cv2.circle(clutter, start, int(rng.integers(1, 4)), 255, -1, cv2.LINE_AA)
        alpha = clutter.astype(np.float32)[..., None] / 255
        image += alpha * rng.uniform(0.3, 0.7) * (_random_color(rng) - image)
    return np.clip(image, 0, 255).astype(np.float32)


# ---------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------


def _rasterize(contours: Contours, size: int) -> np.ndarray:
    """Coverage (0 to 255) of every pixel; coordinates are those of pixel corners."""
    coverage = np.zeros((size, size), np.uint8)
    # cv2 puts integer coordinates at pixel centers, and takes 8 fractional bits here.
    points = [np.round((contour - 0.5) * 256).astype(np.int32) for contour in contours]
    cv2.fillPoly(coverage, points, 255, cv2.LINE_AA, shift=8)
    return coverage


def _contour_area(contours: Contours) -> float:
    areas = [abs(cv2.contourArea(contour.astype(np.float32))) for contour in contours]
    return areas[0] - sum(areas[1:])


def draw_image(size: int, seed) -> Tuple[np.ndarray, List[Tuple[str, np.ndarray]]]:
    """Draw one image.

    Args:
        size (int): side of the square image in pixels.
        seed: whatever :func:`numpy.random.default_rng` takes.

    Returns:
        image (array): uint8, (size, size, 3), BGR.
        objects (list): of (class name, visible mask), back to front; masks are bool, (size, size).
    """
    rng = np.random.default_rng(seed)
    image = _draw_background(rng, size)
    owner = np.full((size, size), -1, np.int16)  # index of the front object of every pixel
    names: List[str] = []
    areas: List[float] = []
    for _ in range(rng.integers(_OBJECTS_PER_IMAGE[0], _OBJECTS_PER_IMAGE[1] + 1)):
        class_index = int(rng.integers(len(SHAPE_CLASSES)))
        name = SHAPE_CLASSES[class_index]
        low, high = _OBJECT_SIZE
        side = size * low * (high / low) ** rng.uniform()
        outline = _random_outline(rng, name, side)
        area = _contour_area(outline)
        for _ in range(_PLACEMENT_TRIES):
            center = rng.uniform(0.4 * side, size - 0.4 * side, 2)
            coverage = _rasterize([contour + center for contour in outline], size)
            placed = np.where(coverage > 127, np.int16(len(names)), owner)
            visible = np.bincount(placed.ravel() + 1, minlength=len(names) + 2)[1:]
            if (visible >= _MIN_VISIBLE_FRACTION * np.array([*areas, area])).all():
                break
        else:
            continue
        owner = placed
        names.append(name)
        areas.append(area)
        x, y, w, h = cv2.boundingRect(coverage)
        patch = image[y : y + h, x : x + w]
        alpha = coverage[y : y + h, x : x + w, None].astype(np.float32) / 255
        patch += alpha * (_object_texture(rng, class_index, patch) - patch)
    image = np.clip(np.round(image), 0, 255).astype(np.uint8)
    objects = [(name, owner == index) for index, name in enumerate(names)]
    return np.ascontiguousarray(image[:, :, ::-1]), objects
