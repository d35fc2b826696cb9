"""A picture -> bytes of the format that was asked for -> base64, with a small record of where it comes from."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from types import ModuleType
from typing import Any

from PIL import Image

from imagegen.contract.fields import MAX_WEBP_SIDE, OutputFormat
from imagegen.contract.loras import UsedLora
from imagegen.contract.responses import GenerateResponse
from imagegen.contract.schemas import EditRequest, GenerateRequest
from imagegen.errors import DeliveryFailed, ResultTooLarge
from imagegen.outputs.object_store import ObjectStore, object_key
from imagegen.outputs.provenance import Provenance
from imagegen.outputs.signing import Signer

# At DEBUG Pillow logs the tags that it writes and reads, and one of ours may hold the prompt.
logging.getLogger("PIL").setLevel(logging.INFO)

EXTENSIONS: dict[OutputFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
#: PNG level 1: at level 6 a megapixel takes several times as long, for some per cent of the size.
_PNG_LEVEL = 1
#: Lossless WebP with libwebp's second fastest method: three times as fast as its default, for 1 % of the size.
_LOSSLESS_WEBP = {"lossless": True, "method": 1, "quality": 20}


def encode(
    picture: Image.Image,
    output_format: OutputFormat,
    quality: int,
    provenance: Provenance,
    signer: Signer | None = None,
) -> bytes:
    """The picture as a file with its record, signed if there is a signer. The record is all that it holds beside its
    pixels: nothing of a reference's metadata is in what the model has made."""
    file = io.BytesIO()
    name = output_format.upper()
    compression: dict[str, Any] = {"compress_level": _PNG_LEVEL} if output_format == "png" else {"quality": quality}
    if output_format == "webp" and quality == 100:
        compression = _LOSSLESS_WEBP
    picture.save(file, name, **compression, **provenance.options(name))
    return file.getvalue() if signer is None else signer.sign(file.getvalue(), output_format, provenance)


def warnings_of_loss(request: GenerateRequest | EditRequest, output_format: OutputFormat) -> list[str]:
    """What a format does to pixels that an edit has kept."""
    if not isinstance(request, EditRequest) or not request.keeps_photo or request.is_lossless(output_format):
        return []
    exact = "only in png, and in webp with output_quality 100, are kept pixels exact"
    return [f"output_format: {output_format} is lossy here; {exact}"]


class Delivery:
    """One job's pictures on their way out, encoded in threads and uploaded beside the GPU.

    Args:
        pool: the threads that encode.
        model, num_inference_steps, loras: for the record.
        request: names the format, the quality, and whether the prompt goes into the record.
        signer: signs each file; None: nothing is signed.
        finish: what becomes of an image before it is encoded, in the threads that encode.
    """

    def __init__(
        self,
        pool: Executor,
        model: str,
        request: GenerateRequest | EditRequest,
        num_inference_steps: int,
        loras: Sequence[UsedLora] = (),
        signer: Signer | None = None,
        finish: Callable[[Image.Image], Image.Image] | None = None,
    ) -> None:
        self._pool, self._finish = pool, finish
        self._model, self._request, self._steps = model, request, num_inference_steps
        self._signer, self._loras = signer, loras
        self._pictures: list[tuple[int, Future[Image.Image]]] = []
        self._files: list[Future[bytes]] = []

    def begin(self, seed: int, picture: Image.Image) -> None:
        """Begins to encode a picture, from any thread; the pictures of a job come in their order."""
        finished: Future[Image.Image] = Future()
        if self._finish is None:
            finished.set_result(picture)
        else:
            finished = self._pool.submit(self._finish, picture)
        self._pictures.append((seed, finished))
        self._files.append(self._encode(seed, finished, self._request.output_format))

    async def finish(self, answer: GenerateResponse, limit: int | None, store: ObjectStore | None, job_id: str) -> None:
        """Puts the pictures into `answer`: as URLs where they were asked for, else as base64.

        What is too large to send goes to the store if there is one, else comes in a smaller format if the job allows
        it; and where the store fails, the pictures come as base64 if they fit. The answer's warnings say so.

        Args:
            answer: whole but for its pictures.
            limit: bytes that the endpoint can carry; None: any.
            job_id: names the objects in the store, so that a job done twice leaves one of each.

        Raises:
            ResultTooLarge: the pictures cannot be sent, and there is no other way.
            DeliveryFailed: nor could they be stored.
        """
        files = [await asyncio.wrap_future(file) for file in self._files]
        failure: DeliveryFailed | None = None
        size = answer_size(answer, files)
        too_large = limit is not None and size > limit
        if store is not None and (too_large or self._request.delivery == "url"):
            try:
                answer.urls = await self._upload(files, answer.output_format, store, job_id)
                if self._request.delivery != "url":
                    answer.warnings.append(f"delivery: {size / 1e6:.1f} MB are too large to send; they are at the URLs")
                return
            except DeliveryFailed as error:
                failure = error
        if limit is not None and too_large:
            answer.output_format, files = await self._smaller(answer, files, limit, failure)
            asked = self._request.output_format
            answer.warnings.append(f"output_format: {asked} was too large to send; this is {answer.output_format}")
            answer.warnings += warnings_of_loss(self._request, answer.output_format)
        if failure is not None:
            answer.warnings.append(f"{failure.message}; the pictures came as base64")
        answer.images = await asyncio.wrap_future(self._pool.submit(lambda: [to_base64(data) for data in files]))

    async def finished(self) -> None:
        """Waits until the images are what they will be; they may still be encoded."""
        for _, picture in self._pictures:
            await asyncio.wrap_future(picture)

    def _encode(self, seed: int, finished: Future[Image.Image], output_format: OutputFormat) -> Future[bytes]:
        request = self._request

        def work() -> bytes:
            picture = finished.result()  # which was begun before this
            provenance = Provenance(
                self._model,
                seed,
                self._steps,
                *picture.size,
                edited=isinstance(request, EditRequest),
                prompt=request.prompt if request.embed_prompt else None,
                loras=self._loras,
            )
            return encode(picture, output_format, request.output_quality, provenance, self._signer)

        return self._pool.submit(work)

    async def _upload(
        self, files: Sequence[bytes], output_format: OutputFormat, store: ObjectStore, job_id: str
    ) -> list[str]:
        """The files' URLs in the store."""
        keys = [object_key(job_id, i, EXTENSIONS[output_format]) for i in range(len(files))]
        upload = await asyncio.to_thread(_import_upload)
        urls: list[str] = await upload.put(store, list(zip(keys, files, strict=True)), f"image/{output_format}")
        return urls

    async def _smaller(
        self, answer: GenerateResponse, files: list[bytes], limit: int, failure: DeliveryFailed | None
    ) -> tuple[OutputFormat, list[bytes]]:
        """The pictures in a smaller format, if the job allows it and one fits into `limit` bytes."""
        least = answer_size(answer, files)
        formats: tuple[OutputFormat, ...] = ("webp", "jpeg")
        for output_format in formats if self._request.allow_format_change else ():
            too_wide = output_format == "webp" and max(answer.width, answer.height) > MAX_WEBP_SIDE
            if output_format == self._request.output_format or too_wide:
                continue
            encoded = [self._encode(seed, picture, output_format) for seed, picture in self._pictures]
            smaller = [await asyncio.wrap_future(file) for file in encoded]
            if answer_size(answer, smaller) <= limit:
                return output_format, smaller
            least = min(least, answer_size(answer, smaller))
        if failure is not None:
            raise DeliveryFailed(f"{failure.message}, and {least / 1e6:.1f} MB are too large to send", "delivery")
        raise ResultTooLarge(
            f"the answer would be {least / 1e6:.1f} MB and {limit / 1e6:g} MB are allowed; ask for fewer or smaller "
            "pictures, for output_format jpeg or webp, for delivery by url, or set allow_format_change",
            "output_format",
        )


def _import_upload() -> ModuleType:
    """In a thread, and with the first upload: aiohttp and botocore take half a second that no start has to wait for."""
    from imagegen.outputs import upload

    return upload


def to_base64(data: bytes) -> str:
    """Plain base64, without a prefix."""
    return base64.b64encode(data).decode("ascii")


def answer_size(answer: GenerateResponse, files: Sequence[bytes]) -> int:
    """Bytes of the answer with these files, as RunPod's SDK sends it: {"output": ...} in JSON, pictures in base64."""
    rest = json.dumps({"output": answer.model_dump()}, ensure_ascii=False).encode(errors="surrogatepass")
    # Each picture has its quotes, a comma and a space; a warning and the last digits of the timings are to come.
    return len(rest) + 256 + sum((len(data) + 2) // 3 * 4 + 4 for data in files)
