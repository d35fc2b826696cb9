"""Jobs over HTTP, against a real server with micro: what a caller is told, and what becomes of a job."""

from __future__ import annotations

import asyncio
import io
import json
import threading

import httpx
import pytest
from PIL import Image

from imagegen.jobs.runner import Runner
from tests.server.conftest import events, serving
from tests.support import held_gpu, until
from tests.support.images import scene, to_base64

JOB = {"prompt": "a red circle on a blue background", "seed": 42, "width": 128, "height": 128}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(base URL, service) of a server with a folder for its jobs."""
    with serving(jobs_dir=tmp_path_factory.mktemp("jobs"), max_body_mb=3) as (url, service):
        service.start().result()
        yield url, service


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server[0], timeout=60) as open_client:
        yield open_client


def ended(client, job_id):
    def look():
        state = client.get(f"/jobs/{job_id}").json()
        return state if state["status"] not in ("queued", "running") else None

    return until(look, every=0.05)


def post(client, **fields):
    answer = client.post("/jobs", json={**JOB, **fields})
    assert answer.status_code == 202, answer.text
    return answer.json()


def test_a_field_that_changes_nothing_is_warned_of(client):
    done = ended(client, post(client, style="vivid", steps=2)["id"])
    assert done["result"]["warnings"] == ["style: changes nothing here"]


def test_a_job_is_accepted_polled_and_its_image_fetched(client):
    accepted = post(client)
    assert accepted["status"] in ("queued", "running")
    assert accepted["poll_url"] == f"/jobs/{accepted['id']}"
    done = ended(client, accepted["id"])
    assert done["status"] == "succeeded"
    assert done["input"] == JOB
    assert done["created_at"] <= done["started_at"] <= done["finished_at"] < done["expires_at"]
    assert done["result"]["seeds"] == [42]
    image = client.get(done["result"]["urls"][0])
    assert image.headers["content-type"] == "image/png"
    direct = client.post("/generate", json=JOB, headers={"Accept": "image/png"})
    same = [Image.open(io.BytesIO(answer.content)).tobytes() for answer in (image, direct)]
    assert same[0] == same[1]


def test_an_edit_comes_as_a_form_with_files(client):
    reference = io.BytesIO()
    scene("circle", "red", "blue").save(reference, "PNG")
    fields = {"prompt": "make the circle green", "seed": "1", "num_images": "2", "output_format": "jpeg"}
    answer = client.post("/jobs", data=fields, files={"image": ("a.png", reference.getvalue(), "image/png")})
    assert answer.status_code == 202, answer.text
    done = ended(client, answer.json()["id"])
    assert (done["mode"], done["status"]) == ("edit", "succeeded")
    assert "images" not in done["input"]
    assert [client.get(url).headers["content-type"] for url in done["result"]["urls"]] == ["image/jpeg"] * 2
    assert client.get(f"/jobs/{done['id']}/images/2").status_code == 404


def test_events_are_those_of_a_stream_from_the_beginning_and_can_be_resumed(client):
    with client.stream("POST", "/generate?previews=true", json=JOB, headers={"Accept": "text/event-stream"}) as stream:
        expected = [name for name, _ in events(stream)]
    job = client.post("/jobs?previews=true", json=JOB).json()["id"]
    with client.stream("GET", f"/jobs/{job}/events") as stream:
        seen = numbered(stream)
    names = [name for _, name, _ in seen]
    assert names[names.index("queued") :][-len(expected) :] == expected
    numbers = [number for number, _, _ in seen]
    assert numbers == sorted(numbers)
    assert seen[-1][2]["seeds"] == [42]
    assert len(seen[-1][2]["images"]) == 1
    # Once it has ended, from the beginning and from the middle
    with client.stream("GET", f"/jobs/{job}/events") as stream:
        again = numbered(stream)
    assert [name for _, name, _ in again] == expected
    middle = again[2][0]
    with client.stream("GET", f"/jobs/{job}/events", headers={"Last-Event-ID": str(middle)}) as stream:
        assert numbered(stream) == again[3:]
    last = client.get(f"/jobs/{job}/events", headers={"Last-Event-ID": str(again[-1][0])})
    assert last.status_code == 204


def numbered(stream):
    """(number, name, data) of each event."""
    found, number, name = [], None, None
    for line in stream.iter_lines():
        if line.startswith("id: "):
            number = int(line[4:])
        elif line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            found.append((number, name, json.loads(line[6:])))
    return found


def test_a_bad_job_is_refused_at_once_and_a_failed_one_says_why(client):
    refused = client.post("/jobs", json={**JOB, "width": 100})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "width")
    job = post(client, images=[to_base64(b"not an image")])
    done = ended(client, job["id"])
    assert (done["status"], done["error"]["code"], done["error"]["field"]) == ("failed", "bad_reference", "images[0]")
    with client.stream("GET", f"/jobs/{job['id']}/events") as stream:
        assert list(events(stream))[-1] == ("error", done["error"])
    assert client.get(f"/jobs/{job['id']}/images/0").status_code == 404


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"image_url": "AAAA"}, "image_url"),
        ({"image_urls": ["AAAA"]}, "image_urls[0]"),
        ({"input_image": to_base64(scene("circle", "red", "blue")), "input_image_2": "AAAA"}, "input_image_2"),
        ({"size": "100x100"}, "size"),
        ({"response_format": "url"}, "response_format"),
    ],
)
def test_an_error_has_the_callers_name_of_the_field_early_and_late(client, fields, named):
    body = {"prompt": "a red circle", **fields}
    answer = client.post("/jobs", json=body)
    error = (ended(client, answer.json()["id"]) if answer.status_code == 202 else answer.json())["error"]
    assert error["field"] == named
    assert error["message"].startswith(f"{named}: ")
    # The same job by a connection that waits for it
    route = "/edit" if "image" in named else "/generate"
    waited = client.post(route, json=body, headers={"Idempotency-Key": named})
    assert waited.json()["error"] == error


def test_a_warning_has_the_callers_name_of_the_field(client):
    (warning,) = ended(client, post(client, guidance=3.5)["id"])["result"]["warnings"]
    assert warning.startswith("guidance: ")


def test_a_job_is_cancelled_while_it_waits_while_it_runs_and_deleted_when_it_has_ended(server, client):
    with held_gpu(server[1], after=2):
        slow = [post(client, num_inference_steps=50, num_images=8) for _ in range(4)]
        waits = client.get(f"/jobs/{slow[3]['id']}").json()
        assert (waits["status"], waits["place"]) == ("queued", 3)
        assert client.delete(f"/jobs/{slow[3]['id']}").json() == {"id": slow[3]["id"], "status": "cancelled"}
        assert client.get(f"/jobs/{slow[3]['id']}/images/0").status_code == 404
        until(lambda: client.get(f"/jobs/{slow[0]['id']}").json()["step"])
        assert client.get(f"/jobs/{slow[0]['id']}/images/0").status_code == 409
        for job in slow[:3]:
            assert client.delete(f"/jobs/{job['id']}").json()["status"] == "cancelled"
        assert [ended(client, job["id"])["error"]["code"] for job in slow] == ["cancelled"] * 4
        assert client.delete(f"/jobs/{slow[0]['id']}").json()["status"] == "deleted"
        assert client.get(f"/jobs/{slow[0]['id']}").status_code == 404
        assert client.delete(f"/jobs/{slow[0]['id']}").status_code == 404


def test_a_job_that_has_been_claimed_and_has_not_begun_can_be_cancelled(server, client, monkeypatch):
    following, known, asked = Runner._next, Runner.has_begun, threading.Event()

    async def late(self):
        row = await following(self)
        while row is not None and not asked.is_set():
            await asyncio.sleep(0.01)
        return row

    def has_begun(self, job):
        begun = known(self, job)
        if not begun:  # the cancellation has come
            asked.set()
        return begun

    monkeypatch.setattr(Runner, "_next", late)
    monkeypatch.setattr(Runner, "has_begun", has_begun)
    with held_gpu(server[1]):
        try:
            job = post(client, num_inference_steps=50)["id"]
            until(lambda: client.get(f"/jobs/{job}").json()["status"] == "running")
            assert client.delete(f"/jobs/{job}").json() == {"id": job, "status": "cancelled"}
            assert ended(client, job)["error"]["code"] == "cancelled"
        finally:
            asked.set()


def test_jobs_are_listed_in_pages_the_newest_first(client):
    ids = [post(client)["id"] for _ in range(5)]
    found, path = [], "/jobs?limit=2"
    while path and len(found) < 5:
        page = client.get(path).json()
        found += [job["id"] for job in page["jobs"]]
        path = page["next"]
    assert found[:5] == ids[::-1]
    for job in ids:
        ended(client, job)


@pytest.mark.parametrize("job_id", ["x", "0" * 32, "..%2f..%2fetc", "' OR 1=1 --", "A" * 5000])
def test_an_id_that_is_none_is_not_found(client, job_id):
    answers = [client.get(f"/jobs/{job_id}{rest}") for rest in ("", "/events", "/images/0")]
    answers.append(client.delete(f"/jobs/{job_id}"))
    assert {answer.status_code for answer in answers} == {404}


def test_an_error_names_the_bounds_of_this_server():
    with serving(max_steps=8, preload_models=False) as (url, _):
        answer = httpx.post(f"{url}/jobs", json={**JOB, "num_inference_steps": 99})
    assert "1 to 8" in answer.json()["error"]["message"]


def test_without_a_folder_jobs_are_in_memory():
    with serving() as (url, service), httpx.Client(base_url=url, timeout=60) as client:
        service.start().result()
        job = post(client, image=to_base64(scene("circle", "red", "blue")))
        assert client.get(ended(client, job["id"])["result"]["urls"][0]).status_code == 200
