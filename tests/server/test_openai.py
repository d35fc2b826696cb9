"""The official client drives /v1."""

import io
import threading

import openai
import pytest

from imagegen.builder.micro.measure import background_colour, shape_colour
from imagegen.model.pipeline import FluxPipeline
from tests.server.conftest import serving
from tests.support.images import from_base64, scene, to_bytes

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def ai(ready):
    return openai.OpenAI(base_url=f"{ready[0]}/v1", api_key="any", max_retries=0)


def shows(image):
    picture = from_base64(image.b64_json)
    return background_colour(picture), shape_colour(picture)


def file(picture, name="a.png"):
    return name, io.BytesIO(to_bytes(picture)), "image/png"


def test_models(ai):
    assert [model.id for model in ai.models.list()] == ["micro"]
    assert ai.models.retrieve("micro").id == "micro"
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("another")


def test_aliases_of_the_model():
    with serving(model_aliases="gpt-image-1, openai/gpt-image-1") as (url, service):
        service.start().result()
        named = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        assert [model.id for model in named.models.list()] == ["micro", "gpt-image-1", "openai/gpt-image-1"]
        assert named.models.retrieve("openai/gpt-image-1").id == "openai/gpt-image-1"
        for name in ("micro", "MICRO", "gpt-image-1", "GPT-Image-1", "openai/gpt-image-1", ""):
            assert named.images.generate(model=name, prompt=PROMPT).data
        with pytest.raises(openai.NotFoundError):
            named.images.generate(model="dall-e-3", prompt=PROMPT)
    with serving(model_aliases="*") as (url, service):
        service.start().result()
        named = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        assert [model.id for model in named.models.list()] == ["micro"]
        assert named.images.generate(model="dall-e-3", prompt=PROMPT).data


def test_generate(ai, client):
    answer = ai.images.generate(model="micro", prompt=PROMPT, extra_body={"seed": 42})
    assert shows(answer.data[0]) == ("blue", "red")
    assert (answer.size, answer.output_format) == ("128x128", "png")
    native = client.post("/generate", json={"prompt": PROMPT, "seed": 42}).json()
    assert answer.data[0].b64_json == native["images"][0]
    assert answer.model_extra["seeds"] == [42]
    assert answer.model_extra["warnings"] == []


def test_every_field_that_is_honoured(ai):
    answer = ai.images.generate(
        prompt=PROMPT, n=2, size="96x64", output_format="webp", output_compression=50, response_format="b64_json"
    )
    assert len(answer.data) == 2
    pictures = [from_base64(image.b64_json) for image in answer.data]
    assert {(picture.size, picture.format) for picture in pictures} == {((96, 64), "WEBP")}


def test_the_range_of_compression_is_openais(ai, client):
    """0 to 100; this project's quality begins with 1."""
    for compression, quality in ((0, 1), (1, 1), (100, 100)):
        answer = ai.images.generate(
            prompt=PROMPT, output_format="jpeg", output_compression=compression, extra_body={"seed": 1}
        )
        job = {"prompt": PROMPT, "output_format": "jpeg", "output_quality": quality, "seed": 1}
        assert answer.data[0].b64_json == client.post("/generate", json=job).json()["images"][0]


def test_what_changes_nothing_is_warned_of(ai):
    ignored = {"quality": "max", "moderation": "low", "style": "vivid", "user": "someone"}
    ignored |= {"safety_identifier": "someone", "complexity": "high", "input_fidelity": "low"}
    answer = ai.images.generate(prompt=PROMPT, extra_body=ignored)
    assert answer.model_extra["warnings"] == [f"{name}: changes nothing here" for name in ignored]
    answer = ai.images.generate(prompt=PROMPT, quality="auto", background="opaque", moderation="auto")
    assert answer.model_extra["warnings"] == []
    answer = ai.images.generate(prompt=PROMPT, output_compression=50, partial_images=2)
    assert answer.model_extra["warnings"] == [
        "output_compression: changes nothing for png",
        "partial_images: changes nothing without stream",
    ]


@pytest.mark.parametrize("count", [1, 4])
def test_edit(ai, client, count):
    pictures = [scene("circle", "red", "blue"), scene("star", "white", "green"), *[scene("square", "black", "red")] * 2]
    files = [file(picture, f"{i}.png") for i, picture in enumerate(pictures[:count])]
    answer = ai.images.edit(
        image=files if count > 1 else files[0], prompt="make the background green", extra_body={"seed": 3}
    )
    form = [("image", (name, data.getvalue(), kind)) for name, data, kind in files]
    native = client.post("/edit", data={"prompt": "make the background green", "seed": "3"}, files=form).json()
    assert answer.data[0].b64_json == native["images"][0]
    if count == 1:
        assert shows(answer.data[0]) == ("green", "red")


@pytest.mark.parametrize("partial", [0, 1, 2, 3])
def test_stream(ai, partial):
    seen = list(ai.images.generate(prompt=PROMPT, stream=True, partial_images=partial, extra_body={"seed": 42}))
    kinds = ["image_generation.partial_image"] * partial + ["image_generation.completed"]
    assert [event.type for event in seen] == kinds
    assert [event.partial_image_index for event in seen[:-1]] == list(range(partial))
    assert shows(seen[-1]) == ("blue", "red")
    if partial == 3:
        assert len({event.b64_json for event in seen}) == 4  # it forms
    if partial:
        assert shows(seen[-2]) == ("blue", "red")


def test_a_stream_of_two_images(ai, client):
    seen = list(ai.images.generate(prompt=PROMPT, stream=True, n=2, extra_body={"seed": 42}))
    assert [event.type for event in seen] == ["image_generation.completed"] * 2
    native = client.post("/generate", json={"prompt": PROMPT, "num_images": 2, "seed": 42}).json()
    assert [event.b64_json for event in seen] == native["images"]


def test_an_empty_form_field_is_not_given(client):
    empty = (
        "model",
        "n",
        "size",
        "response_format",
        "quality",
        "background",
        "stream",
        "partial_images",
        "user",
        "seed",
    )
    files = [("image[]", ("a.png", to_bytes(scene("circle", "red", "blue")), "image/png")), ("mask", ("", b"", None))]
    fields = {"prompt": "make the background green", **dict.fromkeys(empty, "")}
    answer = client.post("/v1/images/edits", data=fields, files=files)
    assert answer.status_code == 200, answer.text
    assert answer.json()["warnings"] == []
    answer = client.post("/v1/images/edits", data={**fields, "n": "2", "stream": "false", "seed": "-1"}, files=files)
    assert len(answer.json()["data"]) == 2


def test_stream_of_an_edit(ai):
    stream = ai.images.edit(
        image=file(scene("circle", "red", "blue")), prompt="make the background green", stream=True, partial_images=1
    )
    assert [event.type for event in stream] == ["image_edit.partial_image", "image_edit.completed"]


@pytest.mark.parametrize(
    ("fields", "raised", "param"),
    [
        (dict(model="gpt-image-1"), openai.NotFoundError, "model"),
        (dict(prompt=" "), openai.BadRequestError, "prompt"),
        (dict(n=9), openai.BadRequestError, "n"),
        (dict(size="big"), openai.BadRequestError, "size"),
        (dict(size="1000x1000"), openai.BadRequestError, "size"),
        (dict(response_format="url"), openai.BadRequestError, "response_format"),
        (dict(background="transparent"), openai.BadRequestError, "background"),
        (dict(extra_body={"input_fidelity": "high"}), openai.BadRequestError, "input_fidelity"),
        (dict(output_compression=101), openai.BadRequestError, "output_compression"),
        (dict(output_format="gif"), openai.BadRequestError, "output_format"),
        (dict(partial_images=4), openai.BadRequestError, "partial_images"),
        (dict(stream=True, response_format="url"), openai.BadRequestError, "response_format"),
        (dict(extra_body={"seed": -2}), openai.BadRequestError, "seed"),
        (dict(extra_body={"steps": 51}), openai.BadRequestError, "steps"),
        (dict(extra_body={"stepz": 3}), openai.BadRequestError, "stepz"),
        (dict(extra_body={"stream": 0}), openai.BadRequestError, "stream"),
        (dict(extra_body={"partial_images": "2"}), openai.BadRequestError, "partial_images"),
    ],
)
def test_a_mistake_is_the_clients_exception(ai, fields, raised, param):
    with pytest.raises(raised) as caught:
        ai.images.generate(**{"prompt": PROMPT, **fields})
    assert caught.value.param == param
    if raised is openai.NotFoundError:
        assert caught.value.code == "model_not_found"


def test_half_a_surrogate_pair_is_a_bad_request(client):
    body = '{"prompt": "x", "\\ud800": 1}'
    for route in ("/v1/images/generations", "/generate"):
        answer = client.post(route, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == (400 if "v1" in route else 422)
        assert answer.json()["error"]


def test_before_the_model_is_chosen_nothing_is_called_unknown():
    with serving(model=None) as (url, service):
        early = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        if service.spec is None:
            with pytest.raises(openai.InternalServerError):
                early.images.generate(model="micro", prompt=PROMPT)
        service.start().result()
        assert early.images.generate(model="micro", prompt=PROMPT).data
    with serving(model=None, preload_models=False) as (url, _):
        assert openai.OpenAI(base_url=f"{url}/v1", api_key="any").images.generate(model="micro", prompt=PROMPT).data


def test_a_bad_image_and_a_bad_mask(ai):
    with pytest.raises(openai.BadRequestError) as caught:
        ai.images.edit(image=("a.png", b"not a picture", "image/png"), prompt="x")
    assert caught.value.code == "bad_reference"
    picture = scene("circle", "red", "blue")
    with pytest.raises(openai.BadRequestError) as caught:
        ai.images.edit(image=file(picture), mask=file(picture.crop((0, 0, 64, 100))), prompt="x")
    assert caught.value.param == "mask"


def test_the_key_and_the_state_of_the_server(monkeypatch):
    asked, load = threading.Event(), FluxPipeline.load
    monkeypatch.setattr(FluxPipeline, "load", lambda self: (asked.wait(60), load(self)))
    with serving(api_key="key-of-sixteen-or-more", max_queue=0) as (url, service):
        right = openai.OpenAI(base_url=f"{url}/v1", api_key="key-of-sixteen-or-more", max_retries=0)
        with pytest.raises(openai.InternalServerError) as caught:  # 503 while it loads
            right.images.generate(prompt=PROMPT)
        wrong = openai.OpenAI(base_url=f"{url}/v1", api_key="other", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.images.generate(prompt=PROMPT)
        assert caught.value.status_code == 503
        asked.set()
        service.start().result()
        assert right.images.generate(prompt=PROMPT).data
        upload = service.upload("another")
        with pytest.raises(openai.RateLimitError):
            right.images.generate(prompt=PROMPT)
        upload.release()
