"""Traces as a collector receives them: OTLP over HTTP, on loopback."""

import asyncio

import httpx
import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from imagegen.errors import ConfigurationError
from imagegen.runpod import handler
from imagegen.server.main import create_app
from imagegen.settings import Settings
from imagegen.telemetry import tracing
from tests.telemetry.conftest import PARENT, SPAN, TRACE


def settings():
    return Settings(model="micro", preload_models=False)  # the first job loads it


@pytest.fixture
def traced(collector, monkeypatch):
    """A server whose traces the collector receives, once it has ended."""
    url, spans = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    yield create_app(settings()), spans
    tracing.close()


def attributes(span):
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


def test_a_job_has_a_span_and_one_for_each_of_its_stages(traced):
    app, spans = traced
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.post(
            "/generate", json={"prompt": "a red circle", "num_images": 2}, headers={"traceparent": PARENT}
        )
        assert answer.status_code == 200
        client.get("/health")
    named = {}
    for about, span in spans:
        assert about["service.name"] == "image-gen"
        assert span.trace_id.hex() == TRACE
        named.setdefault(span.name, []).append(span)
    [post], [job] = named["POST"], named["generate"]
    assert post.parent_span_id.hex() == SPAN
    assert job.parent_span_id == post.span_id
    assert answer.headers["traceparent"].split("-")[1:3] == [TRACE, post.span_id.hex()]
    assert attributes(post)["http.route"] == "/generate"
    known = attributes(job)
    assert (known["imagegen.outcome"], known["imagegen.model"], known["imagegen.size"]) == ("ok", "micro", "128x128")
    for stage in ("load", "queue", "encode_prompt", "denoise", "decode", "deliver"):
        for span in named[stage]:
            assert span.parent_span_id == job.span_id
            assert span.end_time_unix_nano >= span.start_time_unix_nano
            assert span.end_time_unix_nano <= job.end_time_unix_nano + 1_000_000
    assert len(named["denoise"]) == 2
    first, second = named["denoise"]
    assert first.end_time_unix_nano <= second.start_time_unix_nano + 1_000_000
    timings = answer.json()["timings"]
    spent = sum(span.end_time_unix_nano - span.start_time_unix_nano for span in named["denoise"]) / 1e9
    assert spent == pytest.approx(timings["denoise"], abs=0.001)


def test_nothing_that_a_caller_wrote_is_in_a_trace(traced):
    app, spans = traced
    words = "canary-of-a-prompt"
    with TestClient(app, base_url="http://localhost") as client:
        client.post("/generate", json={"prompt": words, "width": 1})
        client.post(f"/{words}", json={"prompt": words})
        client.post("/edit", json={"prompt": words, "images": [words]}, headers={"traceparent": words})
        client.post("/generate", json={"prompt": words}, headers={"X-API-Key": words})
    assert spans
    assert not [span for _, span in spans if words in str(span)]
    failed = [span for _, span in spans if span.name == "edit"]
    assert [attributes(span)["imagegen.outcome"] for span in failed] == ["bad_reference"]
    assert failed[0].status.message == "bad_reference"


def test_a_job_of_runpod_goes_on_with_the_trace_of_its_input(collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector[0])
    monkeypatch.setattr(handler, "get_settings", lambda: Settings(model="micro"))
    handler.service.cache_clear()
    kept = InMemorySpanExporter()
    service = handler.service()
    tracing._Tracing.provider.add_span_processor(SimpleSpanProcessor(kept))
    answer = asyncio.run(handler.handler({"id": "j1", "input": {"prompt": "a red circle", "traceparent": PARENT}}))
    spans = {span.name: span for span in kept.get_finished_spans()}
    service.close()
    handler.service.cache_clear()
    assert "error" not in answer
    assert f"{spans['runpod job'].parent.span_id:016x}" == SPAN
    assert spans["generate"].parent.span_id == spans["runpod job"].context.span_id
    assert f"{spans['generate'].context.trace_id:032x}" == TRACE


def test_a_collector_that_is_gone_costs_no_job(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with TestClient(create_app(settings()), base_url="http://localhost") as client:
        assert client.post("/generate", json={"prompt": "a red circle"}).status_code == 200


def test_traces_that_are_wanted_without_the_sdk_are_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError, match="opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http"):
        tracing.configure(Settings(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9"))


def test_without_the_setting_no_header_is_added():
    with TestClient(create_app(settings()), base_url="http://localhost") as client:
        answer: httpx.Response = client.post("/generate", json={"prompt": ""}, headers={"traceparent": PARENT})
    assert "traceparent" not in answer.headers
