"""Training samples of the miniature model: what is asked in words, the references, and the scene that answers.

Where a prompt leaves something open there is one answer, not an average of many: a shape is a medium red circle in the
centre, the background white (black behind a white shape, red becomes yellow on red), each with a little play.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from builder.micro.scenes import COLOURS, POSITIONS, SHAPES, Scene, Shape, may_train, place, shade

#: The slots that the text encoder learns to name (see text_encoder.py); every caption fills each or leaves "none".
SLOTS: dict[str, tuple[str, ...]] = {
    "task": ("generate", "recolour", "background", "remove", "swap", "keep", "combine"),
    "kind": ("none", *SHAPES),
    "colour": ("none", *COLOURS),
    "position": ("none", *POSITIONS),
    "size": ("none", "small", "medium", "big"),
    "second_kind": ("none", *SHAPES),
    "second_colour": ("none", *COLOURS),
    "background": ("none", *COLOURS),
}

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
    """One training sample. `meaning` fills SLOTS."""

    caption: str
    meaning: dict[str, str]
    references: tuple[Scene, ...]
    target: Scene


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
        left = place(kind, colour, "left", "medium", rng)
        right = place(other_kind, other_colour, "right", "medium", rng)
        target = Scene(background, shade(background, rng), (replace(left, radius=0.18), replace(right, radius=0.18)))
        first, second = _phrase(kind, colour, None, rng), _phrase(other_kind, other_colour, None, rng)
        text = f"{first} on the left and {second} on the right"
        meaning |= {"position": "left", "second_kind": other_kind, "second_colour": other_colour}
        return Sample(_on_background(text, background, rng), meaning, (), target)
    if draw < 0.27:  # something is left open
        open_colour, open_background = rng.random() < 0.5, rng.random() < 0.7
        background = _background(colour) if open_background else background
        if open_colour:
            colour = "yellow" if background == "red" else "red"
        target = Scene(background, shade(background, rng), (place(kind, colour, "centre", "medium", rng),))
        text = _phrase(kind, None if open_colour else colour, None, rng)
        text = text if open_background else _on_background(text, background, rng)
        return Sample(text, meaning | {"colour": colour, "background": background}, (), target)
    if draw < 0.29:  # nothing known was said
        target = Scene("white", shade("white", rng), (place("circle", "red", "centre", "medium", rng),))
        text = " ".join([_UNKNOWN] * rng.randint(0, 6))
        return Sample(text, {"task": "generate"}, (), target)
    if draw < 0.33:  # an empty background
        text = rng.choice([f"{_article(background)} {background} background", f"{background} background"])
        target = Scene(background, shade(background, rng))
        return Sample(text, {"task": "generate", "background": background}, (), target)
    position = rng.choice(list(POSITIONS)) if rng.random() < 0.4 else None
    size = rng.choice(["small", "medium", "big"]) if rng.random() < 0.3 else None
    shape = place(kind, colour, position or "centre", size or "medium", rng)
    text = _phrase(kind, colour, size, rng)
    text += f" {rng.choice(_WHERE[position])}" if position else ""
    meaning |= {"position": position or "centre", "size": size or "medium"}
    return Sample(
        _on_background(text, background, rng), meaning, (), Scene(background, shade(background, rng), (shape,))
    )


def _on_background(text: str, background: str, rng: random.Random) -> str:
    ground = f"{_article(background)} {background} background"
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
    background = rng.choice(list(COLOURS))
    shapes: list[Shape] = []
    chosen = rng.sample(SHAPES, kinds)
    for kind, position in zip(chosen, ["left", "right"] if kinds == 2 else [rng.choice(list(POSITIONS))], strict=True):
        colour = rng.choice([c for c in COLOURS if c != background])
        shape = place(kind, colour, position, rng.choice(["small", "medium", "medium", "big"]), rng, loose=True)
        shapes.append(replace(shape, radius=min(shape.radius, 0.2)) if kinds == 2 else shape)
    return Scene(background, shade(background, rng), tuple(shapes))


def _edit(rng: random.Random) -> Sample:
    """One reference, one change."""
    before = _reference(rng, 2 if rng.random() < 0.15 else 1)
    index = rng.randrange(len(before.shapes))
    kind = before.shapes[index].kind
    named = rng.choice([kind, kind, kind, "shape"]) if len(before.shapes) == 1 else kind
    colour = rng.choice([c for c in COLOURS if c not in (before.background, before.shapes[index].colour)])
    task = rng.choices(["recolour", "background", "remove", "swap", "keep"], [40, 34, 8, 13, 5])[0]
    meaning = {"task": task, "kind": kind if named == kind else "none"}
    if task == "recolour":
        text = rng.choice(
            [
                f"make the {named} {colour}",
                f"make the {named} {colour}",
                f"paint the {named} {colour}",
                f"change the {named} to {colour}",
                f"change the colour of the {named} to {colour}",
            ]
        )
        after = before.with_shape(index, colour=colour, rgb=shade(colour, rng))
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
        after = replace(before, background=colour, rgb=shade(colour, rng))
        meaning |= {"kind": "none", "background": colour}
    elif task == "remove":
        text = rng.choice([f"remove the {named}", f"delete the {named}", f"take the {named} away"])
        after = replace(before, shapes=before.shapes[:index] + before.shapes[index + 1 :])
    elif task == "swap":
        other = rng.choice([k for k in SHAPES if k not in {shape.kind for shape in before.shapes}])
        text = rng.choice(
            [f"turn the {named} into {_article(other)} {other}", f"make the {named} {_article(other)} {other}"]
        )
        after = before.with_shape(index, kind=other)
        meaning["second_kind"] = other
    else:
        text, after = rng.choice(["keep it", "change nothing", "keep everything"]), before
        meaning["kind"] = "none"
    return Sample(text, meaning, (before,), after)


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
    target = Scene(ground.background, ground.rgb, shape.shapes)
    meaning = {
        "task": "combine",
        "kind": kind if named == kind else "none",
        "position": "left" if first_is_shape else "right",
    }
    return Sample(text, meaning, (one, two), target)


_KINDS = {"generate": _generate, "edit": _edit, "combine": _combine}


def sample(kind: str, rng: random.Random) -> Sample:
    """A training sample of the kind "generate", "edit" or "combine"; never shows a combination that is held out."""
    while True:
        drawn = _KINDS[kind](rng)
        if all(may_train(scene) for scene in (*drawn.references, drawn.target)):
            return drawn
