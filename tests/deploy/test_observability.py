"""The dashboard, the alerts and the page that says what to do, against the metrics that a worker has."""

import contextlib
import json
import re
import shutil
import socket
import subprocess

import httpx
import pynvml
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.observability.dashboard import ROWS, dashboard, expression
from imagegen.engine.service import Service
from imagegen.telemetry.gpu_device import GpuDevice
from tests.server.conftest import serving
from tests.support import ROOT, settings, until
from tests.support.nvml import UUID, Nvml

FOLDER = ROOT / "deploy" / "observability"
ALERTS = (FOLDER / "alerts.yml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def known():
    """The names of all metrics, those of a GPU with errors among them."""
    service = Service(settings())
    nvml = Nvml()
    nvml.events = [(pynvml.nvmlEventTypeXidCriticalError, 79)]
    device = GpuDevice(nvml, UUID)
    until(lambda: device.state.utilization is not None)  # which another thread asks the driver for
    service.metrics.watch(device)
    lines = service.metrics_text().decode().splitlines()
    service.close()
    names = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    return names | {f"{name}_{part}" for name in names for part in ("bucket", "sum", "count")}


def test_the_dashboard_is_the_one_that_the_code_writes():
    assert json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8")) == dashboard()


def test_grafana_s_own_models_read_the_dashboard_and_lose_nothing_of_it():
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard())))
    assert _without_defaults(read, dashboard()) == dashboard()


def test_every_metric_that_is_asked_for_exists(known):
    queries = [query for row in ROWS.values() for panel in row for query in panel.queries.values()]
    asked = set(re.findall(r"\b(?:imagegen|process)_\w+(?=\{|\[| )", " ".join([*queries, ALERTS])))
    assert asked - {"imagegen_state"} <= known
    assert len(asked) > 20


def test_every_alert_has_its_page():
    page = (ROOT / "docs" / "drills.md").read_text(encoding="utf-8")
    there = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^### (.*)$", page, re.M)}
    wanted = re.findall(r"runbook_url: docs/drills\.md#(\S+)", ALERTS)
    assert len(wanted) == ALERTS.count("- alert:")
    assert set(wanted) <= there


@pytest.mark.slow
def test_each_alert_fires_when_it_should_and_not_when_all_is_well():
    tested = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    scenarios = (FOLDER / "alerts_test.yml").read_text(encoding="utf-8")
    for name in re.findall(r"- alert: (\w+)", ALERTS):
        assert f'alertname="{name}"' in scenarios


@pytest.mark.slow
def test_prometheus_scrapes_a_worker_and_every_panel_has_its_answer(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    prometheus = shutil.which("prometheus")
    assert prometheus, "apt-get install prometheus"
    with serving() as (url, service):
        service.start().result()
        service.metrics.watch(GpuDevice(Nvml(), UUID))
        config = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
        config = config.replace("image-gen:9400", url.removeprefix("http://"))
        config = config.replace("scrape_interval: 15s", "scrape_interval: 1s\n  evaluation_interval: 1s")
        (tmp_path / "prometheus.yml").write_text(config)
        shutil.copy(FOLDER / "alerts.yml", tmp_path)
        with (tmp_path / "log").open("w") as log:
            running = subprocess.Popen(
                [
                    prometheus,
                    f"--config.file={tmp_path / 'prometheus.yml'}",
                    f"--storage.tsdb.path={tmp_path / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            api = f"http://127.0.0.1:{port}/api/v1"
            until(lambda: _is_scraping(api), every=0.2)

            def empty() -> list[str]:
                return [
                    panel.title
                    for row in ROWS.values()
                    for panel in row
                    if not any(_ask(api, expression(query, 'instance=~".+"')) for query in panel.queries.values())
                ]

            def empty_after_a_job() -> list[str]:
                answer = httpx.post(f"{url}/generate", json={"prompt": "a red circle"})
                assert answer.status_code == 200, answer.text
                return empty()

            # A rate is of what changed between two readings: jobs go on coming until there are two.
            until(lambda: empty_after_a_job() == ["Faults"], every=1)
            until(lambda: {rule["health"] for rule in _rules(api)} == {"ok"}, every=0.2)
            rules = _rules(api)
        finally:
            running.terminate()
            running.wait(300)
    assert not [rule["name"] for rule in rules if rule["state"] == "firing"]


def _without_defaults(read, written):
    """What was read, of that which was written: Grafana's models add their defaults."""
    if isinstance(written, dict):
        return {key: _without_defaults(read.get(key), value) for key, value in written.items()}
    if isinstance(written, list):
        return [_without_defaults(one, value) for one, value in zip(read or (), written, strict=True)]
    return read


def _is_scraping(api):
    with contextlib.suppress(httpx.TransportError, ValueError):  # while it starts, its answer is no JSON
        workers = _ask(api, "up")
        return bool(workers) and workers[0]["value"][1] == "1"
    return False


def _rules(api):
    return httpx.get(f"{api}/rules").json()["data"]["groups"][0]["rules"]


def _ask(api, query):
    answer = httpx.get(f"{api}/query", params={"query": query}).json()
    assert answer["status"] == "success", (query, answer)
    return answer["data"]["result"]
