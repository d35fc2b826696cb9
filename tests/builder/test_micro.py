"""The miniature's own world: scenes, captions, tokenizer, and the measures that judge it."""

import math
import random
import statistics
from dataclasses import replace

import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from imagegen.builder.micro.captions import SLOTS, generate
from imagegen.builder.micro.measure import (
    background_colour,
    find_shapes,
    interval,
    shape_colour,
    shows,
    size_name,
    untouched_difference,
)
from imagegen.builder.micro.samples import KINDS, draw_sample
from imagegen.builder.micro.scenes import (
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    held_out_combinations,
    is_held_out,
    may_train,
    place,
    scatter,
    shade,
)
from imagegen.builder.micro.text_encoder import labels_of
from imagegen.builder.micro.tokenizer import MAX_TOKENS, build_tokenizer
from imagegen.builder.micro.transformer import hold, schedule
from imagegen.models import MICRO_PATH, get_model


@pytest.fixture(scope="module")
def samples():
    rng = random.Random(1)
    return [draw_sample(kind, rng) for kind in KINDS for _ in range(600)]


def test_training_never_shows_what_is_held_out(samples):
    held_out = set(held_out_combinations())
    assert len(held_out) > 25
    for sample in samples:
        for seen in (*sample.references, sample.target):
            assert not held_out & {(shape.kind, shape.colour, seen.background) for shape in seen.shapes}


def test_what_is_held_out_covers_every_shape_and_colour():
    for position, names in enumerate((SHAPES, COLOURS, COLOURS)):
        assert {combination[position] for combination in held_out_combinations()} == set(names)
    assert is_held_out(*held_out_combinations()[0])


def test_what_is_generated_where_nothing_is_said_is_taught():
    for kind in SHAPES:
        assert may_train(Scene("white", COLOURS["white"], (place(kind, "red", "centre", "medium"),)))


def test_no_edge_cuts_what_is_to_be_seen(samples):
    """At every size: a radius is of the shorter side."""
    for sample in samples:
        for scene in (*sample.references, sample.target):
            for shape in scene.shapes:
                assert shape.radius <= min(shape.x, 1 - shape.x, shape.y, 1 - shape.y), sample.caption


def test_every_caption_is_within_the_vocabulary_and_the_tokens(samples):
    tokenizer = build_tokenizer()
    for sample in samples:
        ids = tokenizer(f"<start> {sample.caption} <end>")["input_ids"]
        assert ids.count(tokenizer.unk_token_id) == sample.caption.count("<unk>"), sample.caption
        assert len(ids) <= MAX_TOKENS == get_model("micro").max_sequence_length
    assert labels_of(samples).shape == (len(samples), len(SLOTS))


def test_the_delivered_tokenizer_is_the_built_one():
    delivered = Flux2KleinPipeline.load_config(MICRO_PATH)
    assert delivered["_class_name"] == "Flux2KleinPipeline"
    from transformers import AutoTokenizer

    read, built = AutoTokenizer.from_pretrained(MICRO_PATH / "tokenizer"), build_tokenizer()
    for text in ("A RED circle, on a blue background.", "make the square green", "42 seas, two stars", ""):
        chat = [{"role": "user", "content": text}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        one, two = (tokenizer.apply_chat_template(chat, **options) for tokenizer in (read, built))
        assert one == two
        assert read(one)["input_ids"] == built(two)["input_ids"]


def test_the_model_cards_example_generates_what_it_says(tmp_path, monkeypatch):
    code = (MICRO_PATH / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code.replace("imagegen/micro", str(MICRO_PATH)), {})
    with Image.open(tmp_path / "circle.png") as picture:
        assert background_colour(picture) == "blue"
        assert [(found.kind, found.colour) for found in find_shapes(picture)] == [("circle", "red")]


def test_what_is_not_said_has_one_answer():
    """One image for each caption and noise: where both colours are open, red on white, whatever else was drawn."""
    rng, answers = random.Random(8), {}
    for _ in range(4000):
        drawn = generate(rng)
        if len(drawn.target.shapes) == 1:
            seen = (drawn.target.shapes[0].colour, drawn.target.background)
            assert answers.setdefault(drawn.caption, seen) == seen, drawn.caption
    assert answers["a star"] == ("red", "white")
    assert answers["a white star"] == ("white", "black")
    assert answers["a star on a red background"] == ("yellow", "red")


def test_an_edit_changes_what_it_names_and_nothing_else(samples):
    for sample in samples:
        task = sample.meaning["task"]
        if task == "recolour":
            (before,) = sample.references
            changed = [i for i, shape in enumerate(sample.target.shapes) if shape != before.shapes[i]]
            assert len(changed) == 1
            assert before.shapes[changed[0]].kind in sample.caption or len(before.shapes) == 1
            assert sample.target.shapes[changed[0]].colour == sample.meaning["colour"]
            assert sample.target.rgb == before.rgb
        elif task == "background":
            assert sample.target.shapes == sample.references[0].shapes
            assert sample.target.background == sample.meaning["background"]
        elif task == "remove":
            (before,) = sample.references
            (gone,) = set(before.shapes) - set(sample.target.shapes)
            assert gone.kind in sample.caption or len(before.shapes) == 1
            assert set(sample.target.shapes) < set(before.shapes)
            assert sample.target.rgb == before.rgb
        elif task == "swap":
            (before,) = sample.references
            changed = [(old, new) for old, new in zip(before.shapes, sample.target.shapes, strict=True) if old != new]
            assert [new for _, new in changed] == [
                replace(old, kind=sample.meaning["second_kind"], turn=0.0) for old, _ in changed
            ]
            assert len(changed) == 1
            assert f"the {changed[0][0].kind} " in sample.caption or len(before.shapes) == 1
        elif task == "keep":
            assert sample.target == sample.references[0]
        elif task == "add":
            (before,) = sample.references
            *old, new = sample.target.shapes
            assert tuple(old) == before.shapes
            assert (new.kind, new.colour) == (sample.meaning["kind"], sample.meaning["colour"])
            assert math.dist((new.x, new.y), POSITIONS[sample.meaning["position"]]) < 0.01
            assert math.dist((new.x, new.y), (old[0].x, old[0].y)) > new.radius + old[0].radius
        elif task == "move":
            (before,), (moved,) = sample.references, sample.target.shapes
            assert math.dist((moved.x, moved.y), POSITIONS[sample.meaning["position"]]) < 0.015
            assert before.with_shape(0, x=moved.x, y=moved.y) == sample.target
        elif task in ("enlarge", "shrink"):
            (before,), (after,) = sample.references, sample.target.shapes
            assert (after.radius > before.shapes[0].radius) == (task == "enlarge")
            assert before.with_shape(0, radius=after.radius) == sample.target
        elif task == "combine":
            meaning = sample.meaning
            ground = sample.references[int(meaning["ground_image"]) - 1]
            assert (sample.target.background, sample.target.rgb) == (ground.background, ground.rgb)
            slots = [meaning[slot] for slot in ("first_image", "second_image", "third_image") if slot in meaning]
            named = [sample.references[int(slot) - 1].shapes[0] for slot in slots]
            assert [(s.kind, s.rgb) for s in sample.target.shapes] == [(s.kind, s.rgb) for s in named]
            assert len(named) == len(sample.references) - 1


def test_one_of_two_is_named():
    rng = random.Random(3)
    for _ in range(50):
        sample = draw_sample("edit2", rng)
        (before,) = sample.references
        assert len({shape.kind for shape in before.shapes}) == 2
        assert sample.meaning["kind"] in {shape.kind for shape in before.shapes}


def test_what_the_words_leave_open_is_the_noises_to_choose(samples):
    """The same numbers give the same place and size, whatever else is asked for; what the words say is exact."""
    opened = [s for s in samples if s.meaning["task"] == "generate" and len(s.target.shapes) == 1]
    assert {s.play[0] is None for s in opened} == {s.play[2] is None for s in opened} == {True, False}
    for sample in opened:
        (shape,) = sample.target.shapes
        position, size = (sample.meaning.get(slot, "none") for slot in ("position", "size"))
        across, down, larger = (u and max(-2, min(2, u)) for u in sample.play)
        if larger is None:
            assert shape.radius == SIZES[size]
        else:
            assert shape.radius == pytest.approx(SIZES["medium"] * (1 + 0.16 * larger))
        if across is None:
            told = place(shape.kind, shape.colour, position, "medium")
            # A larger one is moved inside.
            assert math.dist((shape.x, shape.y), (told.x, told.y)) < 0.14
            assert size == "none" or math.dist((shape.x, shape.y), POSITIONS[position]) < (
                0.11 if size == "big" else 0.01
            )
        else:
            reach = 0.035 if size == "big" else 0.07
            centre = (0.5 + reach * across, 0.5 + reach * down)
            assert (shape.x, shape.y) == pytest.approx(centre)
        assert all(shape.radius <= at <= 1 - shape.radius for at in (shape.x, shape.y))
    assert statistics.pstdev(s.play[0] for s in opened if s.play[0] is not None) == pytest.approx(1, abs=0.1)


def test_noise_that_holds_numbers_is_still_noise():
    generator = torch.Generator().manual_seed(1)
    play = torch.randn(4000, 3, generator=generator)
    play[:1000] = math.nan
    noise = torch.randn(4000, 16, 8, generator=generator)
    held = hold(noise, play)
    assert torch.equal(held[:1000], noise[:1000])
    assert torch.allclose(held[1000:, :, :3].mean(1) * 4, play[1000:], atol=1e-5)
    assert torch.equal(held[:, :, 3:], noise[:, :, 3:])
    flat = held[1000:].flatten(1)
    covariance = flat.T @ flat / len(flat)
    assert (covariance - torch.eye(128)).abs().max() < 0.12  # 3000 samples: about five standard errors


def test_the_same_seed_gives_the_same_samples():
    first, second = ([draw_sample("edit", random.Random(5)) for _ in range(3)] for _ in range(2))
    assert first == second
    assert first[0].target.draw(64, 64).tobytes() == second[0].target.draw(64, 64).tobytes()


def test_the_measures_are_right_on_the_truth():
    rng = random.Random(3)
    for kind in SHAPES:
        for colour in COLOURS:
            for background in set(COLOURS) - {colour}:
                shape = scatter(place(kind, colour, "centre", rng.choice(["small", "medium", "big"])), rng)
                picture = Scene(background, shade(background, rng), (shape,)).draw(128, 128)
                assert (background_colour(picture), shape_colour(picture)) == (background, colour)
    assert shape_colour(Scene("red", COLOURS["red"]).draw(64, 64)) is None


def test_the_measure_finds_every_shape_of_the_truth():
    rng = random.Random(6)
    total = right = 0
    for _ in range(300):
        kind, position = rng.choice(SHAPES), rng.choice(list(POSITIONS))
        colour, background = rng.sample(list(COLOURS), 2)
        size = rng.choice(["small", "medium"] if position != "centre" else ["small", "medium", "big"])
        shape = scatter(place(kind, colour, position, size), rng)
        found = find_shapes(Scene(background, shade(background, rng), (shape,)).draw(128, 128))
        total += 1
        right += (
            [(f.kind, f.colour) for f in found] == [(kind, colour)]
            and abs(found[0].x - shape.x) + abs(found[0].y - shape.y) < 0.04
            and abs(found[0].radius / shape.radius - 1) < 0.1
        )
    assert right >= 0.99 * total
    left, other = (place(kind, "red", side, "small") for kind, side in (("star", "left"), ("circle", "right")))
    assert {f.kind for f in find_shapes(Scene("white", COLOURS["white"], (left, other)).draw(96, 144))} == {
        "star",
        "circle",
    }


def test_the_measure_of_what_was_kept_sees_only_that():
    after = Scene("blue", COLOURS["blue"], (place("circle", "red", "centre", "medium"),))
    before = replace(after, background="green", rgb=COLOURS["green"])
    pictures = [scene.draw(128, 128) for scene in (after, before)]
    assert untouched_difference(pictures[0], pictures[1], pictures[0]) == 0
    moved = after.with_shape(0, x=0.9).draw(128, 128)
    assert untouched_difference(moved, pictures[1], pictures[0]) > 30


def test_an_image_shows_a_scene_or_not():
    red, blue = place("circle", "red", "left", "small"), place("star", "blue", "right", "small")
    both = Scene("white", COLOURS["white"], (red, blue))
    assert shows(both.draw(128, 128), both)
    other = {
        "one is missing": Scene("white", COLOURS["white"], (red,)),
        "there is one more": replace(both, shapes=(*both.shapes, place("square", "green", "top", "small"))),
        "their colours are swapped": both.with_shape(0, rgb=COLOURS["blue"]).with_shape(1, rgb=COLOURS["red"]),
        "one is of another kind": both.with_shape(1, kind="triangle"),
        "one is elsewhere": both.with_shape(0, y=0.3),
        "one is larger": both.with_shape(0, radius=0.2),
        "the background is another": replace(both, rgb=COLOURS["yellow"]),
    }
    assert [name for name, scene in other.items() if shows(scene.draw(128, 128), both)] == []
    assert [size_name(radius) for radius in (0.1, 0.15, 0.22, 0.3)] == ["small", "small", "medium", "big"]


def test_what_is_held_out_is_what_the_evaluation_asks_for():
    rng, held_out = random.Random(2), set(held_out_combinations())
    for kind in KINDS:
        target = draw_sample(kind, rng, held_out=True).target
        assert held_out & {(shape.kind, shape.colour, target.background) for shape in target.shapes}


def test_the_interval_is_wilsons():
    # Agresti and Coull 1998: 0 of 10 gives 0 to 0.278.
    assert interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)


def test_training_samples_the_noise_levels_that_the_pipeline_uses(pipeline):
    seen = []

    class Stop(BaseException):
        pass

    def on_step(step, total, preview):
        seen.extend(pipeline._pipe.scheduler.sigmas[:-1].tolist())
        raise Stop

    with pytest.raises(Stop):
        pipeline.generate("x", width=128, height=128, num_inference_steps=4, guidance_scale=1, seed=0, on_step=on_step)
    assert seen == pytest.approx(schedule(64).tolist(), abs=1e-5)
