"""Draw scenes from signed distances of eight shapes, with anti-aliased edges at any size; encode them as PNG.

Only operations that IEEE 754 rounds exactly are used (no sine, no power, no matrix product), so that the pixels of a
scene are the same on every machine. Coordinates are fractions of the image's width, with y downwards. A shape's own
coordinates are in units of its radius.
"""

import math
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray

Plane = NDArray[np.floating[Any]]
Distance = Callable[[Plane, Plane], Plane]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 38),
    "brown": (146, 88, 42),
    "yellow": (248, 208, 36),
    "green": (52, 172, 58),
    "teal": (22, 168, 176),
    "blue": (44, 84, 232),
    "purple": (142, 58, 204),
    "pink": (250, 130, 190),
}
SIZES = {"small": 0.24, "large": 0.31}
"""Radius of the salient object. The radius of the second one is 0.12 to 0.135."""
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = {"white": (238, 238, 238), "gray": (164, 164, 164), "cream": (248, 228, 184)}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Direction of the salient object, seen from the second one."""

LAYOUT_DRAWS = 16
CLUTTER_PIECES = 7
DRAWS = LAYOUT_DRAWS + 5 * CLUTTER_PIECES
"""Number of uniform draws that a drawing takes."""

# Dark outlines on light backgrounds give all colours the same edges, and the salient object stays near the centre.
# Without both, a small ViT needs far longer to learn the shapes.
_OUTLINE, _INK = 0.11, 28.0
_SHADE = 0.4
_JITTER = 0.06
_COS36, _SIN36 = (1 + math.sqrt(5)) / 4, math.sqrt((5 - math.sqrt(5)) / 8)


class Composition(NamedTuple):
    """The content of a scene; every field is a word of its captions."""

    colour: str
    shape: str
    size: str
    texture: str
    relation: str
    second_colour: str
    second_shape: str
    background: str


def _length(x: Plane, y: Plane) -> Plane:
    return np.sqrt(x * x + y * y)


def _circle(x: Plane, y: Plane) -> Plane:
    return _length(x, y) - 0.9


def _square(x: Plane, y: Plane) -> Plane:
    return np.maximum(abs(x), abs(y)) - 0.88


def _triangle(x: Plane, y: Plane) -> Plane:
    y = y - 0.2
    return np.maximum(y - 0.54, abs(x) * (math.sqrt(3) / 2) - y / 2 - 0.54)


def _star(x: Plane, y: Plane) -> Plane:
    """Return the distance from a five-pointed star, folded into one half of one point."""
    x, y = abs(x), 0.1 - y
    fold = 2 * np.maximum(_COS36 * x - _SIN36 * y, 0)
    x, y = x - fold * _COS36, y + fold * _SIN36
    fold = 2 * np.maximum(-_COS36 * x - _SIN36 * y, 0)
    x, y = abs(x + fold * _COS36), y + fold * _SIN36 - 1.1
    edge_x, edge_y = 0.48 * _SIN36, 0.48 * _COS36 - 1.1
    return (y * edge_x - x * edge_y) / math.sqrt(edge_x * edge_x + edge_y * edge_y)


def _cross(x: Plane, y: Plane) -> Plane:
    x, y = abs(x), abs(y)
    return np.maximum(np.maximum(x, y) - 0.98, np.minimum(x, y) - 0.35)


def _ring(x: Plane, y: Plane) -> Plane:
    return abs(_length(x, y) - 0.7) - 0.29


def _heart(x: Plane, y: Plane) -> Plane:
    """Return the distance from two discs and the wedge that their outer tangents form below them."""
    x, y = abs(x), y - 0.06
    below_radius = 0.638 * (x - 0.46) - 0.77 * (y + 0.36)
    wedge = np.maximum(np.maximum(0.77 * x + 0.638 * y - 0.6245, below_radius), -0.45 - y)
    return np.minimum(wedge, _length(x - 0.46, y + 0.36) - 0.5)


def _crescent(x: Plane, y: Plane) -> Plane:
    return np.maximum(_length(x, y) - 1, 0.8 - _length(x - 0.5, y + 0.12))


SHAPES: dict[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "crescent": _crescent,
}


class _Thing(NamedTuple):
    """An object to draw: `turn` is the tangent of half its rotation."""

    colour: str
    shape: str
    texture: str
    x: float
    y: float
    radius: float
    turn: float


def _place(content: Composition, draws: Sequence[float]) -> tuple[_Thing, _Thing]:
    """Place the salient object near the centre, and the second one along the relation's axis, where it has room."""
    radius = SIZES[content.size] * (0.97 + 0.06 * draws[0])
    second_radius = 0.12 + 0.015 * draws[1]
    far = 0.98 - second_radius
    along = min(max(0.37 + _JITTER * (draws[2] - 0.5), 1.1 * radius), far - second_radius - 1.05 * radius)
    across = 0.5 + _JITTER * (draws[3] - 0.5)
    near = along + 1.05 * radius + second_radius
    second_along, second_across = near + (far - near) * draws[4], across + 0.4 * (draws[5] - 0.5)
    step_x, step_y = RELATIONS[content.relation]
    if step_x + step_y > 0:
        along, second_along = 1 - along, 1 - second_along
    turn, second_turn = 0.16 * (draws[6] - 0.5), 0.16 * (draws[7] - 0.5)
    main = _Thing(content.colour, content.shape, content.texture, along, across, radius, turn)
    second = _Thing(
        content.second_colour, content.second_shape, "plain", second_along, second_across, second_radius, second_turn
    )
    if step_y:
        main, second = (thing._replace(x=thing.y, y=thing.x) for thing in (main, second))
    return main, second


def _coverage(distance: Plane, size: int) -> Plane:
    """Return the share of each pixel inside the edge, from the distance in fractions of the width."""
    return np.clip(0.5 - distance * size, 0, 1)


def _texture(kind: str, u: Plane, v: Plane, size: int, phase: float) -> Plane | float:
    """Return the share of each pixel that a texture darkens; (u, v) turn with the object."""
    if kind == "striped":
        across = (u + v) / (0.13 * math.sqrt(2)) + phase
        return _coverage((abs(across - np.floor(across) - 0.5) - 0.25) * 0.13, size)
    if kind == "dotted":
        row = v / 0.12 + phase
        column = u / 0.14 + 0.5 * np.floor(row)
        du, dv = column - np.floor(column) - 0.5, row - np.floor(row) - 0.5
        return _coverage(_length(du * 0.14, dv * 0.12) - 0.042, size)
    return 0.0


def _draw_thing(canvas: Plane, thing: _Thing, x: Plane, y: Plane, light: float, phase: float) -> Plane:
    """Draw an object on a (3, H, W) canvas, in place; return its distances."""
    size = canvas.shape[1]
    square = thing.turn * thing.turn
    cosine, sine = (1 - square) / (1 + square), 2 * thing.turn / (1 + square)
    x, y = x - thing.x, y - thing.y
    u, v = cosine * x + sine * y, cosine * y - sine * x
    distance = SHAPES[thing.shape](u / thing.radius, v / thing.radius) * thing.radius
    shade = light - 0.25 * v - _SHADE * _texture(thing.texture, u, v, size, phase)
    colour = np.array(COLOURS[thing.colour], dtype=np.float32)[:, None, None]
    canvas += _coverage(distance, size) * (_INK - canvas)
    canvas += _coverage(distance + _OUTLINE * thing.radius, size) * (np.minimum(colour * shade, 255) - canvas)
    return distance


def _clutter(x: Plane, y: Plane, draws: Sequence[float]) -> Plane:
    """Return the share of each pixel that short strokes and specks cover."""
    pieces = np.array(draws, dtype=np.float32).reshape(CLUTTER_PIECES, 5, 1, 1)
    start_x, start_y = pieces[:, 0], pieces[:, 1]
    # Every second piece is a speck: a stroke of no length.
    reach = np.where(np.arange(CLUTTER_PIECES) % 2 == 0, 0.3, 0.02).astype(np.float32)[:, None, None]
    step_x, step_y = (pieces[:, 2] - 0.5) * reach, (pieces[:, 3] - 0.5) * reach
    from_x, from_y = x - start_x, y - start_y
    along = np.clip((from_x * step_x + from_y * step_y) / (step_x * step_x + step_y * step_y + 1e-9), 0, 1)
    distance = _length(from_x - along * step_x, from_y - along * step_y) - (0.007 + 0.011 * pieces[:, 4])
    return _coverage(distance.min(0), distance.shape[1])


def draw_scene(
    content: Composition, draws: Sequence[float], size: int
) -> tuple[UInt8[np.ndarray, "size size 3"], Bool[np.ndarray, "size size"]]:
    """Draw a scene.

    Args:
        content: its content.
        draws: `DRAWS` numbers from [0, 1) for places, turns, light and clutter.
        size: height and width in pixels.

    Returns:
        The image, and the mask of the salient object, which nothing covers.
    """
    assert len(draws) == DRAWS, f"a scene takes {DRAWS} draws, got {len(draws)}"
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = centres[None, :], centres[:, None]
    main, second = _place(content, draws)
    slope_x, slope_y = 30 * (draws[8] - 0.5), 30 * (draws[9] - 0.5)
    light = 12 * (draws[10] - 0.5) + slope_x * (x - 0.5) + slope_y * (y - 0.5)
    light = light - (40 + 30 * draws[11]) * _clutter(x, y, draws[LAYOUT_DRAWS:])
    canvas = np.array(BACKGROUNDS[content.background], dtype=np.float32)[:, None, None] + light
    _draw_thing(canvas, second, x, y, 0.97 + 0.06 * draws[12], 0)
    distance = _draw_thing(canvas, main, x, y, 0.97 + 0.06 * draws[13], draws[14])
    image = np.rint(np.clip(canvas, 0, 255)).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0)), distance <= 0


def encode_png(pixels: UInt8[np.ndarray, "height width *channels"]) -> bytes:
    """Return an RGB or single-channel PNG. Its pixels are not compressed: the bytes depend on no library's version."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + pixels[0].size), dtype=np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    raw, limit = rows.tobytes(), 0xFFFF
    stream = b"\x78\x01"
    for start in range(0, len(raw), limit):
        block = raw[start : start + limit]
        stream += struct.pack("<BHH", start + limit >= len(raw), len(block), len(block) ^ limit) + block
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", stream + struct.pack(">I", zlib.adler32(raw))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
