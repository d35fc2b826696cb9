"""`strength` by every transport, its ends, and what it cannot go with."""

import asyncio
import io

import numpy as np
import openai
import pytest
from PIL import Image, ImageDraw

from imagegen.runpod import handler
from tests.conftest import from_base64, scene, to_base64, to_bytes

PHOTO = scene("circle", "red", "blue").resize((200, 152), Image.Resampling.LANCZOS)
MASK = Image.new("L", PHOTO.size)
ImageDraw.Draw(MASK).rectangle((40, 20, 160, 130), fill=255)
JOB: dict[str, object] = {"prompt": "turn the circle into a star", "seed": 1}


def pixels(answer):
    return np.asarray(from_base64(answer["images"][0]).convert("RGB"), float)


def edit(client, **fields):
    answer = client.post("/edit", json={**JOB, "images": [to_base64(PHOTO)], **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("fields", [{"mask": to_base64(MASK)}, {"preserve": "auto"}], ids=["mask", "preserve"])
def test_at_0_a_photo_is_itself_and_at_1_as_without(client, fields):
    answer = edit(client, strength=0, num_images=2, **fields)
    for image in answer["images"]:
        assert np.array_equal(np.asarray(from_base64(image)), np.asarray(PHOTO))
    assert answer["timings"]["denoise"] == 0
    assert edit(client, strength=1, **fields)["images"] == edit(client, **fields)["images"]
    assert edit(client, strength=0.5, **fields)["images"] != edit(client, **fields)["images"]


def test_a_variation_at_0_is_the_reference_as_the_model_sees_it(client):
    answer = edit(client, strength=0)
    assert (answer["width"], answer["height"]) == (192, 144)
    seen = np.asarray(PHOTO.resize((192, 144), Image.Resampling.LANCZOS), float)
    assert np.abs(pixels(answer) - seen).mean() < 2
    little, all_of_it = (np.abs(pixels(edit(client, strength=s)) - seen).mean() for s in (0.1, 1))
    assert little < all_of_it


def test_a_reference_that_is_smaller_than_the_model_makes_images(client):
    small = to_base64(scene("circle", "red", "blue").resize((64, 512)))
    answer = edit(client, images=[small], strength=0.4)
    assert from_base64(answer["images"][0]).size == (answer["width"], answer["height"])


def test_every_transport(client, ready, service, monkeypatch):
    wanted = edit(client, strength=0.4)["images"][0]
    assert wanted != edit(client)["images"][0]
    form = {**{key: str(value) for key, value in JOB.items()}, "strength": "0.4"}
    answer = client.post("/edit", data=form, files={"image": ("a.png", to_bytes(PHOTO))}).json()
    assert answer["images"][0] == wanted
    monkeypatch.setattr(handler, "service", lambda: service)
    job = {"id": "a", "input": {**JOB, "images": [to_base64(PHOTO)], "strength": 0.4}}
    assert asyncio.run(handler.handler(job))["images"][0] == wanted
    ai = openai.OpenAI(base_url=f"{ready[0]}/v1", api_key="any", max_retries=0)
    picture = ("a.png", io.BytesIO(to_bytes(PHOTO)), "image/png")
    extra = {"seed": 1, "strength": 0.4}
    assert ai.images.edit(image=picture, prompt=str(JOB["prompt"]), extra_body=extra).data[0].b64_json == wanted


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"strength": 1.01}, "strength"),
        ({"strength": -0.1}, "strength"),
        ({"strength": "much"}, "strength"),
        ({"strength": True}, "strength"),
        ({"strength": 0.5, "expand": {"left": 8}}, "strength"),
        ({"strength": 0.5, "fit": "expand", "aspect_ratio": "16:9"}, "strength"),
        ({"strength": 0.5, "width": 128, "height": 128}, "width"),
        ({"strength": 0.5, "aspect_ratio": "16:9"}, "aspect_ratio"),
    ],
)
def test_what_cannot_be_names_its_field(client, fields, field):
    answer = client.post("/edit", json={**JOB, "images": [to_base64(PHOTO)], **fields})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"] == field
    assert answer.json()["error"]["message"].startswith(f"{field}: ")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_no_number(client, text):
    body = f'{{"prompt": "x", "images": ["eA=="], "strength": {text}}}'
    for answer in (
        client.post("/edit", content=body, headers={"Content-Type": "application/json"}),
        client.post("/edit", data={"prompt": "x", "strength": text}, files={"image": ("a.png", to_bytes(PHOTO))}),
    ):
        assert answer.status_code == 422
        assert answer.json()["error"]["field"] == "strength"
    error = asyncio.run(handler.handler({"id": "a", "input": {**JOB, "images": ["eA=="], "strength": float(text)}}))
    assert error["field"] == "strength"


def test_it_is_a_field_of_edits(client, ready):
    error = client.post("/generate", json={**JOB, "strength": 0.5}).json()["error"]
    assert error["field"] == "strength"
    assert "needs a reference image" in error["message"]
    ai = openai.OpenAI(base_url=f"{ready[0]}/v1", api_key="any", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="strength"):
        ai.images.generate(prompt="x", extra_body={"strength": 0.5})


def test_lossless_webp_keeps_every_pixel(client):
    fields = {"mask": to_base64(MASK), "output_format": "webp", "output_quality": 100}
    answer = edit(client, **fields)
    assert answer["warnings"] == edit(client, mask=fields["mask"])["warnings"]
    assert np.array_equal(pixels(answer), pixels(edit(client, mask=fields["mask"])))
