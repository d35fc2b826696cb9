"""Measures the miniature model on combinations that its training never showed, through the real FluxPipeline.

python -m scripts.eval_micro            prints the table, writes outputs/micro-eval.png
python -m scripts.eval_micro --card     also writes the table into models/micro/README.md, and docs/micro.png
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from builder.micro import __main__ as recipe
from builder.micro.measure import background_colour, find_shapes, interval, shape_colour, untouched_difference
from builder.micro.scenes import COLOURS, Scene, held_out_combinations, place, shade
from imagegen.models import MICRO_PATH, get_model
from imagegen.server.flux_pipeline import FluxConfig, FluxPipeline

ROOT = Path(__file__).resolve().parent.parent
SIZE = 128
WORDINGS = (
    "a{n} {colour} {kind} on a{m} {background} background",
    "a{m} {background} background with a{n} {colour} {kind}",
    "draw a{n} {colour} {kind} on a{m} {background} background",
)
_BEGIN, _END = "<!-- figures -->", "<!-- /figures -->"


@dataclass
class Trial:
    """One picture: what was asked, from which reference, and which measures it passed."""

    prompt: str
    before: Image.Image | None
    drawn: Image.Image
    passed: dict[str, bool]


def _n(word: str) -> str:
    return "n" if word[0] in "aeiou" else ""


def _generate(pipeline: FluxPipeline, each: int) -> Iterator[Trial]:
    for kind, colour, background in held_out_combinations():
        for wording in WORDINGS:
            prompt = wording.format(kind=kind, colour=colour, background=background, n=_n(colour), m=_n(background))
            for seed in range(each):
                drawn = pipeline.generate(prompt, seed=seed, **_how()).image
                yield Trial(
                    prompt,
                    None,
                    drawn,
                    {
                        "text to image: background's colour": background_colour(drawn) == background,
                        "text to image: shape's colour": shape_colour(drawn) == colour,
                        "text to image: both": (background_colour(drawn), shape_colour(drawn)) == (background, colour),
                        "text to image: shape": [found.kind for found in find_shapes(drawn)[:1]] == [kind],
                    },
                )


def _edit(pipeline: FluxPipeline, each: int) -> Iterator[Trial]:
    """Edits whose result is a combination that was held out."""
    rng = random.Random(recipe.SEED + 2)
    for kind, colour, background in held_out_combinations():
        for seed in range(each):
            position, size = rng.choice(["centre", "left", "right", "top", "bottom"]), rng.choice(["medium", "big"])
            after = Scene(background, shade(background, rng), (place(kind, colour, position, size, rng, loose=True),))
            other = rng.choice([name for name in COLOURS if name not in (colour, background)])
            if seed % 2:
                before, prompt = after.with_shape(0, colour=other, rgb=shade(other, rng)), f"make the {kind} {colour}"
                name = "edit: shape's new colour"
            else:
                before = replaced(after, background=other, rgb=shade(other, rng))
                prompt, name = f"make the background {background}", "edit: background's new colour"
            reference, wanted = before.draw(SIZE, SIZE), after.draw(SIZE, SIZE)
            drawn = pipeline.edit(prompt, [reference], seed=seed, **_how()).image
            right = background_colour(drawn) == background and shape_colour(drawn) == colour
            kept = untouched_difference(drawn, reference, wanted) <= 12
            yield Trial(prompt, reference, drawn, {name: right, "edit: made, and all else kept": right and kept})


def _some(trials: list[Trial], count: int) -> list[Trial]:
    """So many of them, evenly spread and not chosen."""
    return [trials[i * len(trials) // count] for i in range(count)]


def _how() -> dict[str, Any]:
    return {"width": SIZE, "height": SIZE, "num_inference_steps": 4, "guidance_scale": 1.0}


def table(trials: list[Trial]) -> str:
    """A Markdown table of the share that passed each measure, with its 95 % confidence interval."""
    lines = ["| what | right | of | share | 95 % interval |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(name for trial in trials for name in trial.passed):
        results = [trial.passed[name] for trial in trials if name in trial.passed]
        low, high = interval(sum(results), len(results))
        share = f"{sum(results) / len(results):.1%} | {low:.1%} to {high:.1%}"
        lines.append(f"| {name} | {sum(results)} | {len(results)} | {share} |")
    return "\n".join(lines)


def contact_sheet(trials: list[Trial], columns: int = 8) -> Image.Image:
    """The pictures with what was asked; a reference stands before its edit, a failure has a red frame."""
    cells = [
        cell
        for t in trials
        for cell in ([(t.before, "reference", True)] if t.before else [])
        + [(t.drawn, t.prompt, all(t.passed.values()))]
    ]
    step_x, step_y = SIZE + 8, SIZE + 30
    sheet = Image.new("RGB", (columns * step_x, -(-len(cells) // columns) * step_y), "grey")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, text, good) in enumerate(cells):
        x, y = i % columns * step_x + 4, i // columns * step_y + 4
        if not good:
            pen.rectangle((x - 4, y - 4, x + SIZE + 3, y + SIZE + 3), fill="red")
        sheet.paste(picture, (x, y))
        pen.text((x, y + SIZE + 1), f"{text[:22]}\n{text[22:44]}", fill="white", font_size=10)
    return sheet


def write_card(path: Path, figures: str) -> None:
    """Replaces what stands between the marks of the card."""
    card = path.read_text(encoding="utf-8")
    before, _, rest = card.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_BEGIN}\n{figures}\n{_END}{after}", encoding="utf-8")


def main() -> int:
    """The command line; exit status 1 when both colours are right in less than nine of ten."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MICRO_PATH, help="the model's folder")
    parser.add_argument("--each", type=int, default=4, help="pictures for each combination and wording")
    parser.add_argument(
        "--sheet", type=Path, default=Path("outputs/micro-eval.png"), help="where the contact sheet goes"
    )
    parser.add_argument("--card", action="store_true", help="write the figures into the model's card")
    args = parser.parse_args()
    with FluxPipeline(FluxConfig(get_model("micro"), args.model, device="cpu")) as pipeline:
        begun = time.monotonic()
        drawn, edited = list(_generate(pipeline, args.each)), list(_edit(pipeline, 2 * args.each))
        pace = (time.monotonic() - begun) / (len(drawn) + len(edited))
    figures = table([*drawn, *edited])
    print(f"{figures}\n\n{pace:.2f} s a picture")
    args.sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([*_some(drawn, 48), *_some(edited, 32)]).save(args.sheet)
    print(args.sheet)
    if args.card:
        write_card(args.model / "README.md", figures)
        contact_sheet([*_some(drawn, 16), *_some(edited, 8)]).save(ROOT / "docs" / "micro.png")
    return int(sum(t.passed["text to image: both"] for t in drawn) < 0.9 * len(drawn))


if __name__ == "__main__":
    sys.exit(main())
