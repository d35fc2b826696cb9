"""The miniature's own world: scenes, captions, tokenizer, and the measures that judge it."""

import random
from dataclasses import replace

import pytest
from diffusers import Flux2KleinPipeline

from builder.micro import captions
from builder.micro.measure import background_colour, find_shapes, interval, shape_colour, untouched_difference
from builder.micro.scenes import COLOURS, POSITIONS, SHAPES, Scene, held_out_combinations, is_held_out, place, shade
from builder.micro.text_encoder import labels_of
from builder.micro.tokenizer import MAX_TOKENS, build_tokenizer
from builder.micro.transformer import schedule
from imagegen.models import MICRO_PATH, get_model


@pytest.fixture(scope="module")
def samples():
    rng = random.Random(1)
    return [captions.sample(kind, rng) for kind in ("generate", "edit", "combine") for _ in range(600)]


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


def test_every_caption_is_within_the_vocabulary_and_the_tokens(samples):
    tokenizer = build_tokenizer()
    for sample in samples:
        ids = tokenizer(f"<start> {sample.caption} <end>")["input_ids"]
        assert ids.count(tokenizer.unk_token_id) == sample.caption.count("<unk>"), sample.caption
        assert len(ids) <= MAX_TOKENS == get_model("micro").max_sequence_length
    assert labels_of(samples).shape == (len(samples), len(captions.SLOTS))


def test_the_delivered_tokenizer_is_the_built_one():
    delivered = Flux2KleinPipeline.load_config(MICRO_PATH)
    assert delivered["_class_name"] == "Flux2KleinPipeline"
    from transformers import AutoTokenizer

    read, built = AutoTokenizer.from_pretrained(MICRO_PATH / "tokenizer"), build_tokenizer()
    for text in ("A RED circle, on a blue background.", "make the square green", "a sunset over 42 seas", ""):
        chat = [{"role": "user", "content": text}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        one, two = (tokenizer.apply_chat_template(chat, **options) for tokenizer in (read, built))
        assert one == two
        assert read(one)["input_ids"] == built(two)["input_ids"]


def test_an_edit_changes_what_it_names_and_nothing_else(samples):
    for sample in samples:
        task = sample.meaning["task"]
        if task == "recolour":
            (before,) = sample.references
            changed = [i for i, shape in enumerate(sample.target.shapes) if shape != before.shapes[i]]
            assert len(changed) == 1
            assert sample.target.shapes[changed[0]].colour == sample.meaning["colour"]
            assert sample.target.rgb == before.rgb
        elif task == "background":
            assert sample.target.shapes == sample.references[0].shapes
            assert sample.target.background == sample.meaning["background"]
        elif task == "remove":
            (before,) = sample.references
            assert set(sample.target.shapes) < set(before.shapes)
            assert sample.target.rgb == before.rgb
        elif task == "swap":
            (before,) = sample.references
            changed = [(old, new) for old, new in zip(before.shapes, sample.target.shapes, strict=True) if old != new]
            assert [new for _, new in changed] == [
                replace(old, kind=sample.meaning["second_kind"]) for old, _ in changed
            ]
            assert len(changed) == 1
        elif task == "keep":
            assert sample.target == sample.references[0]
        elif task == "combine":
            assert {sample.target.background} <= {reference.background for reference in sample.references}


def test_the_same_seed_draws_the_same_samples():
    first, second = ([captions.sample("edit", random.Random(5)) for _ in range(3)] for _ in range(2))
    assert first == second
    assert first[0].target.draw(64, 64).tobytes() == second[0].target.draw(64, 64).tobytes()


def test_the_measures_are_right_on_the_truth():
    rng = random.Random(3)
    for kind in SHAPES:
        for colour in COLOURS:
            for background in set(COLOURS) - {colour}:
                shape = place(kind, colour, "centre", rng.choice(["small", "medium", "big"]), rng, loose=True)
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
        shape = place(kind, colour, position, size, rng)
        found = find_shapes(Scene(background, shade(background, rng), (shape,)).draw(128, 128))
        total += 1
        right += (
            [(f.kind, f.colour) for f in found] == [(kind, colour)]
            and abs(found[0].x - shape.x) + abs(found[0].y - shape.y) < 0.04
            and abs(found[0].radius / shape.radius - 1) < 0.1
        )
    assert right >= 0.99 * total
    left, other = (place(kind, "red", side, "small", rng) for kind, side in (("star", "left"), ("circle", "right")))
    assert {f.kind for f in find_shapes(Scene("white", COLOURS["white"], (left, other)).draw(96, 144))} == {
        "star",
        "circle",
    }


def test_the_measure_of_what_was_kept_sees_only_that():
    rng = random.Random(4)
    after = Scene("blue", COLOURS["blue"], (place("circle", "red", "centre", "medium", rng),))
    before = replace(after, background="green", rgb=COLOURS["green"])
    pictures = [scene.draw(128, 128) for scene in (after, before)]
    assert untouched_difference(pictures[0], pictures[1], pictures[0]) == 0
    moved = after.with_shape(0, x=0.9).draw(128, 128)
    assert untouched_difference(moved, pictures[1], pictures[0]) > 30


def test_the_interval_is_wilsons():
    # Agresti and Coull 1998: 0 of 10 gives 0 to 0.278.
    assert interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)


def test_training_draws_the_noise_levels_that_the_pipeline_uses(pipeline):
    seen = []

    class Stop(BaseException):
        pass

    def on_step(step, total, preview):
        seen.extend(pipeline._pipe.scheduler.sigmas[:-1].tolist())
        raise Stop

    with pytest.raises(Stop):
        pipeline.generate("x", width=128, height=128, num_inference_steps=4, guidance_scale=1, seed=0, on_step=on_step)
    assert seen == pytest.approx(schedule(64).tolist(), abs=1e-5)
