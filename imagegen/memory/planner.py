"""Which plan a GPU gets: the best that fits, or what the settings ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from imagegen.errors import ConfigurationError
from imagegen.memory.footprint import part_bytes
from imagegen.memory.plan import PLACES, Gpu, MemoryPlan, describe, gib
from imagegen.memory.types import Offload, Precision
from imagegen.models import ModelSpec, Size

#: From this compute capability on a GPU multiplies fp8.
FP8_CAPABILITY = (8, 9)
Pair = tuple[Precision, Precision]


def candidates(capability: tuple[int, int]) -> Iterator[tuple[Precision, Precision, Offload]]:
    """Precision of the transformer and of the text encoder, and offload, from what is best to what needs least.

    All on the GPU comes before a text encoder that is fetched for each new prompt, and that before 4 bits; parts that
    are fetched for each image come after them, and layers that are fetched for each step last. Inside of each, what
    is most exact comes first: the other precisions are measured against bf16, and are chosen where they buy room, or by
    whoever wants their speed (IMAGEGEN_PRECISION=fp8).
    """
    eight: Precision = "fp8" if capability >= FP8_CAPABILITY else "int8"
    exact: list[Pair] = [("bf16", "bf16"), (eight, "bf16"), (eight, eight)]
    small: list[Pair] = [("nf4", eight), ("nf4", "nf4")]
    resident: list[Offload] = ["none", "embeddings"]
    fetched: list[Offload] = ["text_encoder"]
    stages: list[tuple[list[Pair], list[Offload]]] = [
        (exact, resident),
        (exact, fetched),
        (small, resident),
        (small, fetched),
        (exact + small, ["model"]),
        (exact, ["group"]),  # diffusers would leave the scales of bitsandbytes' weights behind
    ]
    for pairs, offloads in stages:
        for transformer, text_encoder in pairs:
            for offload in offloads:
                yield transformer, text_encoder, offload


def choose(
    spec: ModelSpec,
    gpu: Gpu | None,
    *,
    references: int | None = None,
    size: Size | None = None,
    precision: Precision | Literal["auto"] = "auto",
    offload: Offload | Literal["auto"] = "auto",
    stored: tuple[Precision | None, Precision | None] = (None, None),
    nf4: bool = True,
    compiled: bool = True,
    lora_rank: int = 0,
) -> MemoryPlan:
    """The plan for a GPU: the first of `candidates` that fits.

    Args:
        gpu: None: a CPU.
        references: the most that an image may have; None: the model's.
        size: the largest image that must fit; None: the model's default.
        precision: of the transformer; the text encoder has the same or a better one. Forced unless "auto".
        offload: forced unless "auto".
        stored: the precision in which the folder holds transformer and text encoder already, if it does.
        nf4: whether bitsandbytes is installed, whose nf4 is.
        compiled: whether the transformer's blocks are, where the plan allows it.
        lora_rank: of the LoRA adapters of a job together; 0: there are none.

    Raises:
        ConfigurationError: nothing that was asked for fits, with what it needs and the nearest plan that fits; or the
            GPU cannot run it.
    """
    references = spec.max_references if references is None else references
    size = size or (spec.size, spec.size)
    asked = _asked(precision, offload)
    if not nf4 and "nf4" in (precision, *stored):
        raise ConfigurationError("nf4 needs bitsandbytes, which is not installed: pip install 'bitsandbytes>=0.50'")

    def plan(transformer: Precision, text_encoder: Precision, where: Offload, why: str = "") -> MemoryPlan:
        parts = part_bytes(spec, transformer, text_encoder, element=4 if gpu is None else 2)
        # Layers that are fetched as they run would cut the blocks into pieces.
        one_graph = compiled and gpu is not None and where != "group"
        return MemoryPlan(
            spec, gpu, transformer, text_encoder, where, references, size, parts, why, one_graph, lora_rank
        )

    if gpu is None:
        transformer = stored[0] or ("bf16" if precision == "auto" else precision)
        return plan(transformer, stored[1] or transformer, "none", "a CPU has no room to run out of")
    _check_runs(precision, stored, gpu.capability)
    offloads = get_args(Offload) if offload == "auto" else (offload,)
    every = [  # which these weights allow here; an error's advice is one of them
        one
        for one in (plan(*candidate) for candidate in _with(precision, stored, gpu.capability))
        if stored[0] in (None, one.transformer)
        and stored[1] in (None, one.text_encoder)
        and (nf4 or "nf4" not in (one.transformer, one.text_encoder))
    ]
    wanted = [one for one in every if one.offload in offloads and precision in ("auto", one.transformer)]
    if not wanted:
        holds = f"transformer {stored[0] or 'bf16'}, text encoder {stored[1] or 'bf16'}"
        raise ConfigurationError(f"{asked or 'this'} is not possible: the model's directory holds {holds}")
    found = next((one for one in wanted if one.fits(gpu)), None)
    if found is not None:
        return plan(found.transformer, found.text_encoder, found.offload, _why(found, wanted, asked))
    best = min(wanted, key=lambda one: one.needed)
    raise ConfigurationError(_too_large(best, gpu, asked, next((one for one in every if one.fits(gpu)), None)))


def _with(
    precision: Precision | Literal["auto"],
    stored: tuple[Precision | None, Precision | None],
    capability: tuple[int, int],
) -> list[tuple[Precision, Precision, Offload]]:
    """The candidates of a GPU, and where another 8-bit precision is asked for than the GPU's own, those with that."""
    named = {precision, *stored}
    if "int8" in named and "fp8" not in named:
        capability = (0, 0)  # int8 runs on every GPU
    return list(candidates(capability))


def _check_runs(precision: str, stored: Sequence[str | None], capability: tuple[int, int]) -> None:
    if "fp8" not in (precision, *stored) or capability >= FP8_CAPABILITY:
        return
    needs = f"fp8 needs compute capability {_dotted(FP8_CAPABILITY)}, and the GPU has {_dotted(capability)}"
    if "fp8" in stored:  # no setting changes what the folder holds
        raise ConfigurationError(
            f"{needs}; these weights are stored in fp8: use an image with PRECISION=int8, or the weights as published"
        )
    raise ConfigurationError(f"{needs}; int8 runs on it (IMAGEGEN_PRECISION)")


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _asked(precision: str, offload: str) -> str:
    named = {"IMAGEGEN_PRECISION": precision, "IMAGEGEN_OFFLOAD": offload}
    return " ".join(f"{name}={value}" for name, value in named.items() if value != "auto")


def _why(found: MemoryPlan, wanted: Sequence[MemoryPlan], asked: str) -> str:
    if asked:
        return f"chosen by {asked}"
    if found is wanted[0]:
        return "the GPU has room for the model as it is"
    before = wanted[wanted.index(found) - 1]
    return (
        f"the next better plan (transformer {before.transformer}, text encoder {before.text_encoder}, "
        f"{PLACES[before.offload]}) needs {gib(before.needed)} with the reserve"
    )


def _too_large(best: MemoryPlan, gpu: Gpu, asked: str, nearest: MemoryPlan | None) -> str:
    text = (
        f"{asked + ': ' if asked else ''}{best.spec.name} needs {gib(best.needed)} of the GPU's memory for "
        f"{describe(best.size, best.references)}, and {gib(gpu.bytes)} is available"
    )
    advice = []
    if asked and nearest is not None:
        advice.append(
            f"IMAGEGEN_PRECISION={nearest.transformer} IMAGEGEN_OFFLOAD={nearest.offload} needs {gib(nearest.needed)}"
        )
    for fewer in range(best.references - 1, 0, -1):
        needed = replace(best, references=fewer).needed
        if needed <= gpu.bytes:
            advice.append(f"IMAGEGEN_MAX_REFERENCES={fewer} needs {gib(needed)}")
            break
    return f"{text}; {' or '.join(advice) or 'choose a larger GPU, or a smaller model'}"


def stored_precisions(path: Path) -> tuple[Precision | None, Precision | None]:
    """The precision in which a model's folder holds transformer and text encoder; None where it is not quantised.

    Raises:
        ConfigurationError: it was quantised in a way that is not read.
    """
    return _stored_precision(path / "transformer"), _stored_precision(path / "text_encoder")


def _stored_precision(folder: Path) -> Precision | None:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    except (OSError, ValueError):  # what is wrong with the folder is said when it is loaded
        return None
    if not settings:
        return None
    if settings.get("quant_method") == "bitsandbytes":
        raise ConfigurationError(
            f"{folder.name} is quantised by bitsandbytes, which is not read; use the original, or"
            " imagegen.builder.quantize"
        )
    return "int8" if "int8" in json.dumps(settings).lower() else "fp8"
