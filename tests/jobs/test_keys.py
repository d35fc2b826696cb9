"""Callers with keys of their own: what each may have, and that none sees or delays another's jobs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time

import httpx
import pytest

from imagegen.errors import ConfigurationError
from imagegen.jobs import keys
from imagegen.jobs.archive import Archive
from imagegen.jobs.runner import Runner
from imagegen.server.main import create_app
from tests.jobs.test_jobs import JOB, ended, post
from tests.server.conftest import serving
from tests.support import held_gpu, settings, until

#: The callers' keys, by their names.
KEYS = {name: f"the-key-of-{name}" * 2 for name in ("alice", "bob", "carol")}


def write(path, **more):
    """The file of the keys, with more lines for some of them."""
    text = ""
    for name, key in KEYS.items():
        text += f'[{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n{more.get(name, "")}\n'
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)
    return path


@contextlib.contextmanager
def callers(url):
    """A client for each key."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60))
            for key in KEYS.values()
        ]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    file = write(folder / "keys.toml", carol="requests_per_minute = 3")
    with serving(api_keys_file=file, jobs_dir=folder / "jobs", api_key="root:" + "r" * 16) as (url, service):
        service.start().result()
        yield url, file, service


@pytest.fixture(autouse=True)
def _same_window(monkeypatch):
    """No test crosses the border of two minutes or days."""
    now = time.time() // 60 * 60 + 1
    monkeypatch.setattr(time, "time", lambda: now)


def test_another_keys_job_does_not_exist(server):
    with callers(server[0]) as (alice, bob, _):
        job = post(alice)["id"]
        ended(alice, job)
        paths = [f"/jobs/{job}", f"/jobs/{job}/events", f"/jobs/{job}/images/0"]
        assert {bob.get(path).status_code for path in paths} == {404}
        assert bob.delete(f"/jobs/{job}").status_code == 404
        assert job not in [one["id"] for one in bob.get("/jobs").json()["jobs"]]
        assert bob.get(f"/jobs?before={job}").status_code == 404
        assert [alice.get(path).status_code for path in paths] == [200, 200, 200]


def test_another_keys_running_request_is_not_cancelled(server):
    with held_gpu(server[2], after=1), callers(server[0]) as (alice, bob, _):
        body = {**JOB, "num_images": 8, "num_inference_steps": 50}
        with alice.stream("POST", "/generate", json=body, headers={"Accept": "text/event-stream"}) as stream:
            identity = stream.headers["x-request-id"]
            lines = stream.iter_lines()  # whose end would close the connection
            next(lines)
            assert bob.delete(f"/jobs/{identity}").status_code == 404
            assert alice.delete(f"/jobs/{identity}").status_code == 200


def test_the_one_key_of_before_still_works_and_a_wrong_one_does_not(server):
    assert httpx.get(f"{server[0]}/jobs", headers={"X-API-Key": "r" * 16}).status_code == 200
    assert httpx.get(f"{server[0]}/jobs", headers={"x-key": KEYS["alice"]}).status_code == 200
    assert httpx.get(f"{server[0]}/jobs").status_code == 401
    assert httpx.get(f"{server[0]}/jobs", headers={"X-API-Key": "wrong" * 4}).status_code == 401


def test_requests_a_minute(server):
    with callers(server[0]) as (_, _, carol):
        codes = [carol.post("/jobs", json=JOB).status_code for _ in range(3)]
        assert codes == [202] * 3
        refused = carol.post("/generate", json=JOB)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "limit_exceeded"
        assert refused.json()["error"]["field"] == "requests_per_minute"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert carol.get("/jobs").status_code == 200  # to look is no request for an image


def test_the_file_is_read_again_and_a_broken_one_changes_nothing(server, monkeypatch):
    monkeypatch.setattr(keys, "_LOOK", 0.0)
    url, file, _ = server
    with callers(url) as (alice, _, _):
        write(file, alice="jobs_waiting = 1\nmegapixels_per_day = 0.02")
        assert post(alice)["id"]
        assert alice.post("/jobs", json={**JOB, "seed": 1}).json()["error"]["field"] == "megapixels_per_day"
        file.write_text("[alice\n")
        assert alice.post("/jobs", json=JOB).json()["error"]["field"] == "megapixels_per_day"
        write(file)
        post(alice)


@pytest.mark.slow  # waits for several jobs
def test_jobs_of_a_key_that_is_taken_away_are_done_and_seen_once_it_is_back(server, monkeypatch):
    monkeypatch.setattr(keys, "_LOOK", 0.0)
    url, file, _ = server
    with callers(url) as (alice, bob, _):
        jobs = [post(alice, num_inference_steps=20)["id"] for _ in range(3)]
        text = file.read_text()
        file.write_text(text[text.index("[bob]") :])
        assert alice.get(f"/jobs/{jobs[0]}").status_code == 401
        assert bob.get(f"/jobs/{jobs[0]}").status_code == 404
        ended(bob, post(bob)["id"])
        file.write_text(text)
        assert [ended(alice, job)["status"] for job in jobs] == ["succeeded"] * 3


@pytest.mark.slow  # starts two servers
def test_megapixels_of_a_day_count_what_was_made_and_survive_a_restart(tmp_path, monkeypatch):
    file = write(tmp_path / "keys.toml", bob="megapixels_per_day = 0.04")  # 128x128 are 0.0164
    for left in (2, 0):
        with (
            serving(api_keys_file=file, jobs_dir=tmp_path / "jobs") as (url, service),
            callers(url) as (_, bob, _),
        ):
            service.start().result()
            for i in range(left):
                assert bob.post("/generate", json=JOB).status_code == 200
                broken = bob.post("/jobs", json={**JOB, "images": ["AAAA"]})  # which costs nothing in the end
                assert broken.status_code in (202, 429)
                if broken.status_code == 202:
                    ended(bob, broken.json()["id"])
                assert i < 2
            refused = bob.post("/generate", json=JOB)
            assert (refused.status_code, refused.json()["error"]["field"]) == (429, "megapixels_per_day")
            refused = bob.post("/v1/images/generations", json={"prompt": "a red circle", "size": "128x128"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (429, "megapixels_per_day")


def test_jobs_that_wait(tmp_path):
    file = write(tmp_path / "keys.toml", bob="jobs_waiting = 2")
    with serving(api_keys_file=file) as (url, _), callers(url) as (alice, bob, _):  # the model is loading: all wait
        answers = [bob.post("/jobs", json=JOB) for _ in range(8)]
        refused = next(answer for answer in answers if answer.status_code != 202)
        assert refused.status_code == 429
        assert refused.json()["error"]["field"] == "jobs_waiting"
        assert int(refused.headers["retry-after"]) >= 1
        assert alice.post("/jobs", json=JOB).status_code == 202


@pytest.mark.slow  # runs thirty jobs
def test_a_caller_with_many_jobs_does_not_keep_another_waiting(tmp_path, monkeypatch):
    file, begun, begin = write(tmp_path / "keys.toml"), [], Runner._begin
    monkeypatch.setattr(Runner, "_begin", lambda self, row: (begun.append(row.owner), begin(self, row)))
    came, store = {}, Archive.add

    async def add(self, job, *rest):
        row = await store(self, job, *rest)
        came[job.owner] = len(begun)
        return row

    monkeypatch.setattr(Archive, "add", add)
    with serving(api_keys_file=file) as (url, service), callers(url) as (alice, bob, carol):
        with held_gpu(service) as release:  # until all jobs have come
            for _ in range(20):
                post(alice, num_inference_steps=10)
            until(lambda: begun)
            others = {name: (other, post(other)["id"]) for name, other in (("bob", bob), ("carol", carol))}
            release.set()
            for other, job in others.values():
                ended(other, job)
        for name in others:
            assert begun[came[name] : begun.index(name)].count("alice") <= 4  # of the nineteen that came before
        assert begun[: begun.index("carol")].count("alice") < 20


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[alice\n", "is not TOML"),
        ("alice = 1\n", "alice"),
        ('[alice]\nsha256 = "abc"\n', "sha256"),
        ("[alice]\n", "sha256"),
        (f'["a b"]\nsha256 = "{"0" * 64}"\n', "is no name"),
        (f'[alice]\nsha256 = "{"0" * 64}"\nrequests = 1\n', "requests"),
        (f'[alice]\nsha256 = "{"0" * 64}"\nrequests_per_minute = 0\n', "requests_per_minute"),
        (f'[alice]\nsha256 = "{"0" * 64}"\njobs_waiting = true\n', "jobs_waiting"),
        (f'[alice]\nsha256 = "{"0" * 64}"\n[bob]\nsha256 = "{"0" * 64}"\n', "the same key"),
        (f'[root]\nsha256 = "{"0" * 64}"\n', "root"),
    ],
)
def test_a_wrong_file_ends_the_start(tmp_path, text, why):
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=why):
        create_app(settings(api_keys_file=file, api_key="root:" + "r" * 16))


def test_a_file_that_is_missing_ends_the_start(tmp_path):
    with pytest.raises(ConfigurationError, match="IMAGEGEN_API_KEYS"):
        create_app(settings(api_keys_file=tmp_path / "none.toml"))


@pytest.mark.slow  # starts a server
def test_a_job_that_was_accepted_is_found_again_where_the_limit_is_reached(tmp_path):
    file = write(tmp_path / "keys.toml", bob="megapixels_per_day = 0.02\njobs_waiting = 1")
    with serving(api_keys_file=file) as (url, service), callers(url) as (_, bob, _):
        service.start().result()
        first = bob.post("/generate", json=JOB, headers={"Idempotency-Key": "k"})
        assert bob.post("/generate", json=JOB).status_code == 429
        again = bob.post("/generate", json=JOB, headers={"Idempotency-Key": "k"})
        assert (again.status_code, again.json()) == (200, first.json())
