"""What the pictures show, through the handler. Prompts and seeds are ones that the model gets right; see its card for
how often it does on combinations that it never saw."""

import asyncio

import numpy as np
import pytest

import handler
from builder.micro.measure import background_colour, shape_colour
from tests.conftest import from_base64, scene, to_base64


@pytest.fixture(autouse=True)
def _the_tests_service(service, monkeypatch):
    monkeypatch.setattr(handler, "service", lambda: service)


def draw(prompt, *references, **fields):
    job = {"prompt": prompt, "seed": 1, **fields}
    if references:
        job["images"] = [to_base64(picture) for picture in references]
    output = asyncio.run(handler.handler({"id": "a", "input": job}))
    assert "error" not in output, output
    return from_base64(output["images"][0])


@pytest.mark.parametrize("kind", ["circle", "square", "triangle"])
@pytest.mark.parametrize(
    ("colour", "background"), [("red", "blue"), ("green", "white"), ("yellow", "black"), ("white", "red")]
)
def test_a_shape_on_a_background(kind, colour, background):
    picture = draw(f"a {colour} {kind} on a {background} background")
    assert background_colour(picture) == background
    assert shape_colour(picture) == colour


def test_make_the_square_green():
    before = scene("square", "red", "blue")
    picture = draw("make the square green", before)
    assert (background_colour(picture), shape_colour(picture)) == ("blue", "green")


def test_make_the_background_red():
    before = scene("circle", "yellow", "blue", x=0.4)
    picture = draw("make the background red", before)
    assert (background_colour(picture), shape_colour(picture)) == ("red", "yellow")
    # The circle is where it was.
    inside = np.asarray(picture, dtype=float)[54:74, 42:62].mean((0, 1))
    assert inside == pytest.approx([250, 215, 45], abs=40)


def test_the_shape_of_one_on_the_background_of_another():
    picture = draw(
        "the shape of image 1 on the background of image 2",
        scene("circle", "red", "white"),
        scene("star", "white", "blue"),
    )
    assert (background_colour(picture), shape_colour(picture)) == ("blue", "red")
