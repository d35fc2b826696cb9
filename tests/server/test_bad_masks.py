"""Masks as the internet sends them: each is an error that names its field, or has its documented meaning, by every
transport; and the next job passes."""

import asyncio
import io

import numpy as np
import openai
import pytest
from PIL import Image, ImageDraw

from imagegen.runpod import handler
from tests.conftest import from_base64, scene, to_base64, to_bytes

PHOTO = scene("circle", "red", "blue").resize((160, 128))
MASK = Image.new("L", PHOTO.size)
ImageDraw.Draw(MASK).rectangle((30, 10, 130, 118), fill=255)
JOB: dict[str, object] = {"prompt": "make the circle green", "seed": 1, "images": [to_base64(PHOTO)]}


@pytest.fixture
def by_job(service, monkeypatch):
    monkeypatch.setattr(handler, "service", lambda: service)
    return lambda **fields: asyncio.run(handler.handler({"id": "a", "input": {**JOB, **fields}}))


def huge(width, height):
    file = io.BytesIO()
    Image.new("1", (width, height), 1).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (to_bytes(MASK.crop((0, 0, 100, 100))), "100x100 and the first reference 160x128"),
        (to_bytes(Image.new("L", PHOTO.size)), "selects nothing"),
        (to_bytes(Image.new("1", PHOTO.size)), "selects nothing"),
        (b"no image", ""),
        (to_bytes(MASK)[:60], ""),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ""),
        (huge(7000, 6000), "36 megapixels"),
        (huge(9000, 100), ""),
    ],
    ids=["shape", "black", "1-bit black", "text", "cut", "svg", "42 megapixels", "90 to 1"],
)
def test_a_mask_that_cannot_be_used(client, ready, by_job, mask, words):
    answers = [
        client.post("/edit", json={**JOB, "mask": to_base64(mask)}).json()["error"],
        client.post(
            "/edit",
            data={"prompt": "x"},
            files={"image": ("a.png", to_bytes(PHOTO)), "mask": ("m.png", mask)},
        ).json()["error"],
        by_job(mask=to_base64(mask)),
    ]
    for answer in answers:
        assert answer["field"] == "mask"
        assert words in answer.get("message", answer.get("error"))
    ai = openai.OpenAI(base_url=f"{ready[0]}/v1", api_key="any", max_retries=0)
    with pytest.raises(openai.BadRequestError) as caught:
        ai.images.edit(image=("a.png", to_bytes(PHOTO)), mask=("m.png", mask), prompt="x")
    assert caught.value.param == "mask"
    assert client.post("/edit", json={**JOB, "mask": to_base64(MASK)}).status_code == 200


def turned(picture):
    """As a phone stores it: turned back by its EXIF."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    picture.rotate(90, expand=True).save(file, "PNG", exif=exif)
    return to_base64(file.getvalue())


def palette_with_transparency():
    index, file = MASK.point(lambda value: 1 if value else 0).convert("P"), io.BytesIO()
    index.putpalette([9, 9, 9, 9, 9, 9])
    index.save(file, "PNG", transparency=1)
    return to_base64(file.getvalue())


@pytest.mark.parametrize(
    ("photo", "mask"),
    [
        (to_base64(PHOTO), to_base64(MASK)),
        (to_base64(PHOTO), to_base64(Image.merge("LA", (MASK, Image.new("L", MASK.size, 255))))),
        (to_base64(PHOTO), to_base64(MASK.convert("RGBA"))),
        (to_base64(PHOTO), palette_with_transparency()),
        (to_base64(PHOTO), to_base64(MASK.convert("RGB"))),
        (turned(PHOTO), to_base64(MASK)),
        (to_base64(PHOTO), turned(MASK)),
        (turned(PHOTO), turned(MASK)),
    ],
    ids=["L", "opaque LA", "opaque RGBA", "palette", "RGB", "turned photo", "turned mask", "both turned"],
)
def test_the_same_selection_said_in_many_ways(client, photo, mask):
    wanted = client.post("/edit", json={**JOB, "mask": to_base64(MASK)}).json()["images"][0]
    answer = client.post("/edit", json={**JOB, "images": [photo], "mask": mask}).json()
    assert np.array_equal(np.asarray(from_base64(answer["images"][0])), np.asarray(from_base64(wanted)))


def test_four_references_and_a_fifth(client):
    mask, image = to_base64(MASK), to_base64(PHOTO)
    answer = client.post("/edit", json={**JOB, "images": [image] * 4, "mask": mask})
    assert answer.status_code == 200
    before, after = np.asarray(PHOTO), np.asarray(from_base64(answer.json()["images"][0]))
    assert np.array_equal(after[:, :20], before[:, :20])
    error = client.post("/edit", json={**JOB, "images": [image] * 5, "mask": mask}).json()["error"]
    assert error["field"] == "images"


@pytest.mark.parametrize(
    "expand",
    [
        {"left": 8193},
        {"left": -1},
        {"left": 1.5},
        {"left": "8"},
        {"left": True},
        "no",
        7,
        {"left": 8192, "top": 8192},
    ],
)
def test_a_canvas_that_cannot_be(client, by_job, expand):
    for error in (client.post("/edit", json={**JOB, "expand": expand}).json()["error"], by_job(expand=expand)):
        assert error["field"].startswith("expand")
    assert client.post("/edit", json={**JOB, "expand": {"left": 8}}).status_code == 200


def test_webp_cannot_be_as_wide_as_the_canvas(client):
    fields = {"expand": {"left": 8192, "right": 8192, "top": 1000, "bottom": 1000}, "output_format": "webp"}
    error = client.post("/edit", json={**JOB, **fields}).json()["error"]
    assert error["field"] == "output_format"
    assert "16383" in error["message"]
