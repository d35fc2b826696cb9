"""The names inside of diffusers exist, and compute what the project takes them for. `make newest` tries newer ones."""

import math

import torch
from diffusers import Flux2KleinPipeline
from diffusers.models.attention_dispatch import attention_backend

from imagegen.compat import diffusers


def test_where_a_pipeline_computes(pipeline):
    assert diffusers.execution_device(pipeline._pipe) == torch.device("cpu")


def test_the_attention_that_was_chosen(pipeline):
    transformer = pipeline._pipe.transformer
    before = diffusers.attention_backend(transformer)
    with attention_backend("native"):  # which also gives back what the next line sets for the whole process
        transformer.set_attention_backend("_native_math")
        try:
            assert diffusers.attention_backend(transformer) == "_native_math"
        finally:
            transformer.reset_attention_backend() if before == "default" else transformer.set_attention_backend(before)
    assert diffusers.attention_backend(transformer) == before


def test_latents_are_packed_in_patches_of_two_by_two(pipeline):
    latents = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = diffusers.pack(latents)
    assert tokens.shape == (2, 6, 12)
    assert tokens[0, 0].tolist() == latents[0, :, :2, :2].flatten().tolist()
    patches = tokens.transpose(1, 2).reshape(2, 12, 2, 3)
    assert torch.equal(diffusers.unpatchify(pipeline._pipe, patches), latents)


def test_positions_are_frame_row_column_and_text():
    image, text = diffusers.position_ids(torch.empty(1, 32, 2, 3), 2, 5)
    assert image.shape == (18, 4) and text.shape == (5, 4)
    assert image[:6].tolist() == [[0, row, column, 0] for row in range(2) for column in range(3)]
    assert len(set(image[:, 0].tolist())) == 3  # each reference is a frame of its own
    assert text.tolist() == [[0, 0, 0, i] for i in range(5)]


def test_larger_images_get_more_noise():
    assert 0 < diffusers.time_shift(256, 4) < diffusers.time_shift(4096, 4)
    assert math.isfinite(diffusers.time_shift(16384, 50))


def test_the_pipeline_calls_what_a_job_s_references_replace():
    """`imagegen.model.caches` puts functions in the place of these for a job; else it would encode for each image."""
    used = Flux2KleinPipeline.__call__.__wrapped__.__code__.co_names
    assert {"prepare_image_latents", "image_processor", "preprocess"} <= set(used)
