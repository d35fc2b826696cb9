"""How much main memory callers can make a worker use, beside its model: computed from its settings."""

from __future__ import annotations

from imagegen.engine.admission import (
    ADAPTERS,
    ANSWERS,
    DOWNLOADS,
    UNREAD_BYTES,
    delivery_megapixels_of,
    most_megapixels,
    places_of,
    upload_bytes_of,
)
from imagegen.engine.runner import CPU_THREADS, PHOTO_THREADS
from imagegen.inputs.decoders import PROCESSES
from imagegen.inputs.decoding import MAX_MEMORY, MAX_PHOTO_PIXELS
from imagegen.job_settings import MEMORY_MB
from imagegen.lora.header import most_bytes
from imagegen.models import MEGAPIXEL, ModelSpec
from imagegen.settings import Settings

#: A body while its texts are cut out of it: itself (a bytearray grows by an eighth ahead), and the texts.
_BODY_COPIES = 2.125
#: A download while it is taken out of its buffer.
_DOWNLOAD_COPIES = 2.125
#: Bytes a pixel for planning an edit of a photo (a larger canvas, distances to a mask), and for pasting the edit.
_PLANNING, _PASTING = 16, 8
#: A reference on its way into a decoder: its text, and that text as bytes, in this process and in the decoder's, which
#: also has the file.
_REFERENCE_COPIES = 4 / 3 * 4 + 1
#: Pillow keeps RGB in 4 bytes a pixel, L in 1.
_RGB, _L = 4, 1
#: An answer: its files (3.1 bytes a pixel if they are noise), base64 of them, its JSON as text and as bytes.
_ANSWER = 3.1 * (1 + 3 * 4 / 3)


def memory_bound(settings: Settings, spec: ModelSpec) -> dict[str, int]:
    """Bytes that each kind of work takes at most, all limits reached at once; their sum is the worker's bound.

    The model, the libraries and the temporary files of forms are not in it.
    """
    places, references = places_of(settings), min(spec.max_references, settings.max_references)
    adapter = most_bytes(spec, settings.lora_rank)
    waiting = max(references * MEGAPIXEL * _RGB, MAX_PHOTO_PIXELS * (_RGB + _L) + references * MEGAPIXEL * _RGB)
    bounds = {
        "bodies": upload_bytes_of(settings) * _BODY_COPIES,
        "decoders": 2 * MAX_MEMORY + PROCESSES * settings.max_reference_mb * 1e6 * _REFERENCE_COPIES,
        "downloads": DOWNLOADS * settings.max_reference_mb * 1e6 * _DOWNLOAD_COPIES,
        "decoded references": places * waiting,
        "edits of photos": MAX_PHOTO_PIXELS * (PHOTO_THREADS * _PLANNING + CPU_THREADS * _PASTING),
        "images in delivery": delivery_megapixels_of(settings, spec) * 1e6 * (_RGB + _ANSWER),
        "answers of stored jobs": ANSWERS * most_megapixels(settings) * 1e6 * _ANSWER,
        # Those that run beside their references, as bytes and as text: two, and two of others.
        "references of stored jobs": 4 * 2 * settings.max_body_mb * 1e6,
        # Each job may keep those that it was sent by URL; one is twice in memory while it comes, and in a file of /tmp.
        "adapters by URL": (places + 3 * ADAPTERS) * adapter if settings.lora_hosts else 0,
        "adapters that are kept": settings.lora_cache_mb * 1e6 if settings.lora_buffers else 0,
        "stored jobs": 0 if settings.jobs_dir else (settings.jobs_max_mb or MEMORY_MB) * 1e6,
        "answers that wait to be read": UNREAD_BYTES,
        "embeddings of prompts": settings.prompt_cache_mb * 1e6,
    }
    return {name: int(value) for name, value in bounds.items()}
