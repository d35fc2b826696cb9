"""What a caller is told of a job."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from imagegen.contract.events import Step
from imagegen.contract.fields import OutputFormat
from imagegen.contract.loras import UsedLora
from imagegen.contract.responses import ErrorObject, GenerateResponse, Timings
from imagegen.errors import ImageGenError, Internal
from imagegen.jobs.rows import Row


class WebhookState(BaseModel):
    """What came of the webhook so far."""

    status: Literal["waiting", "pending", "delivered", "failed"] = Field(
        description="waiting: the job has not ended; pending: it is tried, now or again later; failed: given up."
    )
    tries: int
    next_try_at: datetime | None = None
    error: str | None = Field(None, description="Why the last try failed.")


class JobResult(BaseModel):
    """The answer of a job, with URLs in place of its images."""

    urls: list[str] = Field(
        description="Where each image is: a path of this server, or a URL of the object store.",
        examples=[["/jobs/0b7e6a2f9c5d4e3f8a1b2c3d4e5f6071/images/0"]],
    )
    seeds: list[int] = Field(examples=[[42]])
    width: int
    height: int
    output_format: OutputFormat
    model: str
    timings: Timings
    loras: list[UsedLora] = Field(default_factory=list, description="The LoRA adapters that were used.")
    warnings: list[str]


class JobState(BaseModel):
    """A job. Times are in UTC."""

    id: str = Field(examples=["0b7e6a2f9c5d4e3f8a1b2c3d4e5f6071"])
    status: Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
    mode: Literal["generate", "edit"]
    poll_url: str = Field(description="The path of this answer.", examples=["/jobs/0b7e6a2f9c5d4e3f8a1b2c3d4e5f6071"])
    place: int | None = Field(None, description="While it waits: how many jobs come before it, at most.")
    step: int | None = Field(None, description="While it runs: the steps that are done, of `total`.")
    total: int | None = None
    seconds_left: float | None = Field(None, description="An estimate, where there is one.")
    input: dict[str, Any] = Field(description="What was asked for, without its reference images.")
    result: JobResult | None = None
    error: ErrorObject | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = Field(None, description="Until when the job is kept, once it has ended.")
    webhook: WebhookState | None = None


class JobPage(BaseModel):
    """Some of a caller's jobs, the newest first."""

    jobs: list[JobState]
    next: str | None = Field(description="The path of the next page; null on the last one.")


def state_of(row: Row, keep: float, place: int | None, step: Step | None, seconds: float) -> JobState:
    """A job as its caller is told of it.

    Args:
        keep: seconds for which an ended job is kept.
        place: how many jobs come before it, while it waits.
        step: the newest, while it runs.
        seconds: the mean time of a job; 0 where it is not known.
    """
    running = step if row.state == "running" else None
    left = running.seconds_left if running else None
    if row.state == "queued" and place is not None and seconds:
        left = round((place + 1) * seconds, 2)
    return JobState(
        id=row.id,
        status=row.state,
        mode=row.mode,
        poll_url=f"/jobs/{row.id}",
        place=place,
        step=running and running.step,
        total=running and running.total,
        seconds_left=left,
        input=json.loads(row.fields),
        result=_result(row),
        error=json.loads(row.error) if row.error else None,
        created_at=_time(row.created),
        started_at=row.started and _time(row.started),
        finished_at=row.finished and _time(row.finished),
        expires_at=row.finished and _time(row.finished + keep),
        webhook=_webhook(row),
    )


def error_of(row: Row) -> ImageGenError:
    """The error with which a job ended."""
    body = json.loads(row.error or "{}")
    kinds = [ImageGenError]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if getattr(kind, "code", None) == body.get("code"):
            return kind(body["message"], body["field"])
    return Internal(str(body.get("message", "the job failed")))


def _result(row: Row) -> JobResult | None:
    if row.result is None:
        return None
    answer = GenerateResponse(images=[], **json.loads(row.result))
    urls = answer.urls or [f"/jobs/{row.id}/images/{i}" for i in range(len(row.names))]
    return JobResult(urls=urls, **answer.model_dump(exclude={"images", "urls"}))


def _webhook(row: Row) -> WebhookState | None:
    if row.webhook_url is None:
        return None
    due = _time(row.webhook_next) if row.webhook_state == "pending" and row.webhook_next else None
    status = row.webhook_state or "waiting"
    return WebhookState(status=status, tries=row.webhook_tries, next_try_at=due, error=row.webhook_error)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(round(seconds, 3), UTC)
