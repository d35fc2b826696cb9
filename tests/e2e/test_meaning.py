"""What the images show, through both endpoints.

Prompts and seeds are ones that the model gets right, with room to spare; the model card says how often it does on
combinations that it never saw.
"""

import asyncio

import pytest

from imagegen.builder.micro.measure import background_colour, find_shapes, shows, untouched_difference
from imagegen.builder.micro.scenes import COLOURS, SHAPES, SIZES, Scene, Shape, place
from imagegen.runpod import handler
from tests.support.images import from_base64, to_base64


@pytest.fixture(params=["handler", pytest.param("HTTP", marks=pytest.mark.slow)])
def draw(request, service, monkeypatch):
    """An image of a prompt and references, with its warnings, through RunPod's handler and through the server."""

    def through_the_handler(job):
        monkeypatch.setattr(handler, "service", lambda: service)
        return asyncio.run(handler.handler({"id": "a", "input": job}))

    def through_http(job):
        client = request.getfixturevalue("client")
        return client.post("/edit" if "images" in job else "/generate", json=job).json()

    def drawn(prompt, *references, **fields):
        job = {"prompt": prompt, "seed": 1, **fields}
        if references:
            job["images"] = [to_base64(scene.draw(128, 128)) for scene in references]
        answer = (through_the_handler if request.param == "handler" else through_http)(job)
        assert "images" in answer, answer
        return from_base64(answer["images"][0]), answer["warnings"]

    return drawn


def scene(background, *shapes):
    return Scene(background, COLOURS[background], shapes)


def shape(kind, colour, x=0.5, y=0.5, radius=0.23):
    return Shape(kind, colour, COLOURS[colour], x, y, radius)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    ("colour", "background"), [("red", "blue"), ("green", "white"), ("yellow", "black"), ("white", "red")]
)
def test_a_shape_on_a_background(draw, kind, colour, background):
    picture, warnings = draw(f"a {colour} {kind} on a {background} background")
    assert background_colour(picture) == background
    assert [(found.kind, found.colour) for found in find_shapes(picture)] == [(kind, colour)]
    assert warnings == []


@pytest.mark.parametrize("kind", SHAPES)
def test_a_shape_of_which_no_more_is_said(draw, kind):
    picture, _ = draw(f"a {kind}")
    assert background_colour(picture) == "white"
    assert [(found.kind, found.colour) for found in find_shapes(picture)] == [(kind, "red")]


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a small yellow star at the top on a black background", place("star", "yellow", "top", "small")),
        ("a medium green square at the bottom on a black background", place("square", "green", "bottom", "medium")),
        ("a small blue triangle on the left on a black background", place("triangle", "blue", "left", "small")),
        ("a big red circle in the middle on a black background", place("circle", "red", "centre", "big")),
    ],
)
def test_where_and_how_large(draw, prompt, wanted):
    assert shows(draw(prompt)[0], scene("black", wanted))


@pytest.mark.parametrize(("width", "height"), [(96, 96), (192, 128), (128, 192), (256, 256)])
def test_other_sizes(draw, width, height):
    picture, _ = draw("a big yellow circle in the centre on a black background", width=width, height=height)
    assert picture.size == (width, height)
    assert shows(picture, scene("black", place("circle", "yellow", "centre", "big")))


def test_two_shapes(draw):
    picture, _ = draw("a red circle on the left and a green square on the right on a white background")
    assert [(f.kind, f.colour) for f in sorted(find_shapes(picture), key=lambda f: f.x)] == [
        ("circle", "red"),
        ("square", "green"),
    ]


CIRCLE, SUN, SQUARE = shape("circle", "yellow", x=0.4), shape("circle", "yellow"), shape("square", "red")
ALONE = shape("circle", "red", x=0.7, radius=0.16)
LEFT, RIGHT = shape("square", "yellow", x=0.26, radius=0.17), shape("circle", "red", x=0.72, radius=0.17)
STAR = shape("star", "red", x=0.72, radius=0.17)
FAINT = shape("square", "blue", x=0.55, radius=0.16)


@pytest.mark.parametrize(
    ("instruction", "before", "after"),
    [
        ("make the square green", scene("blue", SQUARE), scene("blue", shape("square", "green"))),
        ("make the background red", scene("blue", CIRCLE), scene("red", CIRCLE)),
        ("remove the circle", scene("blue", CIRCLE), scene("blue")),
        ("turn the square into a circle", scene("white", SQUARE), scene("white", shape("circle", "red"))),
        (
            "add a blue star on the left",
            scene("white", ALONE),
            scene("white", ALONE, shape("star", "blue", x=0.26, radius=0.17)),
        ),
        (
            "move the circle to the left",
            scene("white", ALONE),
            scene("white", shape("circle", "red", x=0.26, radius=0.16)),
        ),
        (
            "make the circle bigger",
            scene("black", shape("circle", "yellow", radius=0.16)),
            scene("black", shape("circle", "yellow", radius=0.256)),
        ),
        (
            "make the circle smaller",
            scene("black", shape("circle", "yellow", radius=0.3)),
            scene("black", shape("circle", "yellow", radius=0.18)),
        ),
        ("turn the circle into a star", scene("purple", SUN), scene("purple", shape("star", "yellow"))),
        ("remove the circle", scene("blue", LEFT, RIGHT), scene("blue", LEFT)),
        ("remove the square", scene("blue", LEFT, RIGHT), scene("blue", RIGHT)),
        (
            "make the triangle purple",
            scene("black", shape("triangle", "white", x=0.26, radius=0.17), STAR),
            scene("black", shape("triangle", "purple", x=0.26, radius=0.17), STAR),
        ),
        (
            "move the square to the left",
            scene("purple", FAINT),
            scene("purple", shape("square", "blue", x=0.26, radius=0.16)),
        ),
    ],
)
def test_an_edit_changes_what_it_names_and_keeps_the_rest(draw, instruction, before, after):
    picture, warnings = draw(instruction, before)
    assert shows(picture, after)
    old, new = (which.draw(128, 128) for which in (before, after))
    assert untouched_difference(picture, old, new) < 12
    assert warnings == []


def test_two_references(draw):
    """The star of the first on the ground of the second, whose own shape goes."""
    star = shape("star", "white", x=0.6)
    picture, _ = draw(
        "the star of image 1 on the background of image 2", scene("red", star), scene("blue", shape("circle", "orange"))
    )
    assert shows(picture, scene("blue", star))


def test_three_and_four_references(draw):
    """One shape of each, in a row, on the ground of the last."""
    red, green, black = shape("circle", "red"), shape("square", "green"), shape("triangle", "black")
    ground = scene("white", shape("star", "blue"))
    picture, _ = draw(
        "the circle of image 1 and the square of image 2 on the background of image 3",
        *(scene("yellow", red), scene("yellow", green), ground),
    )
    assert shows(
        picture, scene("white", shape("circle", "red", 0.28, radius=0.18), shape("square", "green", 0.72, radius=0.18))
    )
    picture, _ = draw(
        "the circle of image 1, the square of image 2 and the triangle of image 3 on the background of image 4",
        *(scene("yellow", red), scene("yellow", green), scene("yellow", black), ground),
    )
    row = zip((red, green, black), (0.2, 0.5, 0.8), strict=True)
    assert shows(picture, scene("white", *(shape(s.kind, s.colour, x, radius=0.13) for s, x in row)))


def test_seeds_choose_what_the_words_leave_open(draw):
    found = [find_shapes(draw("a red circle on a blue background", seed=seed)[0])[0] for seed in range(6)]
    assert {(one.kind, one.colour) for one in found} == {("circle", "red")}
    assert max(one.x for one in found) - min(one.x for one in found) > 0.05
    assert max(one.radius for one in found) > 1.1 * min(one.radius for one in found)
    # What the words say, no seed changes.
    told = [
        find_shapes(draw("a small yellow circle at the top on a black background", seed=seed)[0])[0]
        for seed in range(4)
    ]
    assert all(abs(one.y - 0.26) < 0.05 and abs(one.radius / SIZES["small"] - 1) < 0.2 for one in told)


def test_words_that_it_does_not_know(draw):
    picture, warnings = draw("a glorious red circle on a blue background, trending on artstation")
    assert background_colour(picture) == "blue"
    assert [found.colour for found in find_shapes(picture)] == ["red"]
    (warning,) = warnings
    assert warning.startswith("prompt: micro does not know glorious, trending, artstation; it draws circles, squares")
    picture, warnings = draw("sunset over Lisbon")
    # What it generates when nothing is said.
    assert background_colour(picture) == "white"
    assert [(found.kind, found.colour) for found in find_shapes(picture)] == [("circle", "red")]
    assert len(warnings) == 1


def test_a_large_image_shows_once_what_was_asked_for_once(draw):
    picture, _ = draw("a red circle on a blue background", width=512, height=512)
    assert [found.kind for found in find_shapes(picture, "blue")] == ["circle"]


def test_a_plural_is_one_shape_and_a_warning_says_how_to_ask_for_two(draw):
    picture, warnings = draw("two yellow squares on a blue background")
    assert (background_colour(picture), len(find_shapes(picture, "blue"))) == ("blue", 1)
    assert warnings[0].startswith("prompt: micro reads squares as one square; two are 'a red square on the left")
