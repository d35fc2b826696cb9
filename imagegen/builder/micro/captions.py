"""Images from words alone: what is asked, and the scene that answers; and the words that edits.py uses as well.

Where a prompt leaves something open there is one answer, not an average of many: four steps leave no room to settle on
one of them, and the model would draw the mean. A shape is a red circle, the background white (black behind a white
shape, red becomes yellow on red). Its place and size, where they are open, are the noise's to choose: a sample names
three standard normal numbers, its `play`, and is only ever trained with noise that holds these same numbers (see
transformer.py). So seeds differ, and yet each noise has one image.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from imagegen.builder.micro.scenes import (
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    Shape,
    inside,
    place,
)

_IMAGES = ("1", "2", "3", "4")
#: The slots that the text encoder learns to name (see text_encoder.py); every caption fills each or leaves "none".
SLOTS: dict[str, tuple[str, ...]] = {
    "task": (
        *("generate", "recolour", "background", "remove", "swap", "keep", "combine"),
        *("add", "move", "enlarge", "shrink"),
    ),
    "kind": ("none", *SHAPES),
    "colour": ("none", *COLOURS),
    "position": ("none", *POSITIONS),
    "size": ("none", *SIZES),
    "second_kind": ("none", *SHAPES),
    "second_colour": ("none", *COLOURS),
    "background": ("none", *COLOURS),
    "gradient": ("none", "gradient"),
    "first_image": ("none", *_IMAGES),
    "second_image": ("none", *_IMAGES),
    "third_image": ("none", *_IMAGES),
    "ground_image": ("none", *_IMAGES),
}
#: How far the noise moves a shape whose place is open, and how much larger or smaller it makes one whose size is: for
#: each standard deviation, up to two.
_MOVES, _GROWS = 0.07, 0.16
#: Several shapes stand in a row: their centres and radius, by their number.
_ROWS = {2: ((0.28, 0.72), 0.18), 3: ((0.2, 0.5, 0.8), 0.13)}

WHERE = {
    "centre": ["in the centre", "in the middle"],
    "left": ["on the left", "at the left"],
    "right": ["on the right", "at the right"],
    "top": ["at the top"],
    "bottom": ["at the bottom"],
}
_SIZE_WORDS = {"small": ["small", "little"], "medium": ["medium"], "big": ["big", "large"]}
#: Words that are understood as nothing: the tokenizer maps any word it does not know to <unk>.
_UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Sample:
    """One training sample. `meaning` fills SLOTS; `play` is what the noise chooses (across, down, size), None where the
    words say it."""

    caption: str
    meaning: dict[str, str]
    references: tuple[Scene, ...]
    target: Scene
    play: tuple[float | None, float | None, float | None] = (None, None, None)


def article(word: str) -> str:
    """The indefinite article of a word."""
    return "an" if word[0] in "aeiou" else "a"


def phrase(kind: str, colour: str | None, size: str | None, rng: random.Random) -> str:
    """A shape in words: "a small red circle"; now and then with a word that the tokenizer does not know."""
    words = [rng.choice(_SIZE_WORDS[size])] if size else []
    words += [colour] if colour else []
    words.append(kind)
    if rng.random() < 0.03:
        words.insert(0, _UNKNOWN)
    return f"{article(words[0])} {' '.join(words)}"


def _background(shape_colour: str) -> str:
    return "black" if shape_colour == "white" else "white"


def generate(rng: random.Random) -> Sample:
    """A scene of one or two shapes from words alone."""
    kind, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
    background = rng.choice([name for name in COLOURS if name != colour])
    meaning = {"task": "generate", "kind": kind, "colour": colour, "background": background}
    draw = rng.random()
    if draw < 0.2:  # two shapes, side by side
        other_kind, other_colour = rng.choice(SHAPES), rng.choice([c for c in COLOURS if c != background])
        target = Scene(background, COLOURS[background], row([_of(kind, colour), _of(other_kind, other_colour)]))
        first, second = phrase(kind, colour, None, rng), phrase(other_kind, other_colour, None, rng)
        text = f"{first} on the left and {second} on the right"
        meaning |= {"position": "left", "second_kind": other_kind, "second_colour": other_colour}
        return Sample(_on_background(text, background, rng), meaning, (), target)
    if draw < 0.27:  # a colour is left open
        open_background = rng.random() < 0.7
        open_colour = rng.random() < 0.5
        if open_colour:  # white is behind it where both are open: what was drawn above is not said
            colour = "yellow" if background == "red" and not open_background else "red"
        background = _background(colour) if open_background else background
        text = phrase(kind, None if open_colour else colour, None, rng)
        text = text if open_background else _on_background(text, background, rng)
        return _open(text, meaning | {"colour": colour, "background": background}, kind, colour, background, rng)
    if draw < 0.29:  # nothing known was said
        text = " ".join([_UNKNOWN] * rng.randint(0, 6))
        return _open(text, {"task": "generate"}, "circle", "red", "white", rng)
    if draw < 0.33:  # an empty background
        text = rng.choice([f"{article(background)} {background} background", f"{background} background"])
        target = Scene(background, COLOURS[background])
        return Sample(text, {"task": "generate", "background": background}, (), target)
    position = rng.choice(list(POSITIONS)) if rng.random() < 0.4 else None
    size = rng.choice(list(SIZES)) if rng.random() < 0.35 else None
    gradient = rng.random() < 0.1
    text = phrase(kind, colour, size, rng)
    text += f" {rng.choice(WHERE[position])}" if position else ""
    meaning |= {"position": position or "none", "size": size or "none", "gradient": "gradient" if gradient else "none"}
    text = _on_background(text, background, rng, gradient)
    return _open(text, meaning, kind, colour, background, rng, position, size, gradient)


def _open(
    text: str,
    meaning: dict[str, str],
    kind: str,
    colour: str,
    background: str,
    rng: random.Random,
    position: str | None = None,
    size: str | None = None,
    gradient: bool = False,
) -> Sample:
    """One shape whose place and size, where they are None, are the noise's to choose."""
    across, down, larger = (rng.gauss() for _ in range(3))
    shape = place(kind, colour, position or "centre", size or "medium")
    if size is None:
        shape = replace(shape, radius=shape.radius * (1 + _GROWS * _bounded(larger)))
    if position is None:
        moves = _MOVES / 2 if size == "big" else _MOVES  # it stays inside
        shape = replace(shape, x=shape.x + moves * _bounded(across), y=shape.y + moves * _bounded(down))
    shape = inside(shape)
    play = (
        across if position is None else None,
        down if position is None else None,
        larger if size is None else None,
    )
    return Sample(text, meaning, (), Scene(background, COLOURS[background], (shape,), gradient), play)


def _bounded(deviations: float) -> float:
    return max(-2.0, min(2.0, deviations))


def _of(kind: str, colour: str) -> Shape:
    return Shape(kind, colour, COLOURS[colour], 0.5, 0.5, 0.2)


def row(shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """The shapes, upright, side by side."""
    places, radius = _ROWS[len(shapes)]
    return tuple(replace(shape, x=x, y=0.5, radius=radius, turn=0.0) for shape, x in zip(shapes, places, strict=True))


def _on_background(text: str, background: str, rng: random.Random, gradient: bool = False) -> str:
    ground = f"{article(background)} {background} {'gradient' if gradient else 'background'}"
    if gradient:
        return f"{text} on {ground}{rng.choice(['', ' background'])}"
    return rng.choice(
        [
            f"{text} on {ground}",
            f"{text} on {ground}",
            f"{text} on {background}",
            f"{text}, {background} background",
            f"{ground} with {text}",
            f"draw {text} on {ground}",
        ]
    )
