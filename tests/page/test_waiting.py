"""What a job waits for is seen, and it goes on by itself."""

import re
import threading

import httpx
import pytest
from playwright.sync_api import expect

from imagegen.model.pipeline import FluxPipeline
from tests.page.conftest import generate, tiles, violations
from tests.server.conftest import serving
from tests.support import held_gpu, until

pytestmark = pytest.mark.slow

#: Seconds of the GPU thread on the miniature, to be cancelled.
LONG = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 50, "num_images": 8}


@pytest.fixture
def tab(browser):
    context = browser.new_context()
    yield context.new_page()
    context.close()


def ask(page, prompt="a red circle on a blue background"):
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Generate", exact=True).click()


def test_the_place_in_the_queue_and_the_seconds_left(tab):
    with serving() as (url, service):
        service.start().result()
        with held_gpu(service):
            first = httpx.post(f"{url}/jobs", json=LONG).json()["id"]
            tab.goto(url)
            ask(tab)
            expect(tab.locator("#status")).to_have_text("Waiting: 1 job before this one.")
            assert violations(tab) == []
            httpx.delete(f"{url}/jobs/{first}")
        expect(tab.locator("#status")).to_contain_text("Done in")
        tab.get_by_label("Images", exact=True).fill("8")
        tab.get_by_label("Steps").fill("50")
        with held_gpu(service, after=20):
            ask(tab)
            expect(tab.locator("#status")).to_have_text(re.compile(r"Step \d+ of 400\. About \d+ seconds? left\."))
            tab.get_by_role("button", name="Cancel").click()


def test_a_full_queue_counts_down_and_tries_again(tab):
    with serving(jobs_max_waiting=2) as (url, service):
        service.start().result()
        jobs, others = (
            [],
            [
                httpx.Client(transport=httpx.HTTPTransport(local_address=f"127.0.0.{n}"), timeout=60)
                for n in range(2, 12)
            ],
        )
        with held_gpu(service):  # so that no job ends, which would leave a place
            for other in others:
                if (answer := other.post(f"{url}/jobs", json=LONG)).status_code == 429:
                    break
                jobs.append((other, answer.json()["id"]))
                if len(jobs) <= 4:  # so many run: none of them leaves a place later
                    poll = f"{url}{answer.json()['poll_url']}"
                    until(lambda other=other, poll=poll: other.get(poll).json()["status"] == "running")
            tab.goto(url)
            ask(tab)
            expect(tab.locator("#status")).to_contain_text("The queue is full. Next try in")
            assert violations(tab) == []
            for other, job in jobs:
                other.delete(f"{url}/jobs/{job}")
        expect(tab.locator("#status")).to_contain_text("Done in")
        for other in others:
            other.close()


def test_a_server_that_loads_shows_it_and_the_job_begins_when_it_is_ready(tab, monkeypatch):
    loaded, load = threading.Event(), FluxPipeline.load
    monkeypatch.setattr(FluxPipeline, "load", lambda self: (loaded.wait(), load(self)))
    with serving() as (url, _):
        try:
            tab.goto(url)
            expect(tab.locator("#notice")).to_contain_text("The model is not ready yet")
            ask(tab)
            expect(tab.locator("#status")).to_contain_text("Starts by itself")
            assert violations(tab) == []
            loaded.set()
            expect(tab.locator("#status")).to_contain_text("Done in")
            expect(tab.locator("#notice")).to_be_empty()
        finally:
            loaded.set()  # or the server would not end


def test_a_model_that_cannot_be_loaded_is_no_ready_server(tab, tmp_path):
    with serving(model_path=str(tmp_path)) as (url, service):
        with pytest.raises(Exception, match=r".+"):
            service.start().result()
        tab.goto(url)
        expect(tab.locator("#notice")).to_contain_text("could not be loaded")
        expect(tab.locator("#service")).to_contain_text("could not be loaded")
        ask(tab)
        expect(tab.locator("#error")).not_to_be_empty()
        assert violations(tab) == []


def test_a_lost_connection_is_said_and_the_job_goes_on(tab, tmp_path, unused_port):
    with serving(listen=unused_port, jobs_dir=tmp_path) as (url, service):
        service.start().result()
        tab.goto(url)
        tab.get_by_label("Steps").fill("50")
        tab.get_by_label("Images", exact=True).fill("2")
        tab.get_by_role("radio", name="Custom").check()
        tab.get_by_label("Width").fill("256")
        tab.get_by_label("Height").fill("256")
        with held_gpu(service, after=3):
            ask(tab)
            expect(tab.locator("#status")).to_contain_text("Step ")
            tab.context.set_offline(True)
            tab.evaluate("window.dispatchEvent(new Event('offline'))")
            expect(tab.locator("#service")).to_contain_text("not reachable")
            expect(tab.locator("#service")).not_to_contain_text("micro")
            assert violations(tab) == []
        tab.context.set_offline(False)
        expect(tab.locator("#service")).to_contain_text("micro")
        expect(tab.locator("#status")).to_contain_text("Done in")


def test_a_server_that_was_started_anew_gets_the_job_again(tab, unused_port):
    with serving(listen=unused_port) as (url, service):
        service.start().result()
        tab.goto(url)
        expect(tab.locator("#service")).to_contain_text("micro")
        service.choose()
    expect(tab.locator("#notice")).to_contain_text("connection to the server is lost")
    ask(tab)
    expect(tab.locator("#status")).to_contain_text("The connection is lost.")
    with serving(listen=unused_port) as (url, service):
        service.start().result()
        expect(tab.locator("#status")).to_contain_text("Done in")


def test_a_reload_finds_the_running_job_and_the_images(tab):
    with serving() as (url, service):
        service.start().result()
        tab.goto(url)
        generate(tab, "a green square on a white background")
        with held_gpu(service):
            busy = httpx.post(f"{url}/jobs", json=LONG).json()["id"]
            ask(tab, "a yellow star on a purple background")
            expect(tab.locator("#status")).to_contain_text("Waiting")
            tab.reload()
            expect(tab.locator("#strip img")).to_have_count(1)
            expect(tab.locator("#status")).to_contain_text("Waiting")
            httpx.delete(f"{url}/jobs/{busy}")
        expect(tab.locator("#strip img")).to_have_count(2)
        expect(tiles(tab).locator("img")).to_have_attribute("alt", "a yellow star on a purple background")
        assert len(httpx.get(f"{url}/jobs").json()["jobs"]) == 3  # nothing was sent twice
        tab.get_by_role("button", name="Clear").click()
        tab.get_by_role("button", name="Delete").click()
        expect(tab.locator("#strip img")).to_have_count(0)
        until(lambda: [job["status"] for job in httpx.get(f"{url}/jobs").json()["jobs"]] == ["cancelled"])
        tab.reload()
        expect(tab.locator("#service")).to_contain_text("micro")
        expect(tab.locator("#strip img")).to_have_count(0)
        assert [job["status"] for job in httpx.get(f"{url}/jobs").json()["jobs"]] == ["cancelled"]
