"""Which jobs are taken, and how much of the worker one caller may have."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import TypeVar

from imagegen.editing.photo import MAX_JOB_PIXELS
from imagegen.engine.shared_limit import SharedLimit
from imagegen.errors import NotReady, Overloaded
from imagegen.inputs.decoders import PROCESSES
from imagegen.inputs.decoding import MAX_PHOTO_PIXELS
from imagegen.models import MODELS, ModelSpec
from imagegen.settings import Settings
from imagegen.telemetry.metrics import Metrics

T = TypeVar("T")

#: Bodies of the largest size that are in memory at one moment, until their references are decoded; half for a caller.
_LARGEST_BODIES = 4
#: Bytes of answers that wait in memory until they are read, beyond which nothing more is answered; half of it for a
#: caller. One answer may be larger: two edits of the largest photos, as noise in PNG, have 300 MB.
UNREAD_BYTES = 500_000_000
#: Jobs that download adapters at one moment, of up to a gigabyte each; one of a caller.
ADAPTERS = 2
#: Answers that are read from a store of jobs at one moment; one for a caller.
ANSWERS = 2
#: References by URL that are on their way or wait to be decoded: four jobs with four each; half for a caller.
DOWNLOADS = 16
#: Seconds that a job may go on reading its references once the worker is ending. Photographs take a fraction of that;
#: one that is made to be slow, or a server that drips, would hold the end for longer than the 10 s that Docker allows.
_LAST_READING_SECONDS = 2.0


class Admission:
    """The worker's limits: in all, and for one caller. For the event loop's thread alone.

    A caller is whom the transport takes for one: a key's name, or an address. None is the only caller, as RunPod's
    queue is, and may have everything.

    - places: one job runs, `max_queue` wait, and a body that is being read counts as the job that it will be. A place
      is given back when the GPU is done with the job.
    - upload_bytes: bodies from their first byte until their references are decoded.
    - downloads: references by URL from before their first byte until they are decoded; their bytes are in memory.
    - adapters: jobs that download them.
    - answers: those of jobs that were stored, from when they are read until they are sent.
    - decoders: references that are decoded, and edits of photos that are planned, at one moment.
    - delivery_megapixels: images from the moment that the GPU is wanted for them until their job is answered.

    Args:
        seconds_per_job: the mean time of a job on the GPU, for Retry-After.
    """

    def __init__(self, settings: Settings, metrics: Metrics, seconds_per_job: Callable[[], float]) -> None:
        self.max_queue = settings.max_queue
        self._metrics, self._seconds_per_job = metrics, seconds_per_job
        #: Set once: jobs that come are refused, those that are here are finished.
        self.draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reading: set[asyncio.Timeout] = set()
        self._admitted = 0
        self._begun: list[float] = []  # of the admitted, in their order
        places, upload_bytes = places_of(settings), upload_bytes_of(settings)
        named = MODELS.get(settings.model or "")
        largest = _largest_job(settings, MODELS.values() if named is None else [named])
        self._places = SharedLimit("places", places, max(1, places - max(1, places // 4)), metrics)
        self._upload_bytes = SharedLimit("upload_bytes", upload_bytes, upload_bytes / 2, metrics)
        self._downloads = SharedLimit("downloads", DOWNLOADS, DOWNLOADS / 2, metrics)
        self._adapters = SharedLimit("adapters", ADAPTERS, ADAPTERS / 2, metrics)
        self._answers = SharedLimit("answers", ANSWERS, ANSWERS / 2, metrics)
        self._decoders = SharedLimit("decoders", PROCESSES, PROCESSES / 2, metrics)
        self._delivery = SharedLimit("delivery_megapixels", 4 * largest, 2 * largest, metrics)

    def limit_places(self, share_of: Callable[[str], float | None]) -> None:
        """Gives callers fewer places than their share.

        Args:
            share_of: the places of a caller; None: its share.
        """
        self._places.share_of = share_of

    @property
    def running(self) -> int:
        """Jobs that run: 0 or 1."""
        return min(self._admitted, 1)

    @property
    def waiting(self) -> int:
        """Jobs behind the one that runs."""
        return max(0, self._admitted - 1)

    @property
    def oldest_seconds(self) -> float:
        """Age of the oldest job that the GPU is not done with; 0 where there is none."""
        return time.monotonic() - self._begun[0] if self._begun else 0.0

    def upload(self, caller: str | None, length: int, stored: bool = False) -> Upload:
        """A body of `length` bytes is going to be read; 0 where the length is not known.

        Args:
            stored: its job will wait in a store, and not here.

        Raises:
            NotReady: the worker is ending.
            Overloaded: there is no place for its job, or too much is being read.
        """
        if stored:
            self._check_draining()
        else:
            self._take_place(caller)
        upload = Upload(caller, None if stored else self._places, self._upload_bytes)
        try:
            upload.grow(length)
        except Overloaded:
            upload.release()
            raise
        return upload

    @contextmanager
    def place(self, caller: str | None, stored: bool = False) -> Iterator[Place]:
        """A job's place, until the block ends or it is given back.

        Args:
            stored: it comes from a store, where it has waited for its turn: it takes no place of those that hold a
                connection.

        Raises:
            NotReady: the worker is ending.
            Overloaded: there is none.
        """
        if stored:
            self._check_draining()
        else:
            self._take_place(caller)
        ahead = self._admitted
        begun = time.monotonic()
        self._begun.append(begun)
        self._count(1)

        def give_back() -> None:
            if not stored:
                self._places.give_back(caller, 1)
            self._begun.remove(begun)
            self._count(-1)

        place = Place(ahead, give_back)
        try:
            yield place
        finally:
            place.give_back()

    def drain(self) -> None:
        """Jobs that come are refused from now on; those that are reading references have a moment for it. From any
        thread, or a signal's handler."""
        self.draining = True
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed: nothing is being read
                self._loop.call_soon_threadsafe(self._bound_reading)

    def _bound_reading(self) -> None:
        for reading in self._reading:
            reading.reschedule(asyncio.get_running_loop().time() + _LAST_READING_SECONDS)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """A job's references are read: downloads and decoding.

        Raises:
            NotReady: the worker is ending, and they took too long for that.
        """
        self._loop = asyncio.get_running_loop()
        bound = asyncio.timeout(_LAST_READING_SECONDS if self.draining else None)
        try:
            async with bound:
                self._reading.add(bound)
                try:
                    yield
                finally:
                    self._reading.discard(bound)
        except TimeoutError:
            if not bound.expired():
                raise
            raise NotReady("the worker is ending; another will answer", retry_after=1) from None

    @asynccontextmanager
    async def download(self, caller: str | None) -> AsyncIterator[None]:
        """Waits until one more reference may be downloaded, and held until it is decoded."""
        await self._downloads.take(caller, 1)
        try:
            yield
        finally:
            self._downloads.give_back(caller, 1)

    @asynccontextmanager
    async def adapters(self, caller: str | None) -> AsyncIterator[None]:
        """Waits until one more job may download its adapters."""
        await self._adapters.take(caller, 1)
        try:
            yield
        finally:
            self._adapters.give_back(caller, 1)

    async def answer(self, caller: str | None) -> Callable[[], None]:
        """Waits until one more answer may be read from a store; what is returned is called once it is sent, and does
        nothing a second time."""
        await self._answers.take(caller, 1)
        held = ExitStack()
        held.callback(self._answers.give_back, caller, 1)
        return held.close

    async def decode(self, caller: str | None, start: Callable[[], Future[T]]) -> T:
        """Waits until one more reference may be decoded, starts that, and gives its result.

        It counts until it has ended, also where its job is given up before: nothing stops a decoder but its own limits.
        """
        await self._decoders.take(caller, 1)
        loop = asyncio.get_running_loop()

        def give_back(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._decoders.give_back, caller, 1)

        try:
            future = start()
        except BaseException:
            self._decoders.give_back(caller, 1)
            raise
        future.add_done_callback(give_back)
        return await asyncio.wrap_future(future)

    @asynccontextmanager
    async def delivery(self, caller: str | None, pixels: int) -> AsyncIterator[None]:
        """Waits until there is memory for a job's images, however slowly those of others are delivered."""
        amount = min(pixels / 1e6, self._delivery.share)
        await self._delivery.take(caller, amount)
        try:
            yield
        finally:
            self._delivery.give_back(caller, amount)

    def _check_draining(self) -> None:
        if self.draining:
            raise NotReady("the worker is ending; another will answer", retry_after=1)

    def _take_place(self, caller: str | None) -> None:
        self._check_draining()
        excess = self._places.try_take(caller, 1)
        if excess is not None:
            seconds = max(1, math.ceil(self._seconds_per_job()))
            full = f"{self.waiting} jobs wait already"
            if excess == "share" and caller is not None:
                share = self._places.share_for(caller)
                full = f"this caller has {share:g} jobs here already, and {share:g} are allowed"
            raise Overloaded(f"queue: {full}; try again in {seconds} s", retry_after=seconds)

    def _count(self, jobs: int) -> None:
        self._admitted += jobs
        self._metrics.waiting.set(self.waiting)
        self._metrics.gpu_time.change(jobs=jobs)


class Place:
    """A job's place; `ahead` jobs are before it."""

    def __init__(self, ahead: int, give_back: Callable[[], None]) -> None:
        self.ahead, self._give_back, self._held = ahead, give_back, True

    def give_back(self) -> None:
        """The GPU is done with the job; a second call does nothing."""
        if self._held:
            self._held = False
            self._give_back()


class Upload:
    """A body, from its first byte until nobody needs it any more; `places` is None where it takes none."""

    def __init__(self, caller: str | None, places: SharedLimit | None, upload_bytes: SharedLimit) -> None:
        self._caller, self._places, self._limit = caller, places, upload_bytes
        self._reading, self._bytes, self._received = True, 0, 0

    def received(self, count: int) -> None:
        """So many more bytes have come.

        Raises:
            Overloaded: they are too many, with those of other bodies.
        """
        self._received += count
        if self._received > self._bytes:
            self.grow(self._received - self._bytes)

    def grow(self, count: int) -> None:
        """So many more bytes are to be expected.

        Raises:
            Overloaded: they are too many, with those of other bodies.
        """
        excess = self._limit.try_take(self._caller, count)
        if excess is not None:
            whose, most = ("of this caller", self._limit.share) if excess == "share" else ("in all", self._limit.total)
            raise Overloaded(
                f"body: more than {most / 1e6:g} MB {whose} would be on their way; try again in 2 s", retry_after=2
            )
        self._bytes += count

    def done(self) -> None:
        """It is read; its job takes a place of its own. A second call does nothing."""
        if self._reading and self._places is not None:
            self._reading = False
            self._places.give_back(self._caller, 1)

    def release(self) -> None:
        """Nobody needs it any more; a second call does nothing."""
        self.done()
        if self._bytes:
            self._limit.give_back(self._caller, self._bytes)
            self._bytes = 0


def places_of(settings: Settings) -> int:
    """Jobs that may be here: one runs, the others wait."""
    return settings.max_queue + 1


def upload_bytes_of(settings: Settings) -> int:
    """Bytes of bodies that may be here."""
    return int(_LARGEST_BODIES * settings.max_body_mb * 1e6)


def delivery_megapixels_of(settings: Settings, spec: ModelSpec) -> float:
    """Megapixels of images that are in delivery at most: of four of the model's largest jobs, or of two with the most
    pixels that there may be, each of which counts as half of the limit, however large it is."""
    return max(4 * _largest_job(settings, [spec]), 2 * most_megapixels(settings))


def most_megapixels(settings: Settings) -> float:
    """Megapixels of a job's answer, at most: of edits at the size of their photos."""
    return min(MAX_JOB_PIXELS, settings.max_images * MAX_PHOTO_PIXELS) / 1e6


def _largest_job(settings: Settings, specs: Iterable[ModelSpec]) -> float:
    """Megapixels of the largest job of these models, in images of a model's own sizes."""
    return max(spec.max_size for spec in specs) ** 2 * settings.max_images / 1e6
