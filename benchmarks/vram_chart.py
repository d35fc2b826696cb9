"""The chart of the estimate: for each GPU its plan, part by part up to the peak, against what the GPU has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

#: Drawn twice as large and made smaller at the end, which smooths the edges.
_SCALE = 2
_WIDTH, _ROW, _TOP, _LEFT, _RIGHT, _BOTTOM = 1180, 66, 112, 262, 40, 92
_INK, _PALE, _GRID, _PAPER = "#1f2933", "#66727f", "#e4e7eb", "#ffffff"
_PARTS = {
    "transformer": ("Transformer", "#2f6db5"),
    "text_encoder": ("Text encoder", "#7fb2e5"),
    "embeddings": ("Embeddings", "#c5def5"),
    "vae": ("VAE", "#8d99a6"),
    "context": ("CUDA context", "#c8cfd6"),
    "picture": ("Activations", "#f2a541"),
    "references": ("Activations of the references", "#f8d7a4"),
}
_WHERE = {
    "none": "all on the GPU",
    "embeddings": "embeddings on the CPU",
    "text_encoder": "text encoder fetched",
    "model": "parts fetched",
    "group": "layers fetched",
}


def segments(row: dict[str, Any], context: int) -> list[tuple[str, int]]:
    """What is on a GPU at the peak of its plan, from left to right, in bytes; together they are the peak."""
    plan = row["plan"]
    parts, peak, bare = plan["parts"], plan["peak"], plan["peak_by_references"]["0"]
    if plan["offload"] == "none":
        on_card = ["transformer", "text_encoder", "embeddings", "vae"]
    elif plan["offload"] == "embeddings":
        on_card = ["transformer", "text_encoder", "vae"]
    elif plan["offload"] == "text_encoder":
        on_card = ["transformer", "vae"]
    else:
        on_card = []
    filled = [(part, parts[part]) for part in on_card] + [("context", context)]
    if plan["offload"] == "text_encoder":  # the peak is its turn, if it needs more than the image
        filled.insert(1, ("text_encoder", min(parts["text_encoder"], peak - sum(size for _, size in filled))))
    left = sum(size for _, size in filled)
    return [*filled, ("picture", bare - left), ("references", peak - bare)]


def draw_chart(estimated: dict[str, Any], file: Path) -> None:
    """Draws the plans of all GPUs into a PNG."""
    gpus = estimated["gpus"]
    height = _TOP + _ROW * len(gpus) + _BOTTOM
    image = Image.new("RGB", (_WIDTH * _SCALE, height * _SCALE), _PAPER)
    draw = ImageDraw.Draw(image)
    most = max(row["gpu"] for row in gpus)
    step = 16 if most > 40 * 2**30 else 4
    span = (int(most / 2**30 / step) + 1) * step

    def x(size: float) -> float:
        return _LEFT + size / (span * 2**30) * (_WIDTH - _LEFT - _RIGHT)

    def text(place: tuple[float, float], words: str, size: int, colour: str = _INK, anchor: str = "lm") -> None:
        font = ImageFont.load_default(size * _SCALE)
        draw.text((place[0] * _SCALE, place[1] * _SCALE), words, colour, font, anchor)

    def box(left: float, top: float, right: float, bottom: float, colour: str) -> None:
        draw.rectangle([round(edge * _SCALE) for edge in (left, top, right, bottom)], colour)

    text((24, 34), f"{estimated['model']}: what is on the GPU, by size (an estimate)", 22)
    text(
        (24, 64),
        "GiB at the peak of a 1024x1024 picture with four references; the frame is what a process can have",
        14,
        _PALE,
    )
    below = _TOP + _ROW * len(gpus)
    for tick in range(0, span + 1, step):
        box(x(tick * 2**30) - 0.5, _TOP - 8, x(tick * 2**30) + 0.5, below, _GRID)
        text((x(tick * 2**30), _TOP - 18), str(tick), 13, _PALE, "mm")
    for number, row in enumerate(gpus):
        top = _TOP + _ROW * number + 8
        plan = row["plan"]
        text((24, top + 14), f"{row['gpu_gb']} GB", 18)
        text((24, top + 36), f"{plan['transformer']} + {plan['text_encoder']}, {_WHERE[plan['offload']]}", 13, _PALE)
        left = 0
        for name, size in segments(row, estimated["context"]):
            box(x(left), top + 4, x(left + size), top + 40, _PARTS[name][1])
            left += size
        frame = [round(edge * _SCALE) for edge in (x(0), top, x(row["gpu"]), top + 44)]
        draw.rectangle(frame, outline=_INK, width=_SCALE)
        inside = x(row["gpu"]) - x(left) > 90
        place = (x(left) + 8, top + 22) if inside else (x(row["gpu"]) + 8, top + 22)
        text(place, f"{left / 2**30:.1f} of {row['gpu'] / 2**30:.1f}", 14)
    start = 24.0
    for words, colour in _PARTS.values():
        box(start, below + 38, start + 16, below + 54, colour)
        text((start + 24, below + 46), words, 14)
        start += 44 + ImageFont.load_default(14).getlength(words)
    image.resize((_WIDTH, height), Image.Resampling.LANCZOS).save(file)
