"""What is kept, for how long, and what becomes of jobs when there is no room or the disk fails."""

from __future__ import annotations

import asyncio
import errno
import io
import sqlite3
from pathlib import Path

import httpx
import pytest
from PIL import Image

from imagegen.contract.requests import parse_job
from imagegen.jobs import database, expiry, files, jobs, runner
from imagegen.jobs.archive import Archive
from imagegen.jobs.rows import NewJob, Room
from tests.jobs.test_jobs import JOB, ended, post
from tests.server.conftest import serving
from tests.support import settings, until
from tests.support.images import to_base64

#: A reference of about 200 KB as it is sent.
LARGE = to_base64(Image.effect_noise((384, 384), 80).convert("RGB"))


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(jobs, "_HOUSEKEEPING", 0.05)
    monkeypatch.setattr(runner, "_PAUSE", 0.05)


def served(**changes):
    return serving(max_body_mb=3, **changes)


def test_an_ended_job_expires_and_its_caller_is_told(tmp_path):
    with (
        served(jobs_dir=tmp_path, jobs_keep_hours=2 / 3600) as (url, service),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        service.start().result()
        job = post(client)["id"]
        until(lambda: client.get(f"/jobs/{job}").status_code == 410)
        for path in ("", "/events", "/images/0"):
            answer = client.get(f"/jobs/{job}{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (410, "expired")
        assert client.delete(f"/jobs/{job}").status_code == 410
        (listed,) = client.get("/jobs").json()["jobs"]
        assert (listed["status"], listed["input"], listed["result"]) == ("expired", {}, None)
    assert [path for path in (tmp_path / "images").rglob("*") if path.is_file()] == []


def test_jobs_that_are_cancelled_at_once_do_not_fill_the_store(monkeypatch):
    """Their rows count; what is over the limit expires, and of that the oldest is forgotten."""
    monkeypatch.setattr(expiry, "_MOST_EXPIRED", 5)
    monkeypatch.setattr(expiry, "_MOST_KEYS", 5)
    with (
        served(jobs_max_mb=0.03, preload_models=False) as (url, _),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        for i in range(40):
            job = client.post("/jobs", json=JOB, headers={"Idempotency-Key": str(i)}).json()["id"]
            assert client.delete(f"/jobs/{job}").status_code == 200

        def few():
            answer = client.get("/jobs?limit=100").json()["jobs"]
            return len(answer) < 30 and [one["status"] for one in answer]

        assert set(until(few)) == {"cancelled", "expired"}


@pytest.mark.slow  # starts a server each
@pytest.mark.parametrize("folder", [True, False], ids=["a folder", "memory"])
def test_the_oldest_make_room_and_references_without_room_are_refused(tmp_path, folder):
    size = len(LARGE) / 1e6
    with (
        served(jobs_dir=tmp_path if folder else None, jobs_max_mb=1.2 * size) as (url, service),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        service.start().result()
        first = [post(client, width=256, height=256, seed=i)["id"] for i in range(3)]
        for job in first:
            ended(client, job)
        edit = post(client, images=[LARGE])["id"]
        assert client.get(f"/jobs/{first[0]}").status_code == 410
        refused = client.post("/jobs", json={**JOB, "images": [LARGE, LARGE]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "payload_too_large")
        assert client.get(f"/jobs/{first[2]}").status_code == 200  # no job expired for one that can never have room
        assert ended(client, edit)["status"] == "succeeded"
        assert ended(client, post(client)["id"])["status"] == "succeeded"  # one without references


def test_a_full_disk_refuses_new_jobs_and_loses_none(tmp_path, monkeypatch):
    full, tries = True, 0
    write = files.FolderFiles.write

    def failing(self, name, data):
        nonlocal tries
        if full:
            tries += 1
            raise database.failed(OSError(errno.ENOSPC, "No space left on device"))
        write(self, name, data)

    monkeypatch.setattr(files.FolderFiles, "write", failing)
    with served(jobs_dir=tmp_path) as (url, service), httpx.Client(base_url=url, timeout=60) as client:
        service.start().result()
        refused = client.post("/jobs", json={**JOB, "images": [LARGE]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "store_failed")
        assert "disk of the store of jobs is full" in refused.json()["error"]["message"]
        job = post(client)["id"]
        until(lambda: tries > 4)  # its image is there, and cannot be stored
        assert client.get(f"/jobs/{job}").json()["status"] == "running"
        assert client.delete(f"/jobs/{job}").status_code == 409
        full = False
        done = ended(client, job)
        assert done["status"] == "succeeded"
        with client.stream("GET", f"/jobs/{job}/events") as stream:
            steps = [line for line in stream.iter_lines() if line == "event: drawn"]
        assert len(steps) == 1  # generated once
        assert client.get(done["result"]["urls"][0]).status_code == 200


@pytest.mark.slow  # starts a server
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), FileNotFoundError()], ids=["io", "gone"])
def test_a_reference_that_cannot_be_read_is_read_again_and_named_in_the_end(tmp_path, monkeypatch, error):
    monkeypatch.setattr(runner, "_READ_AGAIN", (0.01, 0.01))
    failures, opened = 0, Path.open

    def failing(self, *args, **kwargs):
        nonlocal failures
        if ".in.images.1" in self.name and failures:
            failures -= 1
            raise error
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", failing)
    with served(jobs_dir=tmp_path) as (url, service), httpx.Client(base_url=url, timeout=60) as client:
        service.start().result()
        for failures, status in ((2, "succeeded"), (3, "failed")):  # noqa: B007 - `failing` counts it down
            job = ended(client, post(client, input_image=LARGE, input_image_2=LARGE)["id"])
            assert job["status"] == status, job
        assert (job["error"]["code"], job["error"]["field"]) == ("store_failed", "input_image_2")
        assert job["error"]["retryable"]


@pytest.mark.slow  # starts a server
def test_a_database_that_fails_refuses_and_the_server_lives_on(tmp_path, monkeypatch):
    execute, full = database.SqliteDatabase.execute, False

    def failing(self, statement, values=()):
        if full and not statement.startswith("SELECT"):
            raise database.failed(sqlite3.OperationalError("database or disk is full"))
        return execute(self, statement, values)

    monkeypatch.setattr(database.SqliteDatabase, "execute", failing)
    with served(jobs_dir=tmp_path) as (url, service), httpx.Client(base_url=url, timeout=60) as client:
        service.start().result()
        full = True
        assert client.post("/jobs", json=JOB).status_code == 507
        assert client.post("/generate", json=JOB).status_code == 200  # needs no store
        full = False
        assert ended(client, post(client)["id"])["status"] == "succeeded"


def test_references_of_jobs_that_were_never_accepted_go_at_the_next_start(tmp_path):
    (tmp_path / "inputs").mkdir(parents=True)
    left = tmp_path / "inputs" / files.input_name("0" * 32, "images.0")
    left.write_bytes(b"x")
    with served(jobs_dir=tmp_path) as (url, _):
        assert httpx.get(f"{url}/jobs").json()["jobs"] == []
        assert not left.exists()


def test_images_of_a_start_that_was_killed_go_with_their_job(tmp_path):
    """They were stored, and their job's row was not: it waits again, and is cancelled."""
    identity, other = "a" * 32, "a" * 31 + "b"
    archive = Archive(settings(jobs_dir=tmp_path))
    folder = files.FolderFiles(tmp_path)
    for name in (files.image_name(identity, 0, "png"), files.image_name(other, 0, "png")):
        folder.write(name, b"x")
    (tmp_path / "images" / "aa" / f"{identity}.1.png.part").write_bytes(b"x")

    async def cancel():
        row, _ = await archive.add(NewJob(identity, "alice", 1), parse_job(JOB), Room(9, 9, 1), None)
        await archive.end(row, "cancelled")

    asyncio.run(cancel())
    archive.close()
    assert [path.name for path in (tmp_path / "images" / "aa").iterdir()] == [f"{other}.0.png"]


@pytest.mark.slow  # starts a server
def test_an_image_that_somebody_deleted_is_gone_and_no_error(tmp_path):
    with served(jobs_dir=tmp_path) as (url, service), httpx.Client(base_url=url, timeout=60) as client:
        service.start().result()
        job = ended(client, post(client)["id"])
        for path in (tmp_path / "images").rglob("*.png"):
            assert Image.open(io.BytesIO(path.read_bytes())).size == (128, 128)
            path.unlink()
        assert client.get(job["result"]["urls"][0]).status_code == 410
        assert client.delete(f"/jobs/{job['id']}").json()["status"] == "deleted"
