"""What the miniature's transformer learns from: it samples as the pipeline does, and what weighs how much."""

import copy
import math

import pytest
import torch
from diffusers import Flux2KleinPipeline

from imagegen.builder.micro import pool, transformer
from imagegen.builder.micro.scenes import COLOURS, Scene, place
from imagegen.builder.micro.text_encoder import embed, tokenize
from imagegen.builder.micro.tokenizer import MAX_TOKENS
from imagegen.builder.micro.transformer import build_transformer
from imagegen.builder.micro.vae import to_tensor
from imagegen.models import MICRO_PATH


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
    ((number, moved, step),) = transformer.mix(right, [batch], rng)
    assert number is None and moved is batch
    assert step.error == pytest.approx(0, abs=1e-9)
    assert torch.allclose(batch.noisy, torch.lerp(target, noise, seen[0][:, None, None]))
    least = transformer.schedule(64)[-1]
    assert 0 <= seen[0].min() < 0.01 and 0.99 * least < seen[0].max() < least
    off = 1.0
    ((_, _, wrong),) = transformer.mix(right, [batch], rng)
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


def test_plain_attention_is_torchs():
    query, key, value = torch.randn(3, 2, 4, 20, 32, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(transformer.plain_attention(query, key, value), expected, atol=1e-5)


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
