"""Who may come in, how much, and how a mistake is answered."""

import asyncio
import json
import socket
import threading
from types import SimpleNamespace

import httpx
from PIL import Image

from imagegen.server.main import create_app
from tests.server.conftest import running, serving
from tests.support import settings, until
from tests.support.images import scene, to_base64, to_bytes

PROMPT = {"prompt": "a red circle on a blue background", "seed": 42}
LONG = {"prompt": "x", "num_inference_steps": 50, "num_images": 8, "width": 512, "height": 512}
RED_ON_BLUE = scene("circle", "red", "blue")


def test_a_chunked_body_over_the_limit_is_refused(client):
    def chunks():
        for _ in range(50):
            yield b"x" * 100_000

    answer = client.post("/generate", content=chunks(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


def test_a_body_of_a_million_small_things_is_not_read(client, monkeypatch):
    read = []
    monkeypatch.setattr("imagegen.server.bodies.json", SimpleNamespace(loads=read.append, dumps=json.dumps))
    for part in ("[]", "1", '{"a": 1}'):
        body = '{"images": [' + ", ".join([part] * 300_000) + "]}"
        answer = client.post("/edit", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large"), part
    assert read == []


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
    monkeypatch.setattr("imagegen.server.bodies._BODY_SECONDS", 0.5)
    host, port = ready[0].removeprefix("http://").split(":")
    head = (
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    with socket.create_connection((host, int(port)), timeout=300) as gone:
        gone.sendall(head)
    with socket.create_connection((host, int(port)), timeout=300) as slow:
        slow.sendall(head)
        assert b" 504 " in slow.recv(100)
    until(lambda: ready[1].admission._places.taken == 0)
    assert "internal error" not in caplog.text


def test_bodies_that_are_being_read_count_as_jobs():
    with serving(max_queue=0) as (url, service):
        service.start().result()
        upload = service.upload("another")
        assert httpx.post(f"{url}/generate", json=PROMPT).status_code == 429
        upload.release()
        assert httpx.post(f"{url}/generate", json=PROMPT).status_code == 200


def test_a_form_takes_as_large_a_reference_in_base64_as_json(client):
    noise = Image.effect_noise((900, 900), 90).convert("RGB")
    text = to_base64(noise)
    assert len(text) > 1_100_000
    fields = {"prompt": "make the background red", "width": "64", "height": "64", "image": text}
    answer = client.post("/edit", files=[(name, (None, value)) for name, value in fields.items()])
    assert answer.status_code == 200, answer.text[:200]


def test_the_key_guards_all_but_health(monkeypatch):
    monkeypatch.setattr("imagegen.server.access.MAX_DELAY", 0.01)  # tests/server/test_access.py has the delay
    with serving(api_key="canary-key-of-a-caller") as (url, service):
        service.start().result()
        for path in ("/health", "/ping", "/"):
            assert httpx.get(f"{url}{path}").status_code == 200
        for headers in (
            {},
            {"X-API-Key": "wrong"},
            {"Authorization": "Bearer"},
            {"Authorization": "Basic canary-key-of-a-caller"},
        ):
            for path in ("/generate", "/edit", "/v1/images/generations"):
                refused = httpx.post(f"{url}{path}", json=PROMPT, headers=headers)
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
                assert "canary" not in refused.text
            for path in ("/metrics", "/capabilities", "/docs", "/openapi.json", "/v1/models", "/nowhere"):
                assert httpx.get(f"{url}{path}", headers=headers).status_code == 401
        for headers in ({"X-API-Key": "canary-key-of-a-caller"}, {"Authorization": "Bearer canary-key-of-a-caller"}):
            assert httpx.post(f"{url}/generate", json=PROMPT, headers=headers).status_code == 200


def test_a_full_queue_refuses_at_once():
    """The job that runs is held until those that find no room are refused."""
    with serving(max_queue=3) as (url, service):
        refused, all_refused = [], threading.Event()

        def hold(*_):
            all_refused.wait(60)

        service.start().result()._pipe.transformer.register_forward_pre_hook(hold)

        async def many():
            async with httpx.AsyncClient(base_url=url, timeout=120) as many_client:

                async def one():
                    answer = await many_client.post("/generate", json=PROMPT)
                    if answer.status_code == 429:
                        refused.append(answer)
                    if len(refused) == 9:
                        all_refused.set()
                    return answer.status_code

                return await asyncio.gather(*(one() for _ in range(12)))

        assert sorted(asyncio.run(many())) == [200] * 3 + [429] * 9  # the last place is for another caller
        for answer in refused:
            assert answer.json()["error"]["retryable"] is True
            assert int(answer.headers["retry-after"]) >= 1


def test_other_origins_are_let_in_only_where_they_are_named(client):
    origin = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options("/generate", headers=origin).headers
    with serving(cors_origins="https://a.example, https://b.example", preload_models=False) as (url, _):
        allowed = httpx.options(f"{url}/generate", headers=origin)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"


def test_head_is_get_without_a_body(client):
    for path in (
        "/",
        "/health",
        "/ping",
        "/capabilities",
        "/metrics",
        "/v1/models",
        "/v1/models/micro",
        "/openapi.json",
    ):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"") == (200, b""), path
        assert head.headers["content-type"] == get.headers["content-type"] if get.content else True
    assert client.head("/generate").status_code == 405


def test_a_page_may_send_any_header():
    """OpenAI's client sends a dozen of its own."""
    with serving(cors_origins="https://a.example", preload_models=False) as (url, _):
        asked = {
            "Origin": "https://a.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-arch,x-stainless-retry-count",
        }
        answer = httpx.options(f"{url}/v1/images/generations", headers=asked)
        assert answer.status_code == 200
        allowed = answer.headers["access-control-allow-headers"].lower()
        assert all(name in allowed for name in asked["Access-Control-Request-Headers"].split(","))
        assert httpx.options(f"{url}/generate", headers={**asked, "Origin": "https://b.example"}).status_code == 400


def test_a_slash_at_the_end_of_a_path_means_nothing(client):
    for path in ("/health", "/ping", "/capabilities", "/v1/models", "/v1/models/micro", "/jobs", "/openapi.json"):
        with_slash = client.get(f"{path}/")
        assert (with_slash.status_code, with_slash.content) == (200, client.get(path).content), path
    assert client.post("/generate/", json=PROMPT).status_code == 200
    assert client.post("/v1/images/generations/", json={"prompt": "x"}).status_code == 200


def test_another_method_is_answered_with_those_of_the_path(client):
    paths = {"/jobs": "GET, HEAD, POST", "/generate": "POST", "/health": "GET, HEAD", "/studio/main.js": "GET, HEAD"}
    for path, allowed in paths.items():
        for method in ("OPTIONS", "PUT"):
            answer = client.request(method, path)
            assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)


def test_a_mistake_in_a_query_is_in_plain_words(client):
    for query, message in (
        ("/jobs?limit=0", "limit: '0' is out of bounds (at least 1)"),
        ("/jobs?limit=101", "limit: '101' is out of bounds (at most 100)"),
        ("/jobs?limit=many", "limit: must be an integer, and not 'many'"),
    ):
        assert client.get(query).json()["error"]["message"] == message
    answer = client.post("/generate?previews=maybe", json=PROMPT)
    assert answer.json()["error"]["message"] == "previews: must be true or false, and not 'maybe'"
    assert client.get("/v1/get_result").json()["detail"][0]["msg"] == "id: is missing"


def test_a_form_as_javascript_and_php_write_it(client):
    picture = ("a.png", to_bytes(RED_ON_BLUE))
    unset = {name: (None, text) for name, text in (("seed", "null"), ("mask", "undefined"), ("expand", "{}"))}
    form = {"prompt": (None, "make the circle green"), "image[0]": picture, "image[1]": picture, **unset}
    assert len(client.post("/edit", files=form).json()["images"]) == 1
    twice = [
        ("prompt", (None, "make the circle green")),
        ("image", ("", b"")),
        ("image", ("", b"")),
        ("image", picture),
    ]
    assert client.post("/edit", files=twice).status_code == 200
    answer = client.post("/edit", files={"prompt": (None, "x"), "imagee": picture})
    text = "imagee: is not a field that takes a file; the nearest that does is image"
    assert answer.json()["error"]["message"] == text
    for given, message in (('{"left": "16"}', "expand.left: must be an integer, and not '16'"), ("[1", "such as")):
        answer = client.post("/edit", files={"prompt": (None, "x"), "image": picture, "expand": (None, given)})
        assert message in answer.json()["error"]["message"]
