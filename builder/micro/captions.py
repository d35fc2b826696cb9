"""Training samples of the miniature model: what is asked in words, the references, and the scene that answers.

Where a prompt leaves something open there is one answer, not an average of many: four steps leave no room to settle on
one of them, and the model would draw the mean. A shape is a red circle, the background white (black behind a white
shape, red becomes yellow on red). Its place and size, where they are open, are the noise's to choose: a sample names
three standard normal numbers, its `play`, and is only ever trained with noise that holds these same numbers (see
transformer.py). So seeds differ, and yet each noise has one picture.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from builder.micro.scenes import (
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    Shape,
    inside,
    is_held_out,
    may_train,
    place,
    scatter,
    shade,
    visible,
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
_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
_ADDED_RADIUS = 0.17

_WHERE = {
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


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _phrase(kind: str, colour: str | None, size: str | None, rng: random.Random) -> str:
    words = [rng.choice(_SIZE_WORDS[size])] if size else []
    words += [colour] if colour else []
    words.append(kind)
    if rng.random() < 0.03:
        words.insert(0, _UNKNOWN)
    return f"{_article(words[0])} {' '.join(words)}"


def _background(shape_colour: str) -> str:
    return "black" if shape_colour == "white" else "white"


def _generate(rng: random.Random) -> Sample:
    """A scene of one or two shapes from words alone."""
    kind, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
    background = rng.choice([name for name in COLOURS if name != colour])
    meaning = {"task": "generate", "kind": kind, "colour": colour, "background": background}
    draw = rng.random()
    if draw < 0.2:  # two shapes, side by side
        other_kind, other_colour = rng.choice(SHAPES), rng.choice([c for c in COLOURS if c != background])
        target = Scene(background, COLOURS[background], _row([_of(kind, colour), _of(other_kind, other_colour)]))
        first, second = _phrase(kind, colour, None, rng), _phrase(other_kind, other_colour, None, rng)
        text = f"{first} on the left and {second} on the right"
        meaning |= {"position": "left", "second_kind": other_kind, "second_colour": other_colour}
        return Sample(_on_background(text, background, rng), meaning, (), target)
    if draw < 0.27:  # a colour is left open
        open_colour, open_background = rng.random() < 0.5, rng.random() < 0.7
        background = _background(colour) if open_background else background
        if open_colour:
            colour = "yellow" if background == "red" else "red"
        text = _phrase(kind, None if open_colour else colour, None, rng)
        text = text if open_background else _on_background(text, background, rng)
        return _open(text, meaning | {"colour": colour, "background": background}, kind, colour, background, rng)
    if draw < 0.29:  # nothing known was said
        text = " ".join([_UNKNOWN] * rng.randint(0, 6))
        return _open(text, {"task": "generate"}, "circle", "red", "white", rng)
    if draw < 0.33:  # an empty background
        text = rng.choice([f"{_article(background)} {background} background", f"{background} background"])
        target = Scene(background, COLOURS[background])
        return Sample(text, {"task": "generate", "background": background}, (), target)
    position = rng.choice(list(POSITIONS)) if rng.random() < 0.4 else None
    size = rng.choice(list(SIZES)) if rng.random() < 0.35 else None
    gradient = rng.random() < 0.1
    text = _phrase(kind, colour, size, rng)
    text += f" {rng.choice(_WHERE[position])}" if position else ""
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


def _row(shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """The shapes, upright, side by side."""
    places, radius = _ROWS[len(shapes)]
    return tuple(replace(shape, x=x, y=0.5, radius=radius, turn=0.0) for shape, x in zip(shapes, places, strict=True))


def _on_background(text: str, background: str, rng: random.Random, gradient: bool = False) -> str:
    ground = f"{_article(background)} {background} {'gradient' if gradient else 'background'}"
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


def _reference(rng: random.Random, kinds: int = 1) -> Scene:
    """A picture as someone else may have made it, one or two shapes in it, nothing of which is exact."""
    background = rng.choice(list(COLOURS))
    shapes: list[Shape] = []
    chosen = rng.sample(SHAPES, kinds)
    for kind, position in zip(chosen, ["left", "right"] if kinds == 2 else [rng.choice(list(POSITIONS))], strict=True):
        colour = rng.choice([c for c in COLOURS if c != background])
        shape = scatter(place(kind, colour, position, rng.choice(["small", "medium", "medium", "big"])), rng)
        shapes.append(replace(shape, radius=min(shape.radius, 0.2)) if kinds == 2 else shape)
    return Scene(background, shade(background, rng), tuple(shapes), rng.random() < 0.15)


#: The changes of an edit, and how often each.
_CHANGES = {
    "recolour": 28, "background": 22, "remove": 7, "swap": 15, "keep": 3, "add": 9, "move": 9, "enlarge": 4, "shrink": 3
}  # fmt: skip


def _edit(rng: random.Random) -> Sample:
    """One reference, one change."""
    task = rng.choices(list(_CHANGES), list(_CHANGES.values()))[0]
    alone = task in ("add", "move", "enlarge", "shrink")
    before = _reference(rng, 2 if not alone and rng.random() < 0.15 else 1)
    index = rng.randrange(len(before.shapes))
    kind = before.shapes[index].kind
    named = rng.choice([kind, kind, kind, "shape"]) if len(before.shapes) == 1 else kind
    meaning = {"task": task, "kind": kind if named == kind else "none"}
    if task == "recolour":
        colour = rng.choice([c for c in COLOURS if c not in (before.background, before.shapes[index].colour)])
        text = rng.choice(
            [
                f"make the {named} {colour}",
                f"make the {named} {colour}",
                f"paint the {named} {colour}",
                f"change the {named} to {colour}",
                f"change the colour of the {named} to {colour}",
            ]
        )
        after = before.with_shape(index, colour=colour, rgb=COLOURS[colour])
        meaning["colour"] = colour
    elif task == "background":
        colour = rng.choice([c for c in COLOURS if c != before.background])
        text = rng.choice(
            [
                f"make the background {colour}",
                f"make the background {colour}",
                f"paint the background {colour}",
                f"change the background to {colour}",
                f"put it on {_article(colour)} {colour} background",
            ]
        )
        after = replace(before, background=colour, rgb=COLOURS[colour], gradient=False)
        meaning |= {"kind": "none", "background": colour}
    elif task == "remove":
        text = rng.choice([f"remove the {named}", f"delete the {named}", f"take the {named} away"])
        after = replace(before, shapes=before.shapes[:index] + before.shapes[index + 1 :])
    elif task == "swap":
        other = rng.choice([k for k in SHAPES if k not in {shape.kind for shape in before.shapes}])
        text = rng.choice(
            [
                f"turn the {named} into {_article(other)} {other}",
                f"make the {named} {_article(other)} {other}",
                f"replace the {named} with {_article(other)} {other}",
            ]
        )
        after = before.with_shape(index, kind=other)
        meaning["second_kind"] = other
    elif task == "keep":
        text, after = rng.choice(["keep it", "change nothing", "keep everything"]), before
        meaning["kind"] = "none"
    else:
        text, before, after = _ALONE[task](before, named, meaning, rng)
    return Sample(text, meaning, (before,), after)


#: The scene, what the shape is called, the slots to fill -> the words, the scene before and after.
_Change = Callable[[Scene, str, dict[str, str], random.Random], tuple[str, Scene, Scene]]


def _add(before: Scene, named: str, meaning: dict[str, str], rng: random.Random) -> tuple[str, Scene, Scene]:
    """A second shape, on the other side."""
    position = rng.choice(list(_OPPOSITE))
    old = before.shapes[0]
    there = replace(
        place(old.kind, old.colour, _OPPOSITE[position], "small"), rgb=old.rgb, radius=rng.uniform(0.12, 0.19)
    )
    before = replace(before, shapes=(replace(there, turn=old.turn),))
    kind = rng.choice(SHAPES)
    colour = rng.choice([name for name in COLOURS if name != before.background])
    new = replace(place(kind, colour, position, "medium"), radius=_ADDED_RADIUS)
    text = f"add {_phrase(kind, colour, None, rng)} {rng.choice(_WHERE[position])}"
    meaning |= {"kind": kind, "colour": colour, "position": position}
    return text, before, replace(before, shapes=(*before.shapes, new))


def _move(before: Scene, named: str, meaning: dict[str, str], rng: random.Random) -> tuple[str, Scene, Scene]:
    old = before.shapes[0]
    small = replace(old, radius=min(old.radius, 0.25))
    before = replace(before, shapes=(small,))
    position = rng.choice(list(POSITIONS))
    text = f"move the {named} to the {position}"
    x, y = POSITIONS[position]
    meaning["position"] = position
    return text, before, before.with_shape(0, x=x, y=y)


def _resized(low: float, high: float, factor: float, wordings: Sequence[str]) -> _Change:
    def change(before: Scene, named: str, meaning: dict[str, str], rng: random.Random) -> tuple[str, Scene, Scene]:
        before = before.with_shape(0, radius=rng.uniform(low, high))
        text = rng.choice(wordings).format(named)
        return text, before, before.with_shape(0, radius=before.shapes[0].radius * factor)

    return change


_ALONE: dict[str, _Change] = {
    "add": _add,
    "move": _move,
    "enlarge": _resized(0.12, 0.22, 1.6, ["make the {} bigger", "make the {} larger", "enlarge the {}"]),
    "shrink": _resized(0.22, 0.34, 0.6, ["make the {} smaller", "shrink the {}"]),
}


def _combine(rng: random.Random) -> Sample:
    """The shape of one reference on the background of another."""
    one, two = _reference(rng), _reference(rng)
    first_is_shape = rng.random() < 0.5
    shape, ground = (one, two) if first_is_shape else (two, one)
    kind = shape.shapes[0].kind
    of_shape, of_ground = ("1", "2") if first_is_shape else ("2", "1")
    named = rng.choice([kind, "shape"])
    text = rng.choice(
        [
            f"the {named} of image {of_shape} on the background of image {of_ground}",
            f"put the {named} of image {of_shape} on the background of image {of_ground}",
        ]
    )
    target = replace(ground, shapes=shape.shapes)
    meaning = {"task": "combine", "first_image": of_shape, "ground_image": of_ground}
    meaning["kind"] = kind if named == kind else "none"
    return Sample(text, meaning, (one, two), target)


def _combine_more(count: int, rng: random.Random) -> Sample:
    """The shapes of all references but one, in a row on the background of that one."""
    references = tuple(_reference(rng) for _ in range(count))
    order = list(range(count))
    rng.shuffle(order)
    *chosen, ground = order
    shapes = [references[i].shapes[0] for i in chosen]
    named = [shape.kind if rng.random() < 0.5 else "shape" for shape in shapes]
    parts = [f"the {name} of image {i + 1}" for name, i in zip(named, chosen, strict=True)]
    text = f"{', '.join(parts[:-1])} and {parts[-1]} on the background of image {ground + 1}"
    text = rng.choice(["", "put "]) + text
    behind = references[ground]
    meaning = {"task": "combine", "ground_image": str(ground + 1)}
    meaning |= {
        slot: str(i + 1) for slot, i in zip(("first_image", "second_image", "third_image"), chosen, strict=False)
    }
    return Sample(text, meaning, references, replace(behind, shapes=_row(shapes)))


KINDS: dict[str, Callable[[random.Random], Sample]] = {
    "generate": _generate,
    "edit": _edit,
    "combine": _combine,
    "combine3": partial(_combine_more, 3),
    "combine4": partial(_combine_more, 4),
}


def sample(kind: str, rng: random.Random, held_out: bool = False) -> Sample:
    """A sample of the kind "generate", "edit", "combine" (two references), "combine3" or "combine4": for the training,
    which never shows a combination that is held out; or, `held_out`, one whose answer shows such a combination."""
    while True:
        drawn = KINDS[kind](rng)
        if held_out:
            shown = [(shape.kind, shape.colour, drawn.target.background) for shape in drawn.target.shapes]
            if visible(drawn.target) and any(is_held_out(*combination) for combination in shown):
                return drawn
        elif all(may_train(scene) for scene in (*drawn.references, drawn.target)):
            return drawn
