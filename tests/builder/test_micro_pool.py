"""What the miniature's training is told of its scenes."""

import math
import random
from dataclasses import replace

import torch

from imagegen.builder.micro import pool
from imagegen.builder.micro.edits import edit_one_of_two
from imagegen.builder.micro.scenes import COLOURS, SHAPES, SIZES, Scene, place
from imagegen.builder.micro.vae import near_edges, to_tensor


def test_the_pool_says_which_shape_is_where():
    star, circle = place("star", "red", "left", "small"), place("circle", "red", "right", "medium")
    shown = pool._kinds(Scene("blue", COLOURS["blue"], (star, circle)), 192, 128).reshape(8, 12)
    assert (shown[3:5, 2:4] == 1 + SHAPES.index("star")).all()
    assert (shown[3:5, 8:10] == 1 + SHAPES.index("circle")).all()
    assert set(shown[:, :1].flat) | set(shown[:, 5:7].flat) | set(shown[0]) | set(shown[7]) == {0}


def test_the_pool_tells_outlines_of_shapes_in_any_colour():
    """Cell by cell, where the tokens are: a turned square of the background's own colour, and a white star."""
    square, star = replace(place("square", "red", "left", "small"), turn=20.0), place("star", "white", "right", "big")
    cells = torch.from_numpy(pool._outlines(Scene("red", COLOURS["red"], (square, star)), 192, 128))
    shown = cells.view(8, 12, 8, 8).transpose(1, 2).reshape(64, 96)
    white = tuple(replace(shape, rgb=(255, 255, 255)) for shape in (square, star))
    drawn = to_tensor([Scene("black", (0, 0, 0), white).draw(192, 128)])[0, 0]
    expected = torch.nn.functional.avg_pool2d(drawn[None], 2)[0] > 0
    assert (shown != expected).float().mean() < 0.005
    assert 0.1 < shown.float().mean() < 0.3


def test_no_two_shapes_of_a_reference_touch():
    rng = random.Random(1)
    for _ in range(300):
        left, right = edit_one_of_two(rng).references[0].shapes
        assert left.x + left.radius < 0.5 < right.x - right.radius
        assert all(shape.x - shape.radius > 0 and shape.x + shape.radius < 1 for shape in (left, right))
        assert min(left.radius, right.radius) > 0.1


def test_edges_weigh_more_in_the_vaes_loss():
    picture = to_tensor([Scene("blue", COLOURS["blue"], (place("square", "red", "centre", "medium"),)).draw(64, 64)])
    (edges,) = near_edges(picture)[0]
    assert edges.shape == (64, 64)
    assert edges[32, 32] == edges[2, 2] == 0  # inside and outside
    side = round(32 + 64 * SIZES["medium"] / math.sqrt(2))
    assert edges[32, side - 2 : side + 2].all()
    assert 0.05 < edges.mean() < 0.3
