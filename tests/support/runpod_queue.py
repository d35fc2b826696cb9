"""A stand-in of RunPod's job queue on loopback: the SDK's own protocol for workers, and the platform's for clients.

    with RunPodQueue() as queue, queue.worker(tmp_path / "log") as worker:
        job = queue.run({"prompt": "a red circle"})
        assert job.wait().status == "COMPLETED"

Its faults are attributes that a test sets at any time: `delay`, `refuse`, `limits`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.support import ROOT

Fields = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


class Job:
    """What the queue knows of a job; times are of time.monotonic()."""

    def __init__(self, name: str, fields: Fields, sync: bool) -> None:
        self.id = ("sync-" if sync else "") + name
        self.fields, self.sync = fields, sync
        self.status = "IN_QUEUE"
        self.output: Any = None
        self.error: Any = None
        self.created, self.ended = time.monotonic(), 0.0
        self.taken: list[tuple[float, str]] = []  # when, and by which worker
        self.answers: list[Fields] = []
        self.posts = 0  # answers that came, the refused ones too
        self.progress: list[Any] = []
        self.late_progress = 0  # after the answer
        self.streamed: list[Fields] = []
        self.largest = 0
        self.ending = threading.Event()

    def wait(self, timeout: float = 300) -> Job:
        """The job, once it has ended."""
        assert self.ending.wait(timeout), f"{self.id} is {self.status} after {timeout} s"
        return self

    def end(self, status: str) -> None:
        self.status, self.ended = status, time.monotonic()
        self.ending.set()

    def public(self) -> Fields:
        """As RunPod shows it, which leaves out what there is not."""
        shown = {"id": self.id, "status": self.status, "output": self.output, "error": self.error}
        return {name: value for name, value in shown.items() if value is not None}


class Worker:
    """A worker's process, in a group of its own with its heartbeat."""

    def __init__(self, queue: RunPodQueue, log: Path, command: tuple[str, ...], environment: dict[str, str]) -> None:
        self.id, self.log, self._queue = f"worker-{uuid.uuid4().hex[:6]}", log, queue
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**os.environ, **queue.environment(self.id), **environment},
            )

    def terminate(self) -> None:
        """SIGTERM, as RunPod scales down."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to all of it; the queue hands its jobs out again."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._queue.worker_died(self.id)


class RunPodQueue:
    """The queue, served by a thread of its own.

    Args:
        poll: seconds for which a request for jobs or stops is held open.
    """

    def __init__(self, poll: float = 5.0) -> None:
        self.poll = poll
        self.delay = 0.0  # seconds before any answer
        self.limits = {False: 10_000_000, True: 20_000_000}  # bytes of an answer, by whether it came by /runsync
        self.chunk_limit = 1_000_000
        self.refuse: Callable[[Job], int | None] = lambda job: None  # a status for an answer that is posted
        self.refuse_take: Callable[[], int | None] = lambda: None
        self.jobs: dict[str, Job] = {}
        self.pings: list[
            dict[str, str]
        ] = []  # "worker", "job_id" (those it has), "status" and "reason" if it is unwell
        self.on_take: Callable[[Job], None] = lambda job: None
        self.on_shutdown: Callable[[str], None] = lambda worker: None  # it has dropped its open request for stops
        self.taking: list[str] = []  # the workers whose request for jobs is open
        self._waiting: list[Job] = []
        self._stops: dict[str, list[str]] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> RunPodQueue:
        self._loop, started = asyncio.new_event_loop(), threading.Event()

        async def start() -> None:
            self._news = asyncio.Event()
            app = web.Application(client_max_size=200_000_000, middlewares=[self._faults])
            theirs = "/v2/endpoint"
            app.add_routes([
                web.get("/worker/job-take/{worker}", self._take),
                web.get("/worker/job-take-batch/{worker}", self._take),
                web.get("/worker/job-stop/{worker}", self._stop),
                web.get("/worker/ping/{worker}", self._ping),
                web.post("/worker/job-done/{worker}/{job}", self._done),
                web.post("/worker/job-stream/{worker}/{job}", self._stream),
                web.post(f"{theirs}/run", self._client_run),
                web.post(f"{theirs}/runsync", self._client_run),
                web.get(f"{theirs}/status/{{job}}", self._client_status),
                web.get(f"{theirs}/stream/{{job}}", self._client_stream),
                web.post(f"{theirs}/cancel/{{job}}", self._client_cancel),
                web.get(f"{theirs}/health", self._client_health),
            ])  # fmt: skip
            self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
            await self._runner.setup()
            site = web.TCPSite(self._runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
            started.set()

        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(start(), self._loop)
        assert started.wait(300)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(300)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # What a test does

    def run(self, job_input: object, sync: bool = False, name: str | None = None, **beside: object) -> Job:
        """Puts a job into the queue; `beside` are fields beside its input, such as s3Config."""
        job = Job(name or uuid.uuid4().hex, {"input": job_input, **beside}, sync)
        with self._lock:
            self.jobs[job.id] = job
            self._waiting.append(job)
        self._wake()
        return job

    def cancel(self, job: Job) -> None:
        """Takes a job from the queue, or has its worker stop it."""
        with self._lock:
            if job in self._waiting:
                self._waiting.remove(job)
            else:
                self._stops.setdefault(job.taken[-1][1], []).append(job.id)
            if job.status not in FINAL:
                job.end("CANCELLED")
        self._wake()

    def worker_died(self, worker: str) -> None:
        """Hands out again what this worker had taken."""
        with self._lock:
            lost = [job for job in self.jobs.values() if job.status == "IN_PROGRESS" and job.taken[-1][1] == worker]
            for job in lost:
                job.status = "IN_QUEUE"
            self._waiting[:0] = lost
        self._wake()

    @contextlib.contextmanager
    def worker(self, log: Path, *command: str, **environment: str) -> Iterator[Worker]:
        """A worker on this queue; `handler.py` unless there is another command."""
        worker = Worker(self, log, command or ("handler.py",), environment)
        try:
            yield worker
        finally:
            worker.kill()

    def environment(self, worker: str) -> dict[str, str]:
        """What RunPod sets for a worker."""
        base = f"{self.url}/worker"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_AI_API_KEY": "worker-key",
            "RUNPOD_POD_ID": worker,
            "RUNPOD_ENDPOINT_ID": "endpoint",
            "RUNPOD_PING_INTERVAL": "1000",
            # Its own checks want the internet.
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        }

    # What workers ask

    @web.middleware
    async def _faults(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await asyncio.sleep(self.delay)
        return await handler(request)

    async def _take(self, request: web.Request) -> web.StreamResponse:
        if (status := self.refuse_take()) is not None:
            return web.Response(status=status)
        worker, count = request.match_info["worker"], int(request.query.get("batch_size", 1))
        self.taking.append(worker)
        try:
            if not await self._wait_for(lambda: bool(self._waiting)):
                return web.Response(status=204)
        finally:
            self.taking.remove(worker)
        with self._lock:
            jobs, self._waiting = self._waiting[:count], self._waiting[count:]
            for job in jobs:
                job.status = "IN_PROGRESS"
                job.taken.append((time.monotonic(), worker))
        for job in jobs:
            self.on_take(job)
        bodies = [{"id": job.id, **job.fields} for job in jobs]
        return web.json_response(bodies if "batch_size" in request.query else bodies[0])

    async def _stop(self, request: web.Request) -> web.StreamResponse:
        worker = request.match_info["worker"]
        try:
            if not await self._wait_for(lambda: bool(self._stops.get(worker))):
                return web.Response(status=204)
        except asyncio.CancelledError:
            self.on_shutdown(worker)
            raise
        return web.json_response({"jobsToStop": self._stops.pop(worker)})

    async def _ping(self, request: web.Request) -> web.StreamResponse:
        self.pings.append({"worker": request.match_info["worker"], **request.query})
        return web.Response()

    async def _done(self, request: web.Request) -> web.StreamResponse:
        job, body = self.jobs[request.match_info["job"]], await request.read()
        job.largest = max(job.largest, len(body))
        if len(body) > self.limits[job.sync]:
            if job.status not in FINAL:
                job.end("COMPLETED")  # without output, as RunPod does
            return web.Response(status=413)
        fields = json.loads(body)
        if fields.get("status") == "IN_PROGRESS":
            job.progress.append(fields["output"])
            job.late_progress += bool(job.answers)
            return web.Response()
        job.posts += 1
        if (status := self.refuse(job)) is not None:
            return web.Response(status=status)
        job.answers.append(fields)
        with self._lock:
            if job.status not in FINAL:
                job.output, job.error = fields.get("output"), fields.get("error")
                job.end("FAILED" if "error" in fields else "COMPLETED")
        return web.Response()

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if len(body) > self.chunk_limit:
            return web.Response(status=413)
        self.jobs[request.match_info["job"]].streamed.append(json.loads(body))
        return web.Response()

    # What clients ask

    async def _client_run(self, request: web.Request) -> web.StreamResponse:
        body, sync = await request.json(), request.path.endswith("runsync")
        job = self.run(body.pop("input"), sync, **body)
        if sync:
            await asyncio.to_thread(job.wait)
        return web.json_response(job.public())

    async def _client_status(self, request: web.Request) -> web.StreamResponse:
        job = self.jobs.get(request.match_info["job"])
        return web.json_response(job.public()) if job else web.Response(status=404)

    async def _client_stream(self, request: web.Request) -> web.StreamResponse:
        job = self.jobs[request.match_info["job"]]
        chunks, job.streamed = job.streamed, []
        return web.json_response({"status": job.status, "stream": chunks})

    async def _client_cancel(self, request: web.Request) -> web.StreamResponse:
        job = self.jobs[request.match_info["job"]]
        self.cancel(job)
        return web.json_response(job.public())

    async def _client_health(self, request: web.Request) -> web.StreamResponse:
        waiting = sum(job.status == "IN_QUEUE" for job in self.jobs.values())
        return web.json_response({"jobs": {"inQueue": waiting}, "workers": {}})

    # How it waits

    async def _wait_for(self, ready: Callable[[], bool]) -> bool:
        """Whether `ready` came true while a request was held open."""
        end = time.monotonic() + self.poll
        while not ready():
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._news.clear()
            if not ready():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), left)
        return True

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._news.set)
