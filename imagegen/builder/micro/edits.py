"""Edits of one image and combinations of several: what is asked, the references, and the scene that answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from imagegen.builder.micro.captions import WHERE, Sample, article, phrase, row
from imagegen.builder.micro.scenes import COLOURS, POSITIONS, SHAPES, Scene, Shape, inside, place, scatter, shade

_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
_ADDED_RADIUS = 0.17


def _reference(rng: random.Random, kinds: int = 1) -> Scene:
    """An image as someone else may have made it, one or two shapes in it, nothing of which is exact."""
    background = rng.choice(list(COLOURS))
    shapes: list[Shape] = []
    chosen = rng.sample(SHAPES, kinds)
    for kind, position in zip(chosen, ["left", "right"] if kinds == 2 else [rng.choice(list(POSITIONS))], strict=True):
        colour = rng.choice([c for c in COLOURS if c != background])
        shape = scatter(place(kind, colour, position, rng.choice(["small", "medium", "medium", "big"])), rng)
        shapes.append(_in_half(shape, position) if kinds == 2 else inside(shape))
    return Scene(background, shade(background, rng), tuple(shapes), rng.random() < 0.15)


def _in_half(shape: Shape, side: str) -> Shape:
    """The shape, made smaller and moved so that it stays on its side: of two that touch nobody could tell which is
    which."""
    shape = inside(replace(shape, radius=min(shape.radius, 0.2)))
    if side == "left":
        return replace(shape, x=min(shape.x, 0.48 - shape.radius))
    return replace(shape, x=max(shape.x, 0.52 + shape.radius))


#: The changes of an edit, and how often each.
_CHANGES = {
    "recolour": 10, "background": 20, "remove": 8, "swap": 18, "keep": 2,
    "add": 4, "move": 18, "enlarge": 10, "shrink": 10
}  # fmt: skip
#: How often an edit's reference shows two shapes.
_TWO, _TWO_TO_REMOVE = 0.2, 0.6


def edit(rng: random.Random) -> Sample:
    """One reference, one change."""
    task = rng.choices(list(_CHANGES), list(_CHANGES.values()))[0]
    two = 0.0 if task in _ALONE else _TWO_TO_REMOVE if task == "remove" else _TWO
    return _edit(task, _reference(rng, 2 if rng.random() < two else 1), rng)


def edit_one_of_two(rng: random.Random) -> Sample:
    """One reference with two shapes, of which the words name the one to change."""
    return _edit(rng.choice(["recolour", "remove", "remove", "swap"]), _reference(rng, 2), rng)


def _edit(task: str, before: Scene, rng: random.Random) -> Sample:
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
                f"put it on {article(colour)} {colour} background",
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
                f"turn the {named} into {article(other)} {other}",
                f"make the {named} {article(other)} {other}",
                f"replace the {named} with {article(other)} {other}",
            ]
        )
        after = before.with_shape(index, kind=other, turn=0.0)  # how far a circle is turned, nobody sees
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
    text = f"add {phrase(kind, colour, None, rng)} {rng.choice(WHERE[position])}"
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
    return text, before, replace(before, shapes=(inside(replace(small, x=x, y=y)),))


def _resized(low: float, high: float, factor: float, wordings: Sequence[str]) -> _Change:
    def change(before: Scene, named: str, meaning: dict[str, str], rng: random.Random) -> tuple[str, Scene, Scene]:
        radius = rng.uniform(low, high)
        whole = inside(replace(before.shapes[0], radius=radius * max(1.0, factor)))  # before and after
        before = before.with_shape(0, x=whole.x, y=whole.y, radius=radius)
        text = rng.choice(wordings).format(named)
        return text, before, before.with_shape(0, radius=radius * factor)

    return change


_ALONE: dict[str, _Change] = {
    "add": _add,
    "move": _move,
    "enlarge": _resized(0.12, 0.22, 1.6, ["make the {} bigger", "make the {} larger", "enlarge the {}"]),
    "shrink": _resized(0.22, 0.34, 0.6, ["make the {} smaller", "shrink the {}"]),
}


def combine(rng: random.Random) -> Sample:
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


def combine_more(count: int, rng: random.Random) -> Sample:
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
    return Sample(text, meaning, references, replace(behind, shapes=row(shapes)))
