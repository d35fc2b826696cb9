"""Training samples of every kind, and those whose combinations are held out of the training."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from imagegen.builder.micro.captions import Sample, generate
from imagegen.builder.micro.edits import combine, combine_more, edit, edit_one_of_two
from imagegen.builder.micro.scenes import is_held_out, may_train, visible

KINDS: dict[str, Callable[[random.Random], Sample]] = {
    "generate": generate,
    "edit": edit,
    "edit2": edit_one_of_two,
    "combine": combine,
    "combine3": partial(combine_more, 3),
    "combine4": partial(combine_more, 4),
}


def draw_sample(kind: str, rng: random.Random, held_out: bool = False) -> Sample:
    """A sample of a kind of KINDS: for the training, which never shows a combination that is held out; or, `held_out`,
    one whose answer shows such a combination."""
    while True:
        drawn = KINDS[kind](rng)
        if held_out:
            shown = [(shape.kind, shape.colour, drawn.target.background) for shape in drawn.target.shapes]
            if visible(drawn.target) and any(is_held_out(*combination) for combination in shown):
                return drawn
        elif all(may_train(scene) for scene in (*drawn.references, drawn.target)):
            return drawn
