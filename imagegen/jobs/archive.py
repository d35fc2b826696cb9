"""Where jobs are kept: their rows in a database, the bytes of their references and images beside it.

Rows are read and written in one thread, bytes in others, so that the event loop waits for no disk.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import BinaryIO, ParamSpec, TypeVar

from imagegen.contract import requests
from imagegen.contract.aliases import Spoken
from imagegen.contract.requests import Request
from imagegen.contract.responses import EditResponse, GenerateResponse
from imagegen.contract.schemas import EditRequest
from imagegen.errors import ConfigurationError, Expired, InvalidInput, PayloadTooLarge, StoreFailed
from imagegen.job_settings import FOLDER_MB, MEMORY_MB
from imagegen.jobs.binding import bind, open_database
from imagegen.jobs.deliveries import Deliveries
from imagegen.jobs.expiry import Expiry
from imagegen.jobs.files import Files, FolderFiles, MemoryFiles, image_name, input_name
from imagegen.jobs.rows import NewJob, Room, Row
from imagegen.jobs.store import Store
from imagegen.outputs.delivery import EXTENSIONS
from imagegen.settings import Settings

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Ended jobs that expire in one go.
_EXPIRED_AT_ONCE = 200
#: Seconds in which a job's references are written, and its row.
_BEING_ACCEPTED = 3600.0
#: Bytes that a job's row counts as, beside its fields: jobs that are cancelled at once would else cost nothing.
_ROW_BYTES = 2000
#: The setting at fault where the rows cannot be used: of a database of one server's own, and of one that is shared.
_SETTING = ("IMAGEGEN_JOBS_DIR", "IMAGEGEN_JOBS_DATABASE")
#: Fields that hold references. They are kept as files, and are in no row.
_REFERENCES = ("images", "mask")


def _row_bytes(fields: str) -> int:
    return len(fields) + _ROW_BYTES


class Archive:
    """The jobs of this server.

    Raises:
        ConfigurationError: the folder or the database cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        folder = settings.jobs_dir
        self._thread = ThreadPoolExecutor(1, "jobs")
        self._database = open_database(settings)
        self._files: Files = MemoryFiles()
        self._store = Store(self._database, secrets.token_hex(8))
        self._expiry = Expiry(self._database)
        #: The rows' webhooks; for `rows`.
        self.deliveries = Deliveries(self._database)
        #: Whether other servers run these jobs too.
        self.shared = self._database.shared
        #: Bytes of all jobs that are allowed.
        self.limit = int((settings.jobs_max_mb or (MEMORY_MB if folder is None else FOLDER_MB)) * 1e6)
        #: Whether what is kept outlives the process.
        self.outlives = folder is not None
        self._keep = settings.jobs_keep_hours * 3600
        #: Bytes of all jobs, as far as is known here; and of those that are being accepted.
        self.bytes = self._coming = 0
        #: Room is made for one at a time.
        self._making_room = asyncio.Lock()
        if folder is not None:
            try:
                self._files = FolderFiles(folder)
                if self.shared:
                    bind(self._database, folder)
                self._take_over()
            except StoreFailed as error:
                self._database.close()
                raise ConfigurationError(f"{_SETTING[self.shared]}: {error.message} ({error.__cause__})") from None
            except ConfigurationError:
                self._database.close()
                raise

    async def rows(self, statement: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a method of `store` returns, in the database's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: statement(*args, **kwargs))

    @property
    def store(self) -> Store:
        """The rows; for `rows`."""
        return self._store

    def _take_over(self) -> None:
        """What the last process left: its running jobs wait again, and references whose jobs were not accepted go. In
        this thread, before there are others."""
        # Where servers share the store, `Runner.beat` tells in time which of them have ended.
        if not self.shared and (waiting := self._store.recover()):
            log.info("%d jobs were running when the last process ended; they are done now", waiting)
        self.bytes = self._expiry.bytes_kept()
        # Those of another server may belong to a job that it is just accepting.
        for name in self._files.inputs(_BEING_ACCEPTED if self.shared else 0.0):
            row = self._store.get(name.partition(".")[0])
            if row is None or name not in row.names:
                self._files.delete([name])

    async def add(self, job: NewJob, request: Request, room: Room, key: tuple[str, str] | None) -> tuple[Row, bool]:
        """Stores a job; see Store.add.

        Args:
            key: the Idempotency-Key, and the body's fingerprint.

        Raises:
            IdempotencyKeyReuse: the key came with another body.
            LimitExceeded, Overloaded: its caller, or all, have too many jobs waiting.
            PayloadTooLarge: it can never have room.
            StoreFailed: it could not be stored, or there is no room for it.
        """
        references = _references(request)
        given = request.model_dump(mode="json", exclude_unset=True, exclude=set(_REFERENCES))
        fields = json.dumps(given | request.spoken.ignored)  # which are warned of when it runs
        spoken = json.dumps(request.spoken.names)
        size = sum(map(len, references.values())) + _row_bytes(fields)
        if size > self.limit:
            most = f"{self.limit} are allowed of all jobs; send fewer or smaller images"
            raise PayloadTooLarge(f"the job has {size} bytes to be stored, and {most}")
        names = {input_name(job.id, field): text for field, text in references.items()}
        job = replace(job, mode=request.mode, fields=fields, spoken=spoken, files=tuple(names), bytes=size)
        if self._missing(size) > 0:
            async with self._making_room:
                if self._missing(size) > 0:
                    await self.rows(self._store.check_room, job, room)  # before others' jobs expire for it
                    await self._make_room(size)
        if self._missing(size) > 0:
            raise StoreFailed("the store of jobs is full; try again later", retry_after=60)
        self._coming += size  # with no wait since it was seen to fit
        try:
            for name, text in names.items():
                await asyncio.to_thread(self._files.write, name, text.encode())
            row, new = await self.rows(self._store.add, job, room, key)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._files.delete, names))
            raise
        finally:
            self._coming -= size
        if new:
            self.bytes += size
        else:
            await asyncio.to_thread(self._files.delete, names)
        return row, new

    async def fingerprint(self, request: Request, hook: tuple[str, str] | None) -> str:
        """What two requests have in common that ask for the same; a field that says what it would be anyway is none.

        Args:
            hook: the webhook's URL and secret.
        """
        fields = request.model_dump(mode="json", exclude_defaults=True, exclude=set(_REFERENCES))
        digest = hashlib.sha256(json.dumps([request.mode, fields, hook], sort_keys=True).encode())
        for field, text in sorted(_references(request).items()):
            digest.update(f"\n{field} {len(text)} ".encode())
            await asyncio.to_thread(digest.update, text.encode())
        return digest.hexdigest()

    async def request_of(self, row: Row) -> Request:
        """A job's request.

        Raises:
            InvalidInput: a newer version of the program does not take it any more.
            StoreFailed: a reference cannot be read; by the caller's name of it.
        """
        fields, spoken = json.loads(row.fields), Spoken(json.loads(row.spoken))
        for name in row.names:
            field, _, place = name.partition(".in.")[2].partition(".")
            try:
                text = (await asyncio.to_thread(self._files.read, name)).decode()
            except (StoreFailed, Expired):
                named = spoken.name(f"{field}[{place}]" if place else field)
                raise StoreFailed(f"{named}: could not be read from the store of jobs; send it again", named) from None
            if place:
                fields.setdefault(field, []).append(text)
            else:
                fields[field] = text
        try:
            request = requests.parse_job({"mode": row.mode, **fields})
        except InvalidInput as error:
            raise requests.renamed(error, spoken) from None
        request.spoken.names.update(spoken.names)  # so that what is said of it is said in its caller's words
        return request

    async def save(self, row: Row, answer: GenerateResponse, events: str) -> None:
        """Stores a job's answer and images; from then on it has succeeded, whatever happens.

        Raises:
            StoreFailed: the disk is full, or broken.
        """
        extension = EXTENSIONS[answer.output_format]
        names, size = [], 0
        for i, image in enumerate(answer.images):
            data = await asyncio.to_thread(base64.b64decode, image)
            names.append(image_name(row.id, i, extension))
            await asyncio.to_thread(self._files.write, names[-1], data)
            size += len(data)
        result = answer.model_dump_json(exclude={"images"})
        megapixels = megapixels_of(answer)
        if not await self.end(row, "succeeded", result, None, events, names, size, megapixels):
            # Another process has done the job too, and its files are the same; or the job was cancelled there.
            now = await self.rows(self._store.get, row.id)
            if now is None or now.state != "succeeded":
                await self._delete(names)

    async def end(
        self,
        row: Row,
        state: str,
        result: str | None = None,
        error: str | None = None,
        events: str | None = None,
        files: list[str] | None = None,
        size: int = 0,
        megapixels: float = 0.0,
    ) -> bool:
        """Ends a job that waits or runs; False where it had ended. Its references go; its row still counts.

        Args:
            megapixels: of its images, in place of those that were counted when it was accepted.

        Raises:
            StoreFailed: the disk is full, or broken.
        """
        size += _row_bytes(row.fields)
        ended = await self.rows(
            self._store.finish,
            row.id,
            state,
            result=result,
            error=error,
            events=events,
            files=files or [],
            size=size,
            megapixels=megapixels,
        )
        if ended:
            self.bytes += size - row.bytes
            # Of a start that was killed, images may be there that no row names.
            left = [] if files else await asyncio.to_thread(self._files.images, row.id)
            await self._delete([*row.names, *left])
        return ended

    async def answer_of(self, row: Row, images: bool = True) -> GenerateResponse:
        """The answer of a job that has succeeded.

        Args:
            images: whether they are read too.
        """
        fields = json.loads(row.result or "{}")
        names = row.names if images else []
        fields["images"] = [await asyncio.to_thread(self._read_base64, name) for name in names]
        return (EditResponse if row.mode == "edit" else GenerateResponse).model_validate(fields)

    def _read_base64(self, name: str) -> str:
        return base64.b64encode(self._files.read(name)).decode()

    async def image(self, row: Row, number: int) -> BinaryIO:
        """One image of a job that has succeeded, as an open file."""
        return await asyncio.to_thread(self._files.open, row.names[number])

    async def forget(self, row: Row) -> None:
        """Deletes a job that has ended, and its images."""
        await self._delete(row.names)
        freed = await self.rows(self._store.forget, row.id)
        self.bytes -= freed  # as it is now, not as it was before the wait

    async def make_room(self) -> None:
        """Lets ended jobs expire that are too old, and others where there are too many bytes."""
        async with self._making_room:
            await self._make_room()

    async def _make_room(self, size: int = 0) -> None:
        """As `make_room`, for a job of `size` bytes too; no job expires for one that would have no room even then."""
        while old := await self.rows(self._expiry.too_old, _EXPIRED_AT_ONCE, self._keep):
            await self._expire(old)
        await self.rows(self._expiry.drop_expired, self._keep)
        while True:
            self.bytes = await self.rows(self._expiry.bytes_kept)
            if (missing := self._missing(size)) <= 0:
                break
            chosen = await self.rows(self._expiry.to_make_room, missing, _EXPIRED_AT_ONCE, size > 0)
            if not chosen:
                break
            await self._expire(chosen)

    def _missing(self, size: int) -> int:
        """Bytes that are missing for a job of `size`, or that are over the limit."""
        return self.bytes + self._coming + size - self.limit

    def close(self) -> None:
        """Closes the database, after what it is doing."""
        self._thread.shutdown()
        self._database.close()

    async def _expire(self, rows: list[Row]) -> None:
        for row in rows:
            await self._delete(row.names)
        await self.rows(self._expiry.expire, [row.id for row in rows])

    async def _delete(self, names: list[str]) -> None:
        """Deletes files. One that cannot be deleted takes place, and is no reason to fail."""
        try:
            await asyncio.to_thread(self._files.delete, names)
        except StoreFailed:
            log.warning("files of a job could not be deleted")


def megapixels_of(answer: GenerateResponse) -> float:
    """Megapixels of all images of an answer."""
    return answer.width * answer.height * len(answer.seeds) / 1e6


def _references(request: Request) -> dict[str, str]:
    """A request's references by field, with their places: images.0, mask."""
    if not isinstance(request, EditRequest):
        return {}
    named = {f"images.{i}": image for i, image in enumerate(request.images)}
    return named if request.mask is None else {**named, "mask": request.mask}
