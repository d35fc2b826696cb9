"""What the miniature model knows: scenes of coloured shapes, drawn with Pillow.

A scene is a background, plain or with a gradient, with no to three shapes on it. Everything random comes from the
generator that the caller passes, so that a seed names an image. This module knows nothing of captions or of training.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (220, 38, 38),
    "green": (34, 160, 70),
    "blue": (40, 80, 220),
    "yellow": (250, 215, 45),
    "white": (245, 245, 250),
    "black": (16, 16, 20),
    "orange": (250, 135, 30),
    "purple": (145, 60, 185),
}
SHAPES = ("circle", "square", "triangle", "star")
#: Centre of a shape, as fractions of the width and the height.
POSITIONS: dict[str, tuple[float, float]] = {
    "centre": (0.5, 0.5),
    "left": (0.26, 0.5),
    "right": (0.74, 0.5),
    "top": (0.5, 0.26),
    "bottom": (0.5, 0.74),
}
#: Radius of the circle around a shape, as a fraction of the shorter side.
SIZES: dict[str, float] = {"small": 0.14, "medium": 0.23, "big": 0.34}

_SUPERSAMPLING = 4
_SHADE = 12  # a named colour varies by this much a channel (of 255)
#: A gradient goes from the colour mixed with white, at the top, to the colour mixed with black.
_LIGHTER, _DARKER = 0.12, 0.1
#: Between a shape and the image's edge, as a fraction.
_MARGIN = 0.02


@dataclass(frozen=True)
class Shape:
    """One shape: its kind, the name of its colour and the exact shade, where its centre is (fractions of width and
    height), its radius (fraction of the shorter side) and its turn in degrees."""

    kind: str
    colour: str
    rgb: RGB
    x: float
    y: float
    radius: float
    turn: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A background (its name, exact shade, and whether it is a gradient) and the shapes on it, drawn in order."""

    background: str
    rgb: RGB
    shapes: tuple[Shape, ...] = ()
    gradient: bool = False

    def draw(self, width: int, height: int, supersampling: int = _SUPERSAMPLING) -> Image.Image:
        """The scene as an RGB image of `width` x `height` pixels; its edges are smooth, or hard without
        supersampling (1)."""
        w, h = width * supersampling, height * supersampling
        canvas = Image.new("RGB", (w, h), self.rgb)
        if self.gradient:
            light, dark = _mix(self.rgb, 255, _LIGHTER), _mix(self.rgb, 0, _DARKER)
            ramp = Image.linear_gradient("L").resize((w, h))
            canvas = Image.composite(Image.new("RGB", (w, h), dark), Image.new("RGB", (w, h), light), ramp)
        pen = ImageDraw.Draw(canvas)
        for shape in self.shapes:
            cx, cy, r = shape.x * w, shape.y * h, shape.radius * min(w, h)
            if shape.kind == "circle":
                pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=shape.rgb)
            else:
                pen.polygon(_corners(shape.kind, cx, cy, r, shape.turn), fill=shape.rgb)
        return canvas.reduce(supersampling)

    def with_shape(self, index: int, **changes: Any) -> Scene:
        """A copy in which shape `index` has the fields of `changes`."""
        shapes = list(self.shapes)
        shapes[index] = replace(shapes[index], **changes)
        return replace(self, shapes=tuple(shapes))


def shade(colour: str, rng: random.Random) -> RGB:
    """A shade of the named colour."""
    r, g, b = (min(255, max(0, c + rng.randint(-_SHADE, _SHADE))) for c in COLOURS[colour])
    return r, g, b


def is_held_out(kind: str, colour: str, background: str) -> bool:
    """Whether this combination is kept for measuring: every seventh, spread evenly; no training image shows it.

    Red on white is none of them: it is what is drawn where nothing is said, and has to be taught.
    """
    names = list(COLOURS)
    if (colour, background) == ("red", "white"):
        return False
    return (3 * SHAPES.index(kind) + 2 * names.index(colour) + names.index(background)) % 7 == 0


def held_out_combinations() -> list[tuple[str, str, str]]:
    """All (kind, colour, background) that the training never shows."""
    return [
        (kind, colour, background)
        for kind in SHAPES
        for colour in COLOURS
        for background in COLOURS
        if colour != background and is_held_out(kind, colour, background)
    ]


def visible(scene: Scene) -> bool:
    """Whether no shape has the background's colour."""
    return all(shape.colour != scene.background for shape in scene.shapes)


def may_train(scene: Scene) -> bool:
    """Whether a training image may show this scene: visible shapes, and no combination that is held out."""
    return visible(scene) and not any(is_held_out(shape.kind, shape.colour, scene.background) for shape in scene.shapes)


def place(kind: str, colour: str, position: str, size: str) -> Shape:
    """A shape exactly at a named position, of a named size and in the colour's own shade; whole in the image."""
    (x, y), radius = POSITIONS[position], SIZES[size]
    return inside(Shape(kind, colour, COLOURS[colour], x, y, radius))


def inside(shape: Shape) -> Shape:
    """The shape, moved so far that nothing of it is cut off."""
    room = shape.radius + _MARGIN
    x, y = (min(max(at, room), 1 - room) for at in (shape.x, shape.y))
    return replace(shape, x=x, y=y)


def scatter(shape: Shape, rng: random.Random) -> Shape:
    """The shape somewhere near, somewhat larger or smaller, a little turned, in a shade of its colour: as references
    from other hands are."""
    return replace(
        shape,
        rgb=shade(shape.colour, rng),
        x=shape.x + rng.uniform(-0.1, 0.1),
        y=shape.y + rng.uniform(-0.1, 0.1),
        radius=shape.radius * (1 + rng.uniform(-0.25, 0.25)),
        turn=rng.uniform(-20, 20),
    )


def _mix(colour: RGB, other: int, share: float) -> RGB:
    r, g, b = (round(c + (other - c) * share) for c in colour)
    return r, g, b


def _corners(kind: str, cx: float, cy: float, r: float, turn: float) -> list[tuple[float, float]]:
    """The polygon of a shape inscribed in the circle (cx, cy, r), y growing downwards."""
    if kind == "square":
        points = [(1.0, 45.0 + 90 * i) for i in range(4)]
    elif kind == "triangle":
        points = [(1.0, -90.0 + 120 * i) for i in range(3)]
    elif kind == "star":
        # 0.382 is the inner radius of a regular pentagram; a little more, so that eight pixels can still show it.
        points = [(1.0 if i % 2 == 0 else 0.45, -90.0 + 36 * i) for i in range(10)]
    else:
        raise ValueError(f"unknown shape {kind!r}; known are {', '.join(SHAPES)}")
    radians = [(rho, math.radians(angle + turn)) for rho, angle in points]
    return [(cx + r * rho * math.cos(a), cy + r * rho * math.sin(a)) for rho, a in radians]
