"""The miniature's training: it samples as the pipeline does; stopped and gone on with, in one process and in two."""

import copy
import math
import os
import random
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline
from safetensors.torch import load_file
from torch import multiprocessing

from imagegen.builder.micro import adapters, pool, text_encoder, training, transformer, vae
from imagegen.builder.micro.edits import edit_one_of_two
from imagegen.builder.micro.export import export
from imagegen.builder.micro.samples import draw_sample
from imagegen.builder.micro.scenes import COLOURS, SHAPES, SIZES, Scene, place
from imagegen.builder.micro.text_encoder import build_text_encoder, embed, tokenize
from imagegen.builder.micro.tokenizer import MAX_TOKENS, build_tokenizer
from imagegen.builder.micro.training import save
from imagegen.builder.micro.transformer import build_transformer
from imagegen.builder.micro.vae import build_vae, near_edges, to_tensor
from imagegen.models import MICRO_PATH

SMALL = dict.fromkeys(transformer.BATCH, 3)


class Stopped(BaseException):
    pass


@contextmanager
def stopping(at: int | None) -> Iterator[None]:
    """Stops a training at the end of its step `at`, which is not told any more."""
    done = training.Progress.__call__

    def stop(progress, step, **values):
        if step == at:
            raise Stopped
        done(progress, step, **values)

    training.Progress.__call__ = stop
    try:
        yield
    finally:
        training.Progress.__call__ = done


def train(rank: int, folder: Path, processes: int, port: int, stop_at: int | None) -> None:
    """Five rounds, or a stop in the fourth; as one of several processes, which are spawned: no fixture reaches them."""
    transformer._CHECKPOINT_EVERY, transformer.BATCH = 2, SMALL
    if processes > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        torch.set_num_threads(1)
    with stopping(stop_at):
        transformer.train_transformer(folder, 5, 1, None)


@pytest.fixture
def tiny_pool(tmp_path, monkeypatch):
    """A folder with the stages before the transformer's, untrained and tiny."""
    monkeypatch.setattr(transformer, "_CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(transformer, "BATCH", SMALL)
    monkeypatch.setattr(pool, "_PIECE", 3)
    monkeypatch.setattr(pool, "COUNTS", {("generate", 64, 64): 8, ("edit", 64, 96): 4, ("combine3", 64, 64): 4})
    folder = tmp_path / "whole"
    folder.mkdir()
    save(build_text_encoder(build_tokenizer()), folder / "text_encoder.safetensors")
    save(build_vae(), folder / "vae.safetensors")
    pool.build_pool(folder, 1)
    built = torch.load(folder / "pool.pt", weights_only=False)
    for group, ((kind, width, height), count) in zip(built.groups, pool.COUNTS.items(), strict=True):
        assert group.kind == kind
        assert group.target.shape == (count, width * height // 256, 32)
        assert len(group.captions) == len(group.references) == len(group.play) == count
        first = draw_sample(kind, random.Random(f"1-{kind}-{width}x{height}-0"))
        scenes = (first.target, *first.references)
        assert group.kinds[0].tolist() == [pool._kinds(scene, width, height).tolist() for scene in scenes]
        assert group.outlines[0].tolist() == [pool._outlines(scene, width, height).tolist() for scene in scenes]
        assert len(group.kinds) == len(group.outlines) == count
    return folder


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "transformer.safetensors") for folder in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow  # it trains three times, half a minute
def test_a_stopped_training_goes_on_as_if_it_had_not_been(tiny_pool, tmp_path):
    """The same weights in the end, and a model of those so far."""
    stopped = tmp_path / "stopped"
    shutil.copytree(tiny_pool, stopped)
    train(0, tiny_pool, 1, 0, None)
    with pytest.raises(Stopped):
        train(0, stopped, 1, 0, 3)
    (tmp_path / "model" / "loras").mkdir(parents=True)
    for kept in ("README.md", "loras/a.safetensors"):
        (tmp_path / "model" / kept).write_text(kept)
    export(stopped, tmp_path / "model")
    for kept in ("README.md", "loras/a.safetensors"):
        assert (tmp_path / "model" / kept).read_text() == kept
    assert Flux2KleinPipeline.from_pretrained(tmp_path / "model").transformer.config.num_layers == 2
    train(0, stopped, 1, 0, None)
    assert same_weights(tiny_pool, stopped)
    start, trained = build_transformer().state_dict(), load_file(stopped / "transformer.safetensors")
    assert not all(torch.equal(trained[name], start[name]) for name in trained)


@pytest.mark.slow  # as above
def test_a_training_goes_on_from_weights_and_sees_mixed_batches(tiny_pool, monkeypatch):
    """At a rate of nothing the weights stay; the heads, which begin anew, learn all the same."""
    monkeypatch.setattr(transformer, "_CONTINUED", 0.0)
    weights = MICRO_PATH / "transformer" / "diffusion_pytorch_model.safetensors"
    noted: list[str] = []
    monkeypatch.setattr(training.Progress, "note", lambda _, **values: noted.extend(values))
    transformer.train_transformer(tiny_pool, 2, 1, weights)
    assert noted.count("mixed") == 2 * transformer._MIXED
    was, now = load_file(weights), load_file(tiny_pool / "transformer.safetensors")
    assert all(torch.allclose(was[name].float(), now[name], atol=1e-6) for name in was)
    heads = torch.load(tiny_pool / "transformer.pt", weights_only=True)["trainee"]
    assert all(heads[f"{name}.0.bias"].any() for name in ("numbers", "shapes"))  # a norm's, 0 at the start


@pytest.mark.slow  # as above
@pytest.mark.parametrize(
    ("module", "train"),
    [
        (text_encoder, partial(text_encoder.train_text_encoder, build_tokenizer())),
        (vae, vae.train_vae),
    ],
)
def test_the_other_parts_go_on_as_well(module, train, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHECKPOINT_EVERY", 1)
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    train(whole, 2, 1)
    with pytest.raises(Stopped), stopping(1):
        train(stopped, 2, 1)
    assert not stopped.exists()
    with pytest.raises(ValueError, match=r"stopped\.pt is of 2 steps; it cannot go on with 3"):
        train(stopped, 3, 1)
    told: list[int] = []
    monkeypatch.setattr(training.Progress, "__call__", lambda _, step, **values: told.append(step))
    train(stopped, 2, 1)
    assert told == [1]
    first, second = load_file(whole), load_file(stopped)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def pipe():
    return Flux2KleinPipeline.from_pretrained(MICRO_PATH, dtype=torch.float32)


@pytest.mark.parametrize("steps", [1, 4, 6])
@pytest.mark.parametrize(("width", "height"), [(128, 128), (96, 144)])
@pytest.mark.parametrize("count", [0, 2])
def test_a_round_goes_where_the_pipeline_goes(pipe, steps, width, height, count):
    """The same latents after every step, with references and without: training learns from what sampling meets."""
    picture = place("star", "red", "left", "medium")
    images = [Scene(ground, COLOURS[ground], (picture,)).draw(width, height) for ground in ("blue", "green")[:count]]
    noise = torch.randn(1, 32, height // 16, width // 16, generator=torch.Generator().manual_seed(1))
    prompt = "put the star of image 1 on the background of image 2"
    seen = []
    pipe(
        prompt=prompt,
        image=images or None,
        latents=noise,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=1.0,
        max_sequence_length=MAX_TOKENS,
        callback_on_step_end=lambda _, __, ___, tensors: seen.append(tensors["latents"]) or {},
    )
    with torch.no_grad():
        text = embed(pipe.text_encoder, *tokenize(pipe.tokenizer, [prompt]))
        encoded = [pipe._encode_vae_image(to_tensor([image]), None) for image in images]
    packed, start = [pipe._pack_latents(one) for one in encoded], pipe._pack_latents(noise)
    nothing = torch.zeros_like(start)
    references = torch.stack(packed, 1) if packed else torch.empty(1, 0, *nothing.shape[1:])
    kinds = torch.zeros(1, 1 + count, nothing.shape[1], dtype=torch.long)
    outlines = torch.zeros(*kinds.shape, pool.CELLS, dtype=torch.bool)
    free = torch.full((1, 3), math.nan)
    group = pool.Group("edit", width, height, torch.tensor([0]), nothing, references, free, kinds, outlines)
    labels = kinds.flatten(1, 2), outlines.flatten(1, 2)
    batch = transformer.Batch(group, nothing, references.flatten(1, 2), text, *labels, start, start)
    trainee = transformer.Trainee(copy.deepcopy(pipe.transformer), fast=False)
    with torch.no_grad():
        for (number, moved, _), wanted in zip(transformer.sample(trainee, [batch], steps), seen, strict=True):
            assert moved is batch
            assert torch.allclose(batch.noisy, wanted, atol=1e-3), number
    assert (batch.noisy - start).abs().mean() > 0.5


def test_a_mixed_step_foresees_the_truth_from_below_the_pipelines_levels():
    """Given the right velocity, whatever the level: the error is 0, and wrong by the level's part of what it is off."""
    made = torch.Generator().manual_seed(2)
    target, noise = torch.randn(2, 500, 64, 32, generator=made)
    nothing = torch.zeros(500, 64)
    group = pool.Group("generate", 128, 128, nothing, target, nothing[:, None][:, :0], nothing, nothing, nothing)
    labels = nothing.long(), nothing.bool()[..., None].expand(-1, -1, pool.CELLS)
    batch = transformer.Batch(group, target, target[:, :0], nothing, *labels, noise, noise)
    off = 0.0

    def right(_, *, hidden_states, timestep, **__):
        seen.append(timestep)
        assert torch.equal(hidden_states, batch.noisy)
        heads = (torch.zeros(500, 64, wide) for wide in (transformer.NUMBERS, transformer.KINDS, pool.CELLS))
        return batch.noise - batch.target + off, *heads

    seen: list[torch.Tensor] = []
    rng = torch.Generator().manual_seed(1)
    ((moved, step),) = transformer.finish(right, [batch], rng)
    assert moved is batch and step.error == pytest.approx(0, abs=1e-9)
    assert torch.allclose(batch.noisy, torch.lerp(target, noise, seen[0][:, None, None]))
    least = transformer.schedule(64)[-1]
    assert 0 <= seen[0].min() < 0.01 and 0.99 * least < seen[0].max() < least
    off = 1.0
    ((_, wrong),) = transformer.finish(right, [batch], rng)
    assert wrong.error == pytest.approx(float(seen[1].square().mean()), rel=1e-4)
    # A low level teaches less than a high one, but not by the square of it.
    assert float(wrong.loss - step.loss) == pytest.approx(float(seen[1].mean()), rel=0.01)
    assert transformer._advance(right, batch, torch.zeros(500)).loss.isfinite()


@pytest.fixture
def inputs():
    """Of two images of 64x96 with one reference each: 24 tokens, and 24 more."""
    noise = torch.Generator().manual_seed(1)
    image_ids, text_ids = transformer.position_ids(64, 96, 1)
    return {
        "hidden_states": torch.randn(2, 48, 32, generator=noise),
        "encoder_hidden_states": torch.randn(2, 8, 192, generator=noise),
        "timestep": torch.full((2,), 0.7),
        "img_ids": image_ids,
        "txt_ids": text_ids[:8],
    }


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # bfloat16 goes into norms in float32
@pytest.mark.parametrize("bfloat16", [True, False])
def test_a_fast_trainee_does_without_torchs_attention(inputs, monkeypatch, bfloat16):
    """Its kernels for the CPU are slow; what comes out is nearly the same."""
    monkeypatch.setattr(transformer, "BFLOAT16", bfloat16)
    torch.manual_seed(1)
    model = build_transformer()
    torch.nn.init.normal_(model.proj_out.weight, std=0.02)
    trainee = transformer.Trainee(model, fast=False)
    expected = trainee(24, **inputs)
    assert [tuple(one.shape) for one in expected] == [(2, 24, 32), (2, 24, 3), (2, 48, 5), (2, 48, 64)]
    trainee.fast = True
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    with pytest.raises(TypeError):
        model(**inputs)
    for one, other in zip(trainee(24, **inputs), expected, strict=True):
        least, most = (1e-4, 0.02) if bfloat16 else (0, 1e-5)
        assert least <= (one - other).abs().mean() < most


def test_what_a_reference_shows_is_asked_early_and_what_is_generated_late(inputs):
    """By what learns from it: the double blocks alone; all single blocks but the last."""
    trainee = transformer.Trainee(build_transformer())

    def learns(tokens: slice) -> list[bool]:
        trainee.zero_grad()
        trainee(24, **inputs)[2][:, tokens].square().sum().backward()
        blocks = [*trainee.transformer.transformer_blocks, *trainee.transformer.single_transformer_blocks]
        return [any(p.grad is not None and bool(p.grad.any()) for p in block.parameters()) for block in blocks]

    assert learns(slice(24, None)) == [True] * 2 + [False] * 4
    assert learns(slice(24)) == [True] * 5 + [False]


@pytest.mark.slow  # it opens the model and trains a round
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # two adapters are meant
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # as below
def test_adapters_go_on_from_those_that_were_written(tmp_path, monkeypatch):
    """At a rate of nothing they stay what they were."""
    monkeypatch.setattr(adapters, "_CONTINUED", 0.0)
    monkeypatch.setattr(adapters, "COUNTS", {"generate": 2, "edit": 2, "edit2": 2})
    adapters.train(tmp_path, 1, 1, MICRO_PATH / "loras")
    for name in adapters.GAIN:
        was, now = (load_file(folder / f"{name}.safetensors") for folder in (MICRO_PATH / "loras", tmp_path))
        assert was.keys() == now.keys()
        assert all(torch.allclose(was[key], now[key], rtol=2e-3, atol=1e-6) for key in was)


def test_plain_attention_is_torchs():
    query, key, value = torch.randn(3, 2, 4, 20, 32, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(transformer.plain_attention(query, key, value), expected, atol=1e-5)


def test_the_pool_says_which_shape_is_where():
    star, circle = place("star", "red", "left", "small"), place("circle", "red", "right", "medium")
    shown = pool._kinds(Scene("blue", COLOURS["blue"], (star, circle)), 192, 128).reshape(8, 12)
    assert (shown[3:5, 2:4] == 1 + SHAPES.index("star")).all()
    assert (shown[3:5, 8:10] == 1 + SHAPES.index("circle")).all()
    assert set(shown[:, :1].flat) | set(shown[:, 5:7].flat) | set(shown[0]) | set(shown[7]) == {0}


def test_the_pool_tells_outlines_of_shapes_in_any_colour():
    """Cell by cell, where the tokens are: a turned square of the background's own colour, and a white star."""
    square, star = replace(place("square", "red", "left", "small"), turn=20.0), place("star", "white", "right", "big")
    cells = torch.from_numpy(pool._outlines(Scene("red", COLOURS["red"], (square, star)), 192, 128))
    shown = cells.view(8, 12, 8, 8).transpose(1, 2).reshape(64, 96)
    white = tuple(replace(shape, rgb=(255, 255, 255)) for shape in (square, star))
    drawn = to_tensor([Scene("black", (0, 0, 0), white).draw(192, 128)])[0, 0]
    expected = torch.nn.functional.avg_pool2d(drawn[None], 2)[0] > 0
    assert (shown != expected).float().mean() < 0.005
    assert 0.1 < shown.float().mean() < 0.3


def test_faint_shapes_weigh_more_and_outlines_count_in_references_too():
    """The loss of one step, of a model that foresees the image but for one token, and knows some of the outlines."""
    target, free = torch.zeros(1, 8, 32), torch.full((1, 3), math.nan)
    target[0, 2], target[0, 5] = 0.1, 2.0  # a faint shape, and one that stands out
    labels = torch.zeros(1, 2, 8, dtype=torch.long), torch.zeros(1, 2, 8, pool.CELLS, dtype=torch.bool)
    labels[1][0, 0, [2, 5]] = labels[1][0, 1, 3] = True
    group = pool.Group("edit", 64, 32, torch.tensor([0]), target, torch.zeros(1, 1, 8, 32), free, *labels)
    outlines = labels[1].flatten(1, 2)

    def loss(wrong_at: int | None, known: list[int]) -> float:
        foreseen = target.clone()
        if wrong_at is not None:
            foreseen[0, wrong_at] += 1
        logits = torch.zeros(1, 16, pool.CELLS)
        logits[:, known] = outlines[:, known].float() * 20 - 10
        velocity = (torch.ones_like(target) - foreseen) / 0.5

        def model(tokens, **_):
            return velocity, torch.zeros(1, tokens, 3), torch.zeros(1, 16, transformer.KINDS), logits

        noisy = torch.ones_like(target)
        kinds = labels[0].flatten(1, 2)
        batch = transformer.Batch(
            group, target, group.references.flatten(1, 2), torch.zeros(1, 32, 192), kinds, outlines, noisy, noisy
        )
        return transformer._advance(model, batch, torch.tensor([0.5])).loss.item()

    right = loss(None, [])
    faint, strong, ground = (loss(at, []) - right for at in (2, 5, 7))
    assert faint > 4 * strong > 4 * ground > 0
    # Of the image's shapes, and of the reference's.
    assert loss(None, [2, 5]) < right - 0.01
    assert loss(None, [11]) < right - 0.005


def test_no_two_shapes_of_a_reference_touch():
    rng = random.Random(1)
    for _ in range(300):
        left, right = edit_one_of_two(rng).references[0].shapes
        assert left.x + left.radius < 0.5 < right.x - right.radius
        assert all(shape.x - shape.radius > 0 and shape.x + shape.radius < 1 for shape in (left, right))
        assert min(left.radius, right.radius) > 0.1


def test_edges_weigh_more_in_the_vaes_loss():
    picture = to_tensor([Scene("blue", COLOURS["blue"], (place("square", "red", "centre", "medium"),)).draw(64, 64)])
    (edges,) = near_edges(picture)[0]
    assert edges.shape == (64, 64)
    assert edges[32, 32] == edges[2, 2] == 0  # inside and outside
    side = round(32 + 64 * SIZES["medium"] / math.sqrt(2))
    assert edges[32, side - 2 : side + 2].all()
    assert 0.05 < edges.mean() < 0.3


@pytest.mark.slow  # as above, in processes that import torch each
def test_two_processes_train_one_model(tiny_pool, tmp_path):
    """Where one stops, so does the other; they go on as if they had not; one alone does not go on in their place."""
    stopped = tmp_path / "stopped"
    shutil.copytree(tiny_pool, stopped)

    def run(folder, stop_at=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        multiprocessing.spawn(train, (folder, 2, port, stop_at), nprocs=2)

    run(tiny_pool)
    with pytest.raises((multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException)):
        run(stopped, stop_at=3)
    with pytest.raises(ValueError, match="of 2 processes; it cannot go on with 1"):
        train(0, stopped, 1, 0, None)
    run(stopped)
    assert same_weights(tiny_pool, stopped)
