"""The Grafana dashboard of image-gen's workers, as Python that writes dashboard.json.

    python deploy/observability/dashboard.py

Panels and queries are listed below; what Grafana wants around them is the same for all. The JSON is Grafana's dashboard
schema 39: https://grafana.com/docs/grafana/latest/visualizations/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

#: Which workers: the variable at the dashboard's top.
_WHERE = 'instance=~"$instance"'
_JOB_SECONDS = "sum by (le, mode) (rate(imagegen_job_seconds_bucket{WHERE}[5m]))"
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


class Panel(NamedTuple):
    """A panel: a title, queries with their legends, a unit of Grafana's, and what it tells."""

    title: str
    queries: dict[str, str]
    unit: str
    about: str
    stacked: bool = False


#: Rows of panels; WHERE stands for the chosen workers.
ROWS: dict[str, list[Panel]] = {
    "Jobs": [
        Panel(
            "Jobs a minute",
            {"{{outcome}}": "sum by (outcome) (rate(imagegen_jobs_total{WHERE}[5m])) * 60 > 0"},
            "short",
            "By outcome: ok, or the code of the error.",
            True,
        ),
        Panel(
            "Time of a job",
            {
                "{{mode}}, median": f"histogram_quantile(0.5, {_JOB_SECONDS})",
                "{{mode}}, 95 %": f"histogram_quantile(0.95, {_JOB_SECONDS})",
            },
            "s",
            "Of the jobs that succeeded, waiting included.",
        ),
        Panel(
            "Where a job's time goes",
            {
                "{{stage}}": "sum by (stage) (rate(imagegen_stage_seconds_sum{WHERE}[5m]))"
                " / scalar(sum(rate(imagegen_job_seconds_count{WHERE}[5m])))"
            },
            "s",
            "The mean of each stage.",
            True,
        ),
    ],
    "The GPU's time": [
        Panel(
            "Busy, and idle and why",
            {
                "busy": "sum(rate(imagegen_gpu_busy_seconds_total{WHERE}[5m]))",
                "idle: {{reason}}": "sum by (reason) (rate(imagegen_gpu_idle_seconds_total{WHERE}[5m]))",
            },
            "short",
            "GPUs. no_job: nothing to do. preparing: jobs wait for references. host: a job is ready and not begun.",
            True,
        ),
        Panel(
            "Paid, by what became of it",
            {"{{outcome}}": "sum by (outcome) (rate(imagegen_job_gpu_seconds_total{WHERE}[5m])) > 0"},
            "short",
            "GPUs at work for jobs of each outcome. What is not ok was paid and not delivered.",
            True,
        ),
        Panel(
            "Images a minute",
            {
                "generated": "sum(rate(imagegen_images_generated_total{WHERE}[5m])) * 60",
                "delivered": "sum(rate(imagegen_pictures_total{WHERE}[5m])) * 60",
            },
            "short",
            "What lies between the two was generated for nobody.",
        ),
    ],
    "The queue": [
        Panel(
            "Jobs that wait",
            {"{{instance}}": "imagegen_queue_length{WHERE}"},
            "short",
            "For the GPU, at each worker.",
        ),
        Panel(
            "Oldest job",
            {"{{instance}}": "imagegen_oldest_job_seconds{WHERE}"},
            "s",
            "Its age, until the GPU is done with it.",
        ),
        Panel(
            "Limits in use",
            {"{{limit}}": "max by (limit) (imagegen_in_use{WHERE} / imagegen_limit{WHERE})"},
            "percentunit",
            "At 100 % further jobs are refused, or wait.",
        ),
    ],
    "Workers": [
        Panel(
            "State",
            {"{{imagegen_state}}": "sum by (imagegen_state) (imagegen_state{WHERE}) > 0"},
            "short",
            "Workers in each state.",
            True,
        ),
        Panel(
            "Start, by stage",
            {"{{stage}}": "avg by (stage) (imagegen_start_seconds{WHERE}) > 0"},
            "s",
            "Seconds from the process's beginning to its first image.",
            True,
        ),
        Panel(
            "Memory and disk",
            {
                "{{instance}}, process": "process_resident_memory_bytes{WHERE}",
                "{{instance}}, free: {{folder}}": "imagegen_disk_free_bytes{WHERE}",
            },
            "bytes",
            "Main memory of the process, and what is free where it writes.",
        ),
    ],
    "The GPUs themselves": [
        Panel(
            "Utilisation and memory",
            {
                "{{instance}}, kernels": "imagegen_gpu_utilization_ratio{WHERE}",
                "{{instance}}, memory": "imagegen_gpu_device_memory_used_bytes{WHERE}"
                " / imagegen_gpu_device_memory_bytes{WHERE}",
            },
            "percentunit",
            "Where nvidia-ml-py is installed.",
        ),
        Panel(
            "Temperature",
            {"{{instance}}": "imagegen_gpu_temperature_celsius{WHERE}"},
            "celsius",
            "Of the chip.",
        ),
        Panel(
            "Faults",
            {
                "{{instance}}, throttled: {{reason}}": "imagegen_gpu_throttled{WHERE} > 0",
                "{{instance}}, Xid {{xid}}": "increase(imagegen_gpu_xid_errors_total{WHERE}[1h]) > 0",
                "{{instance}}, memory errors": "imagegen_gpu_uncorrectable_errors{WHERE} > 0",
            },
            "short",
            "Empty is good.",
        ),
    ],
}


def expression(query: str, where: str = _WHERE) -> str:
    """A query of ROWS in PromQL, for the workers that `where` selects."""
    return query.replace("WHERE", where)


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": _at(0, y, 24, 1)})
        panels += [_timeseries(panel, x * 8, y + 1) for x, panel in enumerate(row)]
        y += 9
    return {
        "uid": "image-gen",
        "title": "image-gen",
        "description": "Workers that serve FLUX.2 [klein]: jobs, the GPU's time, queues, the GPUs themselves.",
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "tags": ["image-gen"],
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                {
                    "name": "instance",
                    "type": "query",
                    "label": "Worker",
                    "datasource": _DATASOURCE,
                    "query": "label_values(imagegen_build_info, instance)",
                    "includeAll": True,
                    "multi": True,
                    "refresh": 2,
                },
            ]
        },
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }


def _timeseries(panel: Panel, x: int, y: int) -> dict[str, Any]:
    drawing = {"lineWidth": 1, "fillOpacity": 60 if panel.stacked else 0, "showPoints": "never"}
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _DATASOURCE,
        "gridPos": _at(x, y, 8, 8),
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": {**drawing, "stacking": {"mode": "normal" if panel.stacked else "none"}},
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": _DATASOURCE, "expr": expression(query), "legendFormat": legend}
            for i, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _at(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


if __name__ == "__main__":
    Path(__file__).with_name("dashboard.json").write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")
