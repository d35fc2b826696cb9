"""The trace of a stored job goes on in the next process, and to the webhook's receiver; no other host learns of it."""

import http.server
import threading
import time

import httpx
import pytest

from imagegen.jobs import webhooks
from imagegen.jobs.database import SqliteDatabase
from imagegen.telemetry import tracing
from tests.jobs.test_jobs import ended, post
from tests.server.conftest import serving
from tests.support import until
from tests.support.images import scene, to_bytes
from tests.support.webhook_receiver import SECRET, receiving
from tests.telemetry.conftest import PARENT, SPAN, TRACE


@pytest.fixture
def otlp(collector, monkeypatch):
    """The spans that the collector has been sent, once a server has ended."""
    url, spans = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    yield spans
    tracing.close()


def test_a_stored_job_and_its_webhook_go_on_with_the_trace_of_their_request_in_the_next_process(
    otlp, tmp_path, monkeypatch
):
    monkeypatch.setattr(webhooks, "DELAYS", (600.0,))
    monkeypatch.setattr(webhooks, "_SECONDS", 300.0)  # a busy machine is no fault of the receiver
    came = []

    def refuse_the_first(handler, number):
        came.append(handler.headers["traceparent"])
        handler.send_answer(500 if number == 1 else 204)

    options = {"jobs_dir": tmp_path, "private_hosts": "127.0.0.1", "webhook_secret": SECRET}
    with receiving() as (hook, receiver):
        receiver.answer = refuse_the_first
        with serving(**options) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
            client.headers["traceparent"] = PARENT
            job = post(client, webhook_url=hook)
            until(lambda: client.get(f"/jobs/{job['id']}").json()["webhook"]["tries"] == 1)
        # The first process has ended before the second try is due, and the second one begins when it is.
        monkeypatch.setattr(SqliteDatabase, "now", lambda _: time.time() + 600)
        with serving(**options) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
            until(lambda: client.get(f"/jobs/{job['id']}").json()["webhook"]["status"] == "delivered")
    named = {}
    for _, span in otlp:
        assert span.trace_id.hex() == TRACE
        named.setdefault(span.name, []).append(span)
    [request], [stored], [generate] = named["POST"], named["job"], named["generate"]
    assert request.parent_span_id.hex() == SPAN
    assert stored.parent_span_id == request.span_id
    assert generate.parent_span_id == stored.span_id
    assert came == [f"00-{TRACE}-{span.span_id.hex()}-01" for span in named["webhook"]]
    assert [span.parent_span_id for span in named["webhook"]] == [request.span_id] * 2
    assert [span.status.message for span in named["webhook"]] == ["not delivered", ""]


def test_the_host_of_a_reference_learns_nothing_of_the_trace(otlp):
    asked = []

    class Host(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(dict(self.headers))
            body = to_bytes(scene("circle", "red", "blue"))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    reference = f"http://127.0.0.1:{host.server_port}/circle.png"
    with (
        serving(private_hosts="127.0.0.1") as (url, _),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        client.headers["traceparent"] = PARENT
        job = post(client, mode="edit", prompt="make the circle green", images=[reference])
        assert ended(client, job["id"])["status"] == "succeeded"
    host.shutdown()
    host.server_close()
    assert asked
    assert not [name for headers in asked for name in headers if name.lower() in ("traceparent", "tracestate")]


def test_without_traces_a_webhook_has_no_header_of_them():
    came = []
    with (
        receiving() as (hook, receiver),
        serving(private_hosts="127.0.0.1", webhook_secret=SECRET) as (url, _),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        receiver.answer = lambda handler, _: came.append(handler.headers["traceparent"]) or handler.send_answer(204)
        post(client, webhook_url=hook)
        until(lambda: came)
    assert came == [None]
