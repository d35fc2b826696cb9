"""Names that other workers and APIs have for this project's fields, and their fields that change nothing here.

docs/clients.md has the same table with its sources; `tests/contract/test_aliases.py` holds the two together.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from imagegen.contract.given import is_given
from imagegen.contract.showing import kind_of, show

_SIZE = re.compile(r"([0-9]{1,5}) ?[xX*\u00d7] ?([0-9]{1,5})")  # the last is a multiplication sign
#: fal's names of sizes.
_SIZES = {
    "square": (512, 512), "square_hd": (1024, 1024), "portrait_4_3": (768, 1024), "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768), "landscape_16_9": (1024, 576),
}  # fmt: skip


def _size(value: Any) -> dict[str, Any]:
    """512x512 (OpenAI), 512*512 (RunPod), "square_hd" or {"width": 512, "height": 512} (fal)."""
    if isinstance(value, dict) and value.keys() == {"width", "height"}:
        return dict(value)
    if isinstance(value, str):
        value = value.strip().lower()
        if value == "auto":
            return {}
        if match := _SIZE.fullmatch(value):
            return {"width": int(match[1]), "height": int(match[2])}
        if value in _SIZES:
            return dict(zip(("width", "height"), _SIZES[value], strict=True))
    raise ValueError("is not WIDTHxHEIGHT, such as 1024x1024, or auto")


def _images(value: Any) -> dict[str, Any]:
    return {"images": value if isinstance(value, list) else [value]}


def _response_format(value: Any) -> dict[str, Any]:
    """OpenAI's name of what is `delivery` here."""
    delivery = {"b64_json": "base64", "url": "url"}.get(value) if isinstance(value, str) else None
    if delivery is None:
        raise ValueError("is not known; allowed are b64_json and url (with an object store)")
    return {"delivery": delivery}


def _output_compression(value: Any) -> dict[str, Any]:
    """OpenAI's quality, 0 to 100, of which 0 and 1 are one here."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,3}", value):  # of a form
        value = int(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or value % 1 or not 0 <= value <= 100:
        raise ValueError("is out of bounds (0 to 100)")
    return {"output_quality": max(1, int(value))}


@dataclass(frozen=True)
class Alias:
    """Another name of `field`; `read` makes this project's fields from its value, and raises ValueError for one that
    it cannot have. None: the value as it is."""

    field: str
    read: Callable[[Any], dict[str, Any]] | None = None


_STEPS, _GUIDANCE, _COUNT = Alias("num_inference_steps"), Alias("guidance_scale"), Alias("num_images")
_IMAGES, _SIDES, _MASK = Alias("images", _images), Alias("width", _size), Alias("mask")
ALIASES: dict[str, Alias] = {
    "steps": _STEPS,
    "num_steps": _STEPS,
    "guidance": _GUIDANCE,
    "cfg_scale": _GUIDANCE,
    "n": _COUNT,
    "num_outputs": _COUNT,
    "num_images_per_prompt": _COUNT,
    "size": _SIDES,
    "image_size": _SIDES,
    "image": _IMAGES,
    "image_url": _IMAGES,
    "image_urls": _IMAGES,
    "input_image": _IMAGES,
    **{f"input_image_{i}": _IMAGES for i in range(2, 9)},  # BFL's; `images` says how many a model takes
    "input_images": _IMAGES,
    "mask_url": _MASK,
    "mask_image": _MASK,
    "image_format": Alias("output_format"),
    "output_compression": Alias("output_quality", _output_compression),
    "response_format": Alias("delivery", _response_format),
}

#: Fields that change nothing here -> the values with which they ask for nothing. With any other a warning says so.
IGNORED: dict[str, tuple[Any, ...]] = {
    "acceleration": ("none",),
    "background": ("auto", "opaque"),
    "complexity": ("auto",),
    "disable_pup": (True, "true"),
    "disable_safety_checker": (True, "true"),
    "enable_base64_output": (True, "true"),
    "enable_prompt_expansion": (False, "false"),
    "enable_safety_checker": (False, "false"),
    "enable_sync_mode": (True, "true"),
    "go_fast": (False, "false"),
    "input_fidelity": (),
    "moderation": ("auto",),
    "output_megapixels": (1, "1"),
    "prompt_upsampling": (False, "false"),
    "quality": ("auto",),
    "resolution": ("1k", "1K"),
    "safety_identifier": (),
    "safety_tolerance": (),
    "scheduler": (),
    "style": (),
    "sync_mode": (True, "true"),
    "transparent_bg": (False, "false"),
    "user": (),
}
#: Of those, the ones whose other values would give another image than the caller means: they are errors.
ONLY: dict[str, tuple[Any, ...]] = {
    "background": ("auto", "opaque"),
    "input_fidelity": ("low",),
    "output_megapixels": (1, "1"),
    "resolution": ("1k", "1K"),
    "transparent_bg": (False, "false"),
}
#: Fields of RunPod's public endpoints alone: whoever sends one reads the answer as theirs, its image in `image_url`.
_RUNPODS = {
    "guidance", "image_format", "enable_safety_checker", "disable_safety_checker", "enable_base64_output",
    "enable_sync_mode",
}  # fmt: skip


@dataclass(frozen=True)
class Spoken:
    """What a request said in other words: the caller's name of each field that has another here, and the fields that
    change nothing, with their values as far as a job that is stored keeps them."""

    names: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, Any] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One for each field that changes nothing."""
        return tuple(f"{name}: changes nothing here" for name in self.ignored)

    def name(self, ours: str) -> str:
        """The caller's name of a field such as "width" or "images[1]"."""
        known, bracket, index = ours.partition("[")
        return self.names.get(ours) or self.names.get(known, known) + bracket + index


def translate(fields: dict[str, Any]) -> tuple[dict[str, Any], Spoken]:
    """A request's fields under their names here; unknown ones stay as they are.

    Raises:
        ValueError: a field came under two names, or its value cannot be read; begins with the name.
    """
    ours = {name: value for name, value in fields.items() if name not in ALIASES and name not in IGNORED}
    names: dict[str, str] = {}
    ignored = {}
    for name in ALIASES:  # in its order: input_image comes before input_image_2
        if is_given(fields.get(name)):
            _add(ours, names, name, fields[name])
    for name, value in fields.items():
        if name not in IGNORED or not is_given(value):
            continue
        if name in ONLY and value not in ONLY[name]:
            allowed = " and ".join(dict.fromkeys(one if isinstance(one, str) else show(one) for one in ONLY[name]))
            raise ValueError(f"{name}: {show(value)} cannot be honoured here; allowed are {allowed}")
        elif value not in IGNORED[name]:
            ignored[name] = _kept(value)
    return ours, Spoken(names, ignored)


def _kept(value: Any) -> Any:
    """What a job that is stored keeps of a value that changes nothing: it is short, is JSON, and is warned of too."""
    if isinstance(value, str):
        return value[:100]
    return value if isinstance(value, int | float) and abs(value) < 1e16 else kind_of(value)  # NaN is not


def _add(ours: dict[str, Any], names: dict[str, str], name: str, value: Any) -> None:
    """Adds a field that came as `name` to ours, and its name to the names."""
    alias = ALIASES[name]
    try:
        read = alias.read(value) if alias.read else {alias.field: value}
    except ValueError as error:
        raise ValueError(f"{name}: {show(value)} {error}") from None
    for target, one in read.items():
        before = ours.get(target) if is_given(ours.get(target)) else None
        numbered = name.startswith("input_image_") and names.get(target, "").startswith("input_image")
        if before is not None and not numbered:
            raise ValueError(f"{name}: came together with {names.get(target, target)}; give one or the other")
        ours[target] = [*before, *one] if before is not None else one
        if name == "image":
            continue  # `images` by its older name: its errors say images[0]
        if target == "images" and not isinstance(value, list):
            names[f"images[{len(ours[target]) - 1}]"] = name
        names.setdefault(target, name)


def nearest(name: str, known: Iterable[str]) -> str:
    """The most similar of the names that are known."""
    return difflib.get_close_matches(name.lower(), known, n=1, cutoff=0)[0]


def names_of(fields: Iterable[str]) -> list[str]:
    """Every name by which one of these fields is taken, and those that change nothing."""
    ours = set(fields)
    return [*ours, *(name for name, alias in ALIASES.items() if alias.field in ours), *IGNORED]


def is_image(name: str) -> bool:
    """Whether a field, under any of its names, holds reference images."""
    return name == "images" or (name in ALIASES and ALIASES[name].field == "images")


def is_mask(name: str) -> bool:
    """Whether a field, under any of its names, holds a mask."""
    return name == "mask" or (name in ALIASES and ALIASES[name].field == "mask")


def is_file(name: str) -> bool:
    """Whether a field of a form may be a file."""
    return is_image(name) or is_mask(name)


def wants_image_url(job_input: dict[str, Any]) -> bool:
    """Whether a job speaks as to one of RunPod's public endpoints, whose clients read `output.image_url`."""
    return not _RUNPODS.isdisjoint(job_input)
