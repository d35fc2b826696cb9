"""How much of a reference changes: the noise level at which an edit begins."""

import random

import numpy as np
import pytest

from imagegen.builder.micro.edits import edit
from imagegen.model.inputs import References
from tests.support.images import scene

HOW = {"width": 128, "height": 128, "num_inference_steps": 4, "guidance_scale": 1.0, "seed": 3}
SOURCE = scene("circle", "red", "blue")
OTHER = scene("star", "yellow", "black")


def difference(picture):
    return np.abs(np.asarray(picture, float) - np.asarray(SOURCE, float)).mean()


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_the_noise_levels_are_the_usual_ones_times_the_strength(pipeline, steps):
    how = {"width": 128, "height": 128, "guidance_scale": 1.0, "seeds": [3], "num_inference_steps": steps}
    usual = pipeline.preparation.inputs(References([SOURCE]), **how)
    assert usual.sigmas[0] == 1
    for strength in (0.001, 0.3, 0.999):
        inputs = pipeline.preparation.inputs(References([SOURCE]), strength=strength, **how)
        assert inputs.sigmas.numpy() == pytest.approx(strength * usual.sigmas.numpy(), rel=1e-5)
        assert inputs.timesteps.numpy() == pytest.approx(1000 * inputs.sigmas[:-1].numpy(), rel=1e-5)


@pytest.mark.slow  # 180 edits
def test_more_is_more(pipeline):
    """Nine strengths, over edits of several kinds. From 0.7 nearly all of an edit is made: there the mean may fall by
    what processors round differently, a two-hundredth."""
    rng = random.Random(5)
    samples = [edit(rng) for _ in range(20)]
    changes = []
    for strength in np.linspace(0.2, 1, 9):
        total = []
        for seed, sample in enumerate(samples):
            source = sample.references[0].draw(128, 128)
            made = pipeline.edit(sample.caption, [source], strength=float(strength), **HOW | {"seed": seed}).image
            total.append(np.abs(np.asarray(made, float) - np.asarray(source)).mean())
        changes.append(np.mean(total))
    assert (np.diff(changes[:5]) > 0.02 * changes[-1]).all(), changes
    assert (np.diff(changes[:6]) > 0).all() and (np.diff(changes) > -0.005 * changes[-1]).all(), changes
    assert changes[-1] > 1.5 * changes[0]


def test_one_is_an_edit_without_it_and_nearly_one_nearly_that(pipeline):
    prompt = "make the circle green"
    plain = pipeline.edit(prompt, [SOURCE, OTHER], **HOW).image
    assert pipeline.edit(prompt, [SOURCE, OTHER], strength=1.0, **HOW).image.tobytes() == plain.tobytes()
    nearly = pipeline.edit(prompt, [SOURCE, OTHER], strength=0.9999, **HOW).image
    assert np.abs(np.asarray(nearly, float) - np.asarray(plain, float)).mean() < 1


def test_hardly_any_strength_is_hardly_any_change(pipeline):
    made = pipeline.edit("turn the circle into a star", [SOURCE], strength=1e-40, **HOW).image
    assert difference(made) < 8  # the VAE's round trip


def test_each_step_has_a_preview(pipeline):
    shown = []
    pipeline.edit("x", [SOURCE], strength=1e-40, on_step=lambda *step: shown.append(step[2]()), **HOW)
    assert len(shown) == 4
    assert all(difference(one) < 30 for one in shown)
