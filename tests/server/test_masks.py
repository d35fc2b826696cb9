"""A mask by every way to send one: the change inside of it, and the photo's own pixels outside."""

import asyncio
import io
import json

import numpy as np
import openai
import pytest
from PIL import Image, ImageDraw

from imagegen.builder.micro.measure import background_colour, shape_colour
from imagegen.editing.mask import weights
from imagegen.runpod import handler
from tests.support.images import from_base64, scene, to_base64, to_bytes

SIDE = 200
PHOTO = scene("circle", "red", "blue").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
MASK = Image.new("L", (SIDE, SIDE))
ImageDraw.Draw(MASK).ellipse((36, 36, 164, 164), fill=255)
KEPT = weights(MASK, (SIDE, SIDE), invert=False, grow=None, feather=None) == 0
PROMPT = "make the circle green"
JOB: dict[str, object] = {"prompt": PROMPT, "seed": 1}


def transparent(mask):
    """The same selection as OpenAI's clients send it."""
    picture = PHOTO.convert("RGBA")
    picture.putalpha(mask.point(lambda value: 255 - value))
    return picture


def check(picture):
    before, after = np.asarray(PHOTO), np.asarray(picture.convert("RGB"))
    assert np.array_equal(after[KEPT], before[KEPT])
    small = picture.resize((128, 128))
    assert (background_colour(small), shape_colour(small)) == ("blue", "green")


def variants():
    tight = {"mask_grow": 0, "mask_feather": 0}
    yield "white is edited", to_base64(MASK), {}
    yield "1 bit", to_base64(MASK.convert("1")), {}
    yield "palette", to_base64(MASK.convert("P")), {}
    yield "16 bits", to_base64(Image.fromarray(np.asarray(MASK).astype(np.uint16) * 257)), {}
    yield "CMYK", to_base64(MASK.convert("RGB").convert("CMYK"), "JPEG", quality=100), tight
    yield "transparent is edited", to_base64(transparent(MASK)), {}
    yield "inverted", to_base64(MASK.point(lambda value: 255 - value)), {"mask_invert": True}
    yield "smaller", to_base64(MASK.resize((100, 100))), tight


@pytest.mark.parametrize(("mask", "fields"), [pytest.param(m, f, id=name) for name, m, f in variants()])
def test_masks_of_every_kind(client, mask, fields):
    answer = client.post("/edit", json={**JOB, "images": [to_base64(PHOTO)], "mask": mask, **fields})
    assert answer.status_code == 200, answer.text
    check(from_base64(answer.json()["images"][0]))


def test_a_form_a_job_and_openais_client_edit_alike(client, ready, service, monkeypatch):
    files = {"image": ("a.png", to_bytes(PHOTO)), "mask": ("mask.png", to_bytes(MASK))}
    form = client.post("/edit", data={key: str(value) for key, value in JOB.items()}, files=files).json()["images"][0]
    check(from_base64(form))
    monkeypatch.setattr(handler, "service", lambda: service)
    fields = {**JOB, "images": [to_base64(PHOTO)], "mask": to_base64(MASK)}
    output = asyncio.run(handler.handler({"id": "a", "input": fields}))
    assert output["images"][0] == form
    assert (output["width"], output["height"]) == (SIDE, SIDE)
    ai = openai.OpenAI(base_url=f"{ready[0]}/v1", api_key="any", max_retries=0)
    answer = ai.images.edit(
        image=("a.png", io.BytesIO(to_bytes(PHOTO)), "image/png"),
        mask=("mask.png", io.BytesIO(to_bytes(transparent(MASK))), "image/png"),
        prompt=PROMPT,
        size="1024x1024",
        extra_body={"seed": 1},
    )
    assert answer.data[0].b64_json == form
    assert "size: changes nothing with a mask" in answer.model_extra["warnings"][0]


def test_a_mask_beside_other_references_and_an_upright_photo(client):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = PHOTO.rotate(90)  # as a phone stores it: turned back by its EXIF
    photo = io.BytesIO()
    turned.save(photo, "PNG", exif=exif)
    other = to_base64(scene("star", "yellow", "black"))
    body = {**JOB, "images": [to_base64(photo.getvalue()), other], "mask": to_base64(MASK)}
    answer = client.post("/edit", json=body).json()
    after = np.asarray(from_base64(answer["images"][0]))
    assert np.array_equal(after[KEPT], np.asarray(PHOTO)[KEPT])


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_formats_that_lose_say_so(client, output_format):
    fields = {**JOB, "images": [to_base64(PHOTO)], "mask": to_base64(MASK), "output_format": output_format}
    answer = client.post("/edit", json=fields).json()
    assert any("output_format" in warning and "exact" in warning for warning in answer["warnings"])


def test_preserve_and_expand(client):
    images = [to_base64(PHOTO)]
    answer = client.post("/edit", json={**JOB, "images": images, "preserve": "auto"}).json()
    after, before = np.asarray(from_base64(answer["images"][0])), np.asarray(PHOTO)
    assert (after == before).all(axis=-1).mean() > 0.5
    assert shape_colour(Image.fromarray(after).resize((128, 128))) == "green"
    for expand in ({"left": 30, "top": 10}, json.dumps({"left": 30, "top": 10})):
        if isinstance(expand, str):  # as a form has it
            form = {"prompt": "a red circle", "expand": expand}
            answer = client.post("/edit", data=form, files={"image": ("a.png", to_bytes(PHOTO))}).json()
        else:
            answer = client.post("/edit", json={**JOB, "images": images, "expand": expand}).json()
        after = np.asarray(from_base64(answer["images"][0]))
        assert after.shape == (210, 230, 3)
        assert np.array_equal(after[10:, 30:], before)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"mask": to_base64(MASK.crop((0, 0, 100, 150)))}, "mask"),
        ({"mask": to_base64(Image.new("L", (SIDE, SIDE)))}, "mask"),
        ({"mask": to_base64(b"no image")}, "mask"),
        ({"mask": 7}, "mask"),
        ({"mask": to_base64(MASK), "width": 128, "height": 128}, "width"),
        ({"mask": to_base64(MASK), "preserve": "auto"}, "preserve"),
        ({"mask_grow": 4}, "mask_grow"),
        ({"mask": to_base64(MASK), "mask_feather": 513}, "mask_feather"),
        ({"expand": {"left": -1}}, "expand"),
        ({"expand": {"left": 9000}}, "expand"),
        ({"expand": {"left": 0}}, "expand"),
        ({"expand": {"up": 5}}, "expand"),
        ({"fit": "expand"}, "fit"),
        ({"preserve": "all"}, "preserve"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_its_field(client, fields, field):
    answer = client.post("/edit", json={**JOB, "images": [to_base64(PHOTO)], **fields})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["field"].startswith(field)
    assert field in error["message"]


def test_a_mask_without_an_image(client):
    error = client.post("/generate", json={**JOB, "mask": to_base64(MASK)}).json()["error"]
    assert error["field"] == "mask"
    assert "reference" in error["message"]
    job = asyncio.run(handler.handler({"id": "a", "input": {**JOB, "mask": to_base64(MASK)}}))
    assert job["field"] == "mask"


def test_a_mask_that_selects_all_is_a_warning(client):
    fields = {**JOB, "images": [to_base64(PHOTO)], "mask": to_base64(Image.new("L", (SIDE, SIDE), 255))}
    answer = client.post("/edit", json=fields).json()
    assert any("selects everything" in warning for warning in answer["warnings"])
