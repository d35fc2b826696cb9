import asyncio
import json
import socket
import time

import httpx
import pytest
from PIL import Image

from builder.micro.measure import background_colour, shape_colour
from imagegen.events import Step
from imagegen.server.http import EventQueue
from imagegen.server.main import create_app
from imagegen.server.schemas import EditResponse, GenerateResponse, HealthResponse
from tests.conftest import from_base64, scene, settings, to_base64, to_bytes
from tests.server.conftest import running, serving

PROMPT = {"prompt": "a red circle on a blue background", "seed": 42}
LONG = {"prompt": "x", "num_inference_steps": 50, "num_images": 8, "width": 512, "height": 512}
RED_ON_BLUE = scene("circle", "red", "blue")


def events(response):
    name = None
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


def shows(text):
    picture = from_base64(text)
    return background_colour(picture), shape_colour(picture)


def test_generate_is_the_contracts_answer(client):
    answer = client.post("/generate", json=PROMPT)
    assert answer.status_code == 200
    body = GenerateResponse.model_validate(answer.json())
    assert body.seeds == [42]
    assert shows(body.images[0]) == ("blue", "red")
    assert len(answer.headers["x-request-id"]) == 32


def test_both_doors_draw_the_same_picture(client, service):
    import handler

    output = asyncio.run(service.run(handler.parse_job(PROMPT)))
    assert client.post("/generate", json=PROMPT).json()["images"] == output.images


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_edit_as_json_and_as_a_form_is_the_same_picture(client, count):
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
def test_the_picture_itself(client, kind):
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
        (dict(content="[" * 100_000, headers={"Content-Type": "application/json"}), 422, "invalid_input", "body"),
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


def test_a_chunked_body_over_the_limit_is_refused(client):
    def chunks():
        for _ in range(50):
            yield b"x" * 100_000

    answer = client.post("/generate", content=chunks(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


def test_the_stream_tells_what_happens(client):
    body = {"prompt": "make the background green", "image": to_base64(RED_ON_BLUE), "seed": 1}
    with client.stream("POST", "/edit", json=body, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        seen = list(events(answer))
    assert [name for name, _ in seen] == ["queued", "references", *["step"] * 4, "done"]
    assert seen[0][1] == {"id": answer.headers["x-request-id"], "place": 0}
    assert [(data["step"], data["total"]) for name, data in seen if name == "step"] == [(i, 4) for i in range(1, 5)]
    assert all("preview" not in data and data["seconds_left"] >= 0 for name, data in seen if name == "step")
    assert EditResponse.model_validate(seen[-1][1]).images == client.post("/edit", json=body).json()["images"]


def test_previews_show_the_picture_forming(client):
    with client.stream(
        "POST", "/generate", json=PROMPT, params={"previews": "true"}, headers={"Accept": "text/event-stream"}
    ) as answer:
        previews = [data["preview"] for name, data in events(answer) if name == "step" and "preview" in data]
    assert len(previews) == 3  # the last step is the picture
    assert shows(previews[-1]) == ("blue", "red")


def test_an_error_in_a_stream(client):
    stream = {"Accept": "text/event-stream"}
    with client.stream("POST", "/edit", json={**PROMPT, "image": "rubbish!"}, headers=stream) as answer:
        name, error = list(events(answer))[-1]
    assert (name, error["code"], error["field"]) == ("error", "bad_reference", "images[0]")
    assert client.post("/generate", json={}, headers=stream).status_code == 422  # before the stream has begun


@pytest.fixture
def steps(ready):
    """Counts the calls of the transformer: one for each step."""
    calls = []
    hook = ready[1].start().result()._pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def settled(steps):
    """The number of steps, once there are no more."""
    before = -1
    while before != len(steps):
        before = len(steps)
        time.sleep(0.5)
    return before


def test_delete_cancels_a_job(client, steps):
    with client.stream("POST", "/generate", json=LONG, headers={"Accept": "text/event-stream"}) as answer:
        stream = events(answer)
        _, queued = next(stream)
        while len(steps) < 2:
            next(stream)
        assert client.delete(f"/jobs/{queued['id']}").json() == {"id": queued["id"], "status": "cancelled"}
        ran = len(steps)
        name, error = list(stream)[-1]
    assert (name, error["code"]) == ("error", "cancelled")
    assert settled(steps) <= ran + 1
    assert client.delete(f"/jobs/{queued['id']}").status_code == 404


def test_a_client_that_goes_away_stops_its_stream(client, steps):
    with client.stream("POST", "/generate", json=LONG, headers={"Accept": "text/event-stream"}) as answer:
        stream = events(answer)
        while len(steps) < 3:
            next(stream)
    assert settled(steps) <= 3 + 2  # the step that it was in, and one during which the news arrived
    assert client.post("/generate", json=PROMPT).status_code == 200


def test_a_client_that_goes_away_stops_its_previews(client, steps):
    headers, params = {"Accept": "text/event-stream"}, {"previews": "true"}
    for _ in range(8):
        before = len(steps)
        job = {**LONG, "num_images": 1, "width": 256, "height": 256}
        with client.stream("POST", "/generate", json=job, params=params, headers=headers) as answer:
            stream = events(answer)
            while len(steps) < before + 3:
                next(stream)
        assert settled(steps) <= before + 3 + 3


def test_a_client_that_stops_reading_keeps_few_previews():
    async def pile():
        queue = EventQueue()
        for step in range(50):
            queue.listen(Step(step + 1, 50, 0.0, scene("circle", "red", "blue")))
        task = asyncio.create_task(asyncio.sleep(0))
        return [event async for event in queue.follow(task)]

    seen = asyncio.run(pile())
    assert [event.step for event in seen] == list(range(1, 51))  # every step is told
    assert [event.step for event in seen if event.preview] == list(range(43, 51))  # the last eight are shown


def test_a_bug_in_a_route_has_an_id_and_no_message(caplog):
    app = create_app(settings(preload_models=False))
    sent = "cana" + "ry"

    @app.get("/broken")
    async def broken():
        raise RuntimeError(sent)

    with running(app) as url:
        answer = httpx.get(f"{url}/broken")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert answer.headers["x-request-id"]
    assert sent not in caplog.text + answer.text
    assert answer.json()["error"]["message"].split()[-1] in caplog.text


def test_a_sender_that_goes_away_or_stops_is_not_a_bug(ready, caplog, monkeypatch):
    monkeypatch.setattr("imagegen.server.http._BODY_SECONDS", 0.5)
    host, port = ready[0].removeprefix("http://").split(":")
    head = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection((host, int(port))) as gone:
        gone.sendall(head)
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(head)
        assert b" 504 " in slow.recv(100)
    assert ready[1].reading == 0
    assert "internal error" not in caplog.text


def test_bodies_that_are_being_read_count_as_jobs():
    with serving(max_queue=0) as (url, service):
        service.start().result()
        service.reading = 1
        assert httpx.post(f"{url}/generate", json=PROMPT).status_code == 429
        service.reading = 0
        assert httpx.post(f"{url}/generate", json=PROMPT).status_code == 200


def test_a_form_takes_as_large_a_reference_in_base64_as_json(client):
    noise = Image.effect_noise((900, 900), 90).convert("RGB")
    text = to_base64(noise)
    assert len(text) > 1_100_000
    answer = client.post("/edit", files=[("prompt", (None, "make the background red")), ("image", (None, text))])
    assert answer.status_code == 200, answer.text[:200]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("image/avif,image/webp,*/*", "image/webp"),
        ("text/html,application/json", "application/json"),
        ("image/png;q=0.9", "image/png"),
    ],
)
def test_the_first_accepted_type_that_can_be_made(client, accept, kind):
    assert client.post("/generate", json=PROMPT, headers={"Accept": accept}).headers["content-type"] == kind


def test_a_client_that_goes_away_stops_its_job(client, steps):
    with pytest.raises(httpx.ReadTimeout):
        client.post("/generate", json=LONG, timeout=1)
    assert settled(steps) < 30  # of 400
    assert client.post("/generate", json=PROMPT).status_code == 200


def test_the_card_the_page_and_the_capabilities(client):
    card = client.get("/").json()
    assert (card["name"], card["model"]) == ("image-gen", "micro")
    page = client.get("/", headers={"Accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text
    assert "https://" not in page.text
    can = client.get("/capabilities").json()
    assert can["sizes"] == {"default": 128, "min": 64, "max": 1024, "multiple": 16}
    assert can["limits"]["images"] == 4


def test_metrics_count(client):
    def figure(name):
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = [figure(name) for name in ('imagegen_jobs_total{outcome="ok"}', "imagegen_pictures_total")]
    busy = figure("imagegen_gpu_busy_seconds_total")
    client.post("/generate", json={**PROMPT, "num_images": 2})
    after = [figure(name) for name in ('imagegen_jobs_total{outcome="ok"}', "imagegen_pictures_total")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 2]
    assert figure("imagegen_gpu_busy_seconds_total") > busy
    assert figure('imagegen_stage_seconds_count{stage="denoise"}') >= 1
    mistakes = figure('imagegen_requests_total{status="422"}')
    client.post("/generate", json={})
    assert figure('imagegen_requests_total{status="422"}') == mistakes + 1


def test_openapi_names_every_status_and_field(client):
    described = client.get("/openapi.json").json()
    for route in ("/generate", "/edit"):
        post = described["paths"][route]["post"]
        assert set(post["responses"]) >= {"200", "401", "413", "415", "422", "429", "499", "500", "503", "504", "507"}
        assert set(post["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
        fields = post["requestBody"]["content"]["application/json"]["schema"]["properties"]
        assert all(field.get("description") for field in fields.values())


def test_while_the_model_loads_the_port_answers():
    with serving() as (url, service):
        health = httpx.get(f"{url}/health")
        assert health.status_code == 503
        assert HealthResponse.model_validate(health.json()).status == "loading"
        assert health.json()["stage"]
        assert httpx.get(f"{url}/ping").status_code == 204
        refused = httpx.post(f"{url}/generate", json=PROMPT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert refused.headers["retry-after"] == "5"
        service.start().result()
        assert httpx.get(f"{url}/health").json()["status"] == "ready"
        assert httpx.get(f"{url}/ping").status_code == 200
        assert httpx.post(f"{url}/generate", json=PROMPT).status_code == 200


def test_without_preloading_the_first_job_waits_for_the_model():
    with serving(preload_models=False) as (url, _):
        assert httpx.get(f"{url}/health").json()["status"] == "idle"
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.post(f"{url}/generate", json=PROMPT, timeout=60).status_code == 200


def test_a_model_that_cannot_be_loaded(tmp_path):
    with serving(model="klein-9b", hf_home=tmp_path) as (url, service):
        service.start().exception()
        health = httpx.get(f"{url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        assert "HUGGING_FACE_TOKEN" in health.json()["message"]
        assert httpx.get(f"{url}/ping").status_code == 503
        assert httpx.post(f"{url}/generate", json=PROMPT).json()["error"]["code"] == "not_ready"


def test_the_key_guards_all_but_health():
    with serving(api_key="canary-key") as (url, service):
        service.start().result()
        for path in ("/health", "/ping", "/"):
            assert httpx.get(f"{url}{path}").status_code == 200
        for headers in (
            {},
            {"X-API-Key": "wrong"},
            {"Authorization": "Bearer"},
            {"Authorization": "Basic canary-key"},
        ):
            for path in ("/generate", "/edit", "/v1/images/generations"):
                refused = httpx.post(f"{url}{path}", json=PROMPT, headers=headers)
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
                assert "canary" not in refused.text
            for path in ("/metrics", "/capabilities", "/docs", "/openapi.json", "/v1/models", "/nowhere"):
                assert httpx.get(f"{url}{path}", headers=headers).status_code == 401
        for headers in ({"X-API-Key": "canary-key"}, {"Authorization": "Bearer canary-key"}):
            assert httpx.post(f"{url}/generate", json=PROMPT, headers=headers).status_code == 200


def test_a_full_queue_refuses_at_once():
    with serving(max_queue=2) as (url, service):
        service.start().result()

        async def many():
            async with httpx.AsyncClient(base_url=url, timeout=60) as many_client:
                job = {**PROMPT, "width": 512, "height": 512}

                async def one():
                    begun = time.monotonic()
                    answer = await many_client.post("/generate", json=job)
                    return answer, time.monotonic() - begun

                return await asyncio.gather(*(one() for _ in range(12)))

        answers = asyncio.run(many())
        statuses = [answer.status_code for answer, _ in answers]
        assert statuses.count(200) == 3  # one runs, two wait
        assert statuses.count(429) == 9
        for answer, _ in answers:
            if answer.status_code == 429:
                assert answer.json()["error"]["retryable"] is True
                assert int(answer.headers["retry-after"]) >= 1


def test_health_is_answered_while_a_job_runs(client):
    with client.stream("POST", "/generate", json=LONG, headers={"Accept": "text/event-stream"}) as answer:
        stream = events(answer)
        next(stream)
        assert client.get("/health").json()["status"] == "busy"
    assert client.get("/health").json()["queue"]["limit"] == 16


def test_other_origins_are_let_in_only_where_they_are_named(client):
    origin = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options("/generate", headers=origin).headers
    with serving(cors_origins="https://a.example, https://b.example") as (url, _):
        allowed = httpx.options(f"{url}/generate", headers=origin)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
