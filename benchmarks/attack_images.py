"""Attacks by reference images that are made to be slow, and SIGTERM beside them. Part of `benchmarks.attack`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from benchmarks.attacked import Attacked, Peak, Row, children, in_time, terminate
from imagegen.editing.photo import MAX_PHOTO_PIXELS
from tests.support.hostile import PICTURE, scans, slow
from tests.support.images import to_base64, to_bytes

#: Seconds until an image that is made to be slow is an error; until another caller's edit is done beside four; until
#: the server ends. Docker kills it after 10.
ERROR_SECONDS, OTHER_SECONDS, END_SECONDS = 12, 3, 5
#: Four of the largest photos at once, which are no attack, and take what they take.
PHOTO_SECONDS = 60


def attacks() -> dict[str, tuple[bytes, dict[str, object]]]:
    """An image and the fields beside it."""
    side = int(MAX_PHOTO_PIXELS**0.5)
    photo = to_bytes(Image.new("RGB", (side, side), "red"), "JPEG")
    dot = Image.new("L", (side, side))
    dot.paste(255, (0, 0, 9, 9))
    none = {"width": None, "height": None, "mask_grow": 512, "mask_feather": 512}
    return {
        "PNGs with a slow ICC profile": (slow("PNG"), {}),
        "JPEGs with one": (slow("JPEG"), {}),
        "WebPs with one": (slow("WEBP"), {}),
        "JPEGs of 10,000 scans, 4000x4000": (scans(10_000, (4000, 4000)), {}),
        "masks with one": (to_bytes(PICTURE), {"width": None, "height": None, "mask": to_base64(slow("PNG"))}),
        "masks of 36 megapixels that grow by 512": (photo, {**none, "mask": to_base64(dot)}),
    }


def rows(attacked: Attacked, short: bool = False) -> Iterator[Row]:
    """Four jobs of each kind at once, another caller's edit a second after them, and one when they have ended."""
    good = to_bytes(PICTURE)
    attacked.edit(good)
    for name, (image, fields) in list(attacks().items())[: 1 if short else None]:
        with Peak(attacked.process.pid) as peak, ThreadPoolExecutor() as threads:
            jobs = [threads.submit(attacked.edit, image, caller="attacker", **fields) for _ in range(4)]
            time.sleep(1)
            beside, beside_seconds = attacked.edit(good)
            answers = [job.result() for job in jobs]
        after, after_seconds = attacked.edit(good)
        outcomes = ", ".join(sorted({outcome for outcome, _ in answers}))
        longest = max(seconds for _, seconds in answers)
        # The fourth of the JPEGs of many scans waits for the memory of the others.
        allowed = 2 * ERROR_SECONDS if "scans" in name else PHOTO_SECONDS if "36" in name else ERROR_SECONDS
        yield Row(
            f"4 {name}",
            f"{outcomes} after {longest:.1f} s; another's edit {beside_seconds:.1f} s beside them, "
            f"{after_seconds:.1f} s after; {peak.grown:+.0f} MB",
            f"a typed error or an image within {allowed} s; the other's edit passes within {OTHER_SECONDS} s",
            in_time(longest, allowed)
            and {beside, after} == {"image"}
            and in_time(max(beside_seconds, after_seconds), OTHER_SECONDS)
            and {outcome for outcome, _ in answers} <= {"422 bad_reference", "image"},
        )


def end(attacked: Attacked) -> Row:
    """SIGTERM beside four slow decoders: the server is gone afterwards."""
    image = slow("PNG")
    callers: list[threading.Thread] = []
    while len(children(attacked.process.pid)) < 5:
        if not any(caller.is_alive() for caller in callers):  # a decoder ends after ten seconds, and may not be seen
            callers = [threading.Thread(target=attacked.edit, args=(image,), daemon=True) for _ in range(4)]
            for caller in callers:
                caller.start()
        time.sleep(0.1)
    status, seconds, left = terminate(attacked)
    for caller in callers:
        caller.join()
    return Row(
        "SIGTERM beside 4 PNGs with a slow ICC profile",
        f"ends with {status} after {seconds:.1f} s; {left} processes are left",
        f"ends with 0 within {END_SECONDS} s, and none is left",
        status == 0 and in_time(seconds, END_SECONDS) and left == 0,
    )
