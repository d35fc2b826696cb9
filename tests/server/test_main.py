import asyncio
import threading

import httpx
import pytest

from imagegen.contract.responses import EditResponse, GenerateResponse, HealthResponse
from imagegen.model.pipeline import FluxPipeline
from tests.server.conftest import events, serving, shows
from tests.support.images import scene, to_base64, to_bytes

PROMPT = {"prompt": "a red circle on a blue background", "seed": 42}
LONG = {"prompt": "x", "num_inference_steps": 50, "num_images": 8, "width": 512, "height": 512}
RED_ON_BLUE = scene("circle", "red", "blue")


def test_generate_is_the_contracts_answer(client):
    answer = client.post("/generate", json=PROMPT)
    assert answer.status_code == 200
    body = GenerateResponse.model_validate(answer.json())
    assert body.seeds == [42]
    assert shows(body.images[0]) == ("blue", "red")
    assert len(answer.headers["x-request-id"]) == 32


def test_both_endpoints_generate_the_same_image(client, service):
    from imagegen.runpod import handler

    output = asyncio.run(service.run(handler.parse_job(PROMPT)))
    assert client.post("/generate", json=PROMPT).json()["images"] == output.images


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_edit_as_json_and_as_a_form_is_the_same_image(client, count):
    pictures = [RED_ON_BLUE, scene("star", "white", "green"), scene("square", "black", "yellow"), RED_ON_BLUE][:count]
    fields = {"prompt": "make the background green", "seed": 7}
    as_json = client.post("/edit", json={**fields, "images": [to_base64(picture) for picture in pictures]})
    files = [("image[]" if count > 1 else "image", ("a.png", to_bytes(picture), "image/png")) for picture in pictures]
    as_form = client.post("/edit", data={**fields, "seed": "7"}, files=files)
    assert EditResponse.model_validate(as_json.json()).images == EditResponse.model_validate(as_form.json()).images


def test_a_forms_strings_become_what_the_schema_wants(client):
    fields = {**PROMPT, "num_inference_steps": "2", "embed_prompt": "true", "guidance_scale": "2.5", "width": "96"}
    answer = client.post("/generate", data={**fields, "height": "64"}, files={"image_": b""})
    assert answer.json()["error"]["field"] == "image_"
    answer = client.post("/generate", files=[(k, (None, str(v))) for k, v in {**fields, "height": 64}.items()])
    assert (answer.json()["width"], answer.json()["height"]) == (96, 64)
    assert answer.json()["warnings"]
    wrong = client.post("/generate", files=[("prompt", (None, "x")), ("seed", (None, "soon"))])
    assert wrong.status_code == 422
    assert wrong.json()["error"]["message"] == "seed: must be an integer, and not 'soon'"


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "*"])
def test_the_image_itself(client, kind):
    answer = client.post("/generate", json=PROMPT, headers={"Accept": f"image/{kind}"})
    assert answer.headers["content-type"] == f"image/{'png' if kind == '*' else kind}"
    assert answer.headers["x-seed"] == "42"
    assert shows(to_base64(answer.content)) == ("blue", "red")


@pytest.mark.parametrize(
    ("request_", "status", "code", "field"),
    [
        (dict(json={}), 422, "invalid_input", "prompt"),
        (dict(json=[1]), 422, "invalid_input", "body"),
        (dict(json=None), 415, "unsupported_media_type", None),
        (dict(content="{", headers={"Content-Type": "application/json"}), 422, "invalid_input", "body"),
        (dict(content="[" * 10_000, headers={"Content-Type": "application/json"}), 422, "invalid_input", "body"),
        (dict(content="a=b", headers={"Content-Type": "text/plain"}), 415, "unsupported_media_type", None),
        (dict(content="x", headers={"Content-Type": "multipart/form-data; boundary=y"}), 422, "invalid_input", None),
        (dict(content="x", headers={"Content-Type": "multipart/form-data"}), 422, "invalid_input", None),
        (dict(json={**PROMPT, "mode": "edit"}), 422, "invalid_input", "mode"),
        (dict(json={**PROMPT, "width": 1000, "height": 512}), 422, "invalid_input", "width"),
        (dict(json={**PROMPT, "num_images": 2}, headers={"Accept": "image/png"}), 422, "invalid_input", "num_images"),
        (dict(json=PROMPT, headers={"Accept": "image/gif"}), 422, "invalid_input", "Accept"),
        (dict(json={"prompt": "x" * 4_000_000}), 413, "payload_too_large", None),
        (dict(json={**LONG, "timeout": 1}), 504, "deadline_exceeded", "timeout"),
        (dict(json=PROMPT, params={"previews": "perhaps"}), 422, "invalid_input", "previews"),
    ],
)
def test_a_mistake_is_the_contracts_error(client, request_, status, code, field):
    answer = client.post("/generate", **request_)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "field", "retryable"}
    assert error["code"] == code
    assert field is None or error["field"] == field
    assert client.post("/generate", json=PROMPT).status_code == 200


def test_a_bad_reference_is_named(client):
    answer = client.post("/edit", json={**PROMPT, "images": [to_base64(RED_ON_BLUE), "rubbish!"]})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "images[1]")


def test_pages_and_methods_that_are_not_there(client):
    assert client.get("/nowhere").json()["error"]["code"] == "not_found"
    wrong = client.get("/generate")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert client.delete("/jobs/nobody").status_code == 404


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("image/avif,image/webp,*/*", "image/webp"),
        ("text/html,application/json", "application/json"),
        ("image/png;q=0.9", "image/png"),
        ("application/json;q=0.5, image/webp;q=0.8", "image/webp"),
        ("image/webp;q=0, */*", "application/json"),
        ("image/jpeg; q=rubbish, application/json;q=0.9", "image/jpeg"),
    ],
)
def test_the_most_wanted_type_that_can_be_made(client, accept, kind):
    assert client.post("/generate", json=PROMPT, headers={"Accept": accept}).headers["content-type"] == kind


def test_the_service_information_the_page_and_the_capabilities(client):
    info = client.get("/").json()
    assert (info["name"], info["model"]) == ("image-gen", "micro")
    page = client.get("/", headers={"Accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text
    assert "https://" not in page.text
    can = client.get("/capabilities").json()
    assert can["sizes"] == {"default": 128, "min": 64, "max": 1024, "multiple": 16, "good": 256}
    assert can["limits"]["images"] == 4


def test_metrics_count(client):
    def figure(name):
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = [figure(name) for name in ('imagegen_jobs_total{mode="generate",outcome="ok"}', "imagegen_pictures_total")]
    busy = figure("imagegen_gpu_busy_seconds_total")
    client.post("/generate", json={**PROMPT, "num_images": 2})
    after = [figure(name) for name in ('imagegen_jobs_total{mode="generate",outcome="ok"}', "imagegen_pictures_total")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 2]
    assert figure("imagegen_gpu_busy_seconds_total") > busy
    assert figure('imagegen_stage_seconds_count{mode="generate",stage="denoise"}') >= 1
    mistakes = figure('imagegen_requests_total{route="/generate",status="422"}')
    client.post("/generate", json={})
    assert figure('imagegen_requests_total{route="/generate",status="422"}') == mistakes + 1


def test_openapi_names_every_status_and_field(client):
    described = client.get("/openapi.json").json()
    for route in ("/generate", "/edit"):
        post = described["paths"][route]["post"]
        assert set(post["responses"]) >= {"200", "401", "413", "415", "422", "429", "499", "500", "503", "504", "507"}
        assert set(post["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
        fields = post["requestBody"]["content"]["application/json"]["schema"]["properties"]
        assert all(field.get("description") for field in fields.values())


def test_while_the_model_loads_the_port_answers(monkeypatch):
    seen = threading.Event()
    load = FluxPipeline.load
    monkeypatch.setattr(FluxPipeline, "load", lambda self: (seen.wait(60), load(self)))
    with serving() as (url, service):
        health = httpx.get(f"{url}/health")
        assert health.status_code == 503
        assert HealthResponse.model_validate(health.json()).status == "loading"
        assert health.json()["stage"]
        assert httpx.get(f"{url}/ping").status_code == 204
        refused = httpx.post(f"{url}/generate", json=PROMPT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert refused.headers["retry-after"] == "5"
        seen.set()
        service.start().result()
        assert httpx.get(f"{url}/health").json()["status"] == "ready"
        assert httpx.get(f"{url}/ping").status_code == 200
        assert httpx.post(f"{url}/generate", json=PROMPT).status_code == 200


def test_without_preloading_the_first_job_waits_for_the_model():
    with serving(preload_models=False) as (url, _):
        assert httpx.get(f"{url}/health").json()["status"] == "idle"
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.post(f"{url}/generate", json=PROMPT, timeout=60).status_code == 200


def test_a_model_that_cannot_be_loaded(tmp_path, caplog):
    with serving(model="klein-9b", hf_home=tmp_path) as (url, service):
        service.start().exception()
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        assert "HUGGING_FACE_TOKEN" in health.json()["message"]
        assert httpx.get(f"{url}/ping").status_code == 503
        assert httpx.post(f"{url}/generate", json=PROMPT).json()["error"]["code"] == "load_failed"
    assert "the model could not be loaded: " in caplog.text
    assert "set HUGGING_FACE_TOKEN" in caplog.text


def test_health_is_answered_while_a_job_runs(client):
    with client.stream("POST", "/generate", json=LONG, headers={"Accept": "text/event-stream"}) as answer:
        stream = events(answer)
        next(stream)
        assert client.get("/health").json()["status"] == "busy"
    assert client.get("/health").json()["queue"]["limit"] == 16
