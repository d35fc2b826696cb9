"""PostgreSQL as the store of two servers: their jobs, keys and webhooks are shared, and one that dies loses nothing."""

from __future__ import annotations

import contextlib

import httpx
import pytest
from pydantic import SecretStr

from imagegen.errors import ConfigurationError, StoreFailed
from imagegen.jobs import runner, store
from imagegen.jobs.postgres import PostgresDatabase
from imagegen.jobs.rows import NewJob, Room
from imagegen.jobs.store import Store
from imagegen.server.main import create_app
from tests.jobs import test_expiry, test_store
from tests.jobs.test_jobs import JOB, ended, post
from tests.server.conftest import serving
from tests.support import settings, until
from tests.support.postgres import running
from tests.support.webhook_receiver import SECRET, receiving

pytestmark = pytest.mark.slow  # needs root, to run Debian's server as a user of its own


@pytest.fixture(scope="module")
def server():
    with running() as found:
        yield found


@pytest.fixture
def url(server):
    """The database, empty."""
    database = PostgresDatabase(server[0])
    for table in ("jobs", "idempotency", "used", "workers"):
        database.execute(f"DELETE FROM {table}")
    database.execute("DELETE FROM meta WHERE name <> 'version'")
    database.close()
    return server[0]


@pytest.fixture
def jobs(url):
    database = PostgresDatabase(url)
    yield Store(database, "here")
    database.close()


@pytest.mark.parametrize(
    "test",
    [
        test_store.test_owners_take_turns_and_each_ones_jobs_keep_their_order,
        test_store.test_one_callers_hundred_jobs_keep_another_one_waiting_for_one,
        test_store.test_the_highest_priority_goes_first,
        test_store.test_a_newcomer_is_an_owner_without_a_running_job,
        test_store.test_a_place_is_never_less_than_what_comes_before,
        test_store.test_how_many_may_wait,
        test_store.test_a_job_ends_once,
        test_expiry.test_a_caller_with_many_bytes_makes_room,
        test_expiry.test_a_callers_waiting_references_do_not_fill_the_store,
    ],
)
def test_the_statements_are_the_same(jobs, test):
    test(jobs)


def test_an_idempotency_key(jobs, monkeypatch):
    test_store.test_an_idempotency_key_is_its_owners_and_is_kept_for_a_day(jobs, monkeypatch)


def both(url, folder):
    return {"jobs_database": SecretStr(url), "jobs_dir": folder, "private_hosts": "127.0.0.1", "webhook_secret": SECRET}


def test_two_servers_share_their_jobs(url, tmp_path):
    options = both(url, tmp_path)
    with contextlib.ExitStack() as stack:
        clients, services = [], []
        for _ in range(2):
            base, service = stack.enter_context(serving(**options))
            service.start().result()  # one after the other: what is imported is imported once
            clients.append(stack.enter_context(httpx.Client(base_url=base, timeout=60)))
            services.append(service)
        hook, receiver = stack.enter_context(receiving())
        first, second = clients
        jobs = [post(client, webhook_url=hook, seed=i)["id"] for i, client in enumerate([first, second] * 8)]
        for job in jobs:
            assert ended(second, job)["status"] == "succeeded"
            assert first.get(f"/jobs/{job}/images/0").status_code == 200
        until(lambda: len(receiver.came) >= len(jobs))
        assert {identity for identity, _ in receiver.came} == {f"msg_{job}" for job in jobs}
        assert receiver.wrong == []
        assert len(receiver.came) == len(jobs)  # no one is told by both
        key = {"Idempotency-Key": "k"}
        same = {client.post("/jobs", json=JOB, headers=key).json()["id"] for client in (first, second)}
        assert len(same) == 1
        # A job that runs at one is followed and cancelled at the other.
        long = {**JOB, "num_images": 8, "num_inference_steps": 50, "width": 512, "height": 512}
        slow = [first.post("/jobs", json=long).json()["id"] for _ in range(4)]
        until(lambda: all(second.get(f"/jobs/{job}").json()["status"] == "running" for job in slow))
        assert [second.delete(f"/jobs/{job}").status_code for job in slow] == [200] * 4
        assert {ended(first, job)["status"] for job in slow} == {"cancelled"}
        until(lambda: not any(service.admission.running for service in services))


def test_a_server_with_another_folder_is_refused(url, tmp_path):
    with serving(**both(url, tmp_path / "shared"), preload_models=False):
        with pytest.raises(ConfigurationError, match="IMAGEGEN_JOBS_DIR: is not the folder of the jobs"):
            create_app(settings(**both(url, tmp_path / "another")))
        create_app(settings(**both(url, tmp_path / "shared")))


@pytest.mark.parametrize(
    "test",
    [
        test_expiry.test_a_caller_with_many_keys_forgets_its_own,
        test_expiry.test_a_caller_with_many_expired_jobs_forgets_its_own,
        test_store.test_a_clock_that_is_set_back_keeps_no_webhook_and_no_job_of_a_dead_server,
    ],
)
def test_what_is_forgotten_is_the_same(jobs, monkeypatch, test):
    test(jobs, monkeypatch)


def test_the_jobs_of_a_server_that_died_are_taken_over(url, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ALIVE_SECONDS", 2.0)
    monkeypatch.setattr(runner, "_BEAT", 0.2)
    database = PostgresDatabase(url)
    dead = Store(database, "dead")
    dead.add(NewJob("0" * 32, "127.0.0.1", 1, mode="generate", fields='{"prompt": "a circle"}'), Room(10, 10, 1))
    dead.beat()
    assert dead.claim({}, {}, False) is not None
    database.close()
    with serving(**both(url, tmp_path)) as (base, service), httpx.Client(base_url=base, timeout=60) as client:
        service.start().result()
        assert ended(client, "0" * 32)["status"] == "succeeded"


def test_a_database_that_was_away_is_used_again(server, url, tmp_path):
    with serving(**both(url, tmp_path)) as (base, service), httpx.Client(base_url=base, timeout=60) as client:
        service.start().result()
        ended(client, post(client)["id"])
        server[1]()
        until(lambda: client.post("/jobs", json=JOB).status_code == 202)
        ended(client, post(client)["id"])


def test_what_is_missing_is_said_at_the_start(url, tmp_path):
    for wrong in ("mysql://x/y", "postgresql://127.0.0.1:1/none", "postgresql://"):
        with pytest.raises(ConfigurationError, match="IMAGEGEN_JOBS_DATABASE"):
            create_app(settings(jobs_database=SecretStr(wrong), jobs_dir=tmp_path))
    with pytest.raises(ConfigurationError, match="needs IMAGEGEN_JOBS_DIR"):
        create_app(settings(jobs_database=SecretStr(url)))
    database = PostgresDatabase(url)
    with pytest.raises(StoreFailed):
        database.execute("SELECT nothing FROM nowhere")
    assert database.execute("SELECT 1 AS one") == [{"one": 1}]
    database.close()
