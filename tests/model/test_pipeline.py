import gc
import weakref

import pytest
import torch
from diffusers import Flux2KleinPipeline
from torch._dynamo.exc import BackendCompilerFailed

from imagegen.errors import ConfigurationError, GpuFailed, NotReady, OutOfMemory
from imagegen.model.config import FluxConfig
from imagegen.model.pipeline import FluxPipeline
from imagegen.models import MICRO_PATH
from tests.support.images import scene

HOW = {"width": 128, "height": 96, "num_inference_steps": 4, "guidance_scale": 1.0}
REFERENCES = [
    scene("circle", "red", "blue"),
    scene("star", "green", "white").resize((96, 160)),
    scene("square", "black", "yellow"),
    scene("triangle", "white", "purple").resize((160, 64)),
]


@pytest.fixture(scope="module")
def bare():
    return Flux2KleinPipeline.from_pretrained(MICRO_PATH, dtype=torch.float32)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 2**53 - 1])
def test_images_are_bit_identical_to_the_bare_call(pipeline, bare, count, seed):
    prompt = "make the background red" if count else "a green circle on a red background"
    references = REFERENCES[:count]
    wanted = bare(
        image=references or None,
        prompt=prompt,
        generator=torch.Generator().manual_seed(seed),
        max_sequence_length=32,
        **HOW,
    ).images[0]
    if references:
        generated = pipeline.edit(prompt, references, seed=seed, **HOW)
    else:
        generated = pipeline.generate(prompt, seed=seed, **HOW)
    assert generated.image.tobytes() == wanted.tobytes()
    assert generated.image.size == (128, 96)
    assert generated.denoise > 0
    assert generated.decode > 0


def test_references_and_their_order_matter(pipeline):
    images = [
        pipeline.edit("the shape of image 1 on the background of image 2", images, seed=1, **HOW).image.tobytes()
        for images in (REFERENCES[:2], REFERENCES[1::-1], REFERENCES[:1])
    ]
    assert len(set(images)) == 3


def test_steps_are_reported_and_a_stop_leaves_the_pipeline_as_it_was(pipeline):
    before = pipeline.generate("a red circle", seed=3, **HOW).image.tobytes()
    seen = []

    class Stop(BaseException):
        pass

    def on_step(step, total, preview):
        seen.append((step, total))
        if step == 2:
            raise Stop

    with pytest.raises(Stop):
        pipeline.generate("a red circle", seed=3, on_step=on_step, **HOW)
    assert seen == [(1, 4), (2, 4)]
    assert pipeline.generate("a red circle", seed=3, **HOW).image.tobytes() == before


def test_the_life_cycle(config):
    loaded = FluxPipeline(config)
    with pytest.raises(NotReady):
        loaded.generate("a red circle", seed=0, **HOW)
    with loaded:
        assert loaded.loaded
        assert loaded.device == "cpu"
        first = loaded.generate("a red circle", seed=0, **HOW).image.tobytes()
        parts = [weakref.ref(part) for part in loaded._pipe.components.values() if isinstance(part, torch.nn.Module)]
        assert len(parts) == 3
        loaded.load()  # does nothing twice
        assert parts[0]() is not None
    assert not loaded.loaded
    assert loaded.device is None
    gc.collect()
    assert [part() for part in parts] == [None, None, None]  # every weight is gone
    loaded.unload()
    with loaded:  # and it can be loaded again
        assert loaded.generate("a red circle", seed=0, **HOW).image.tobytes() == first


def test_a_folder_that_is_no_model_is_an_error(config, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"micro: its weights cannot be loaded \(OSError\)"):
        FluxPipeline(FluxConfig(config.spec, tmp_path, device="cpu")).load()


@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), OutOfMemory),
        (torch.AcceleratorError("CUDA error: out of memory"), OutOfMemory),
        (RuntimeError("Triton Error [CUDA]: out of memory"), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemory),
        (RuntimeError("cuDNN Frontend error: [cudnn_frontend] Error: No valid execution plans built."), OutOfMemory),
        (BackendCompilerFailed(None, torch.OutOfMemoryError("CUDA out of memory"), None), OutOfMemory),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), GpuFailed),
        (BackendCompilerFailed(None, torch.AcceleratorError("CUDA error: misaligned address"), None), GpuFailed),
    ],
)
def test_the_gpus_errors_are_the_contracts_and_say_nothing_of_the_inside(pipeline, monkeypatch, raised, wanted):
    transformer = pipeline._pipe.transformer

    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(transformer, "forward", fail)
    with pytest.raises(wanted) as caught:
        pipeline.generate("a red circle", seed=0, **HOW)
    assert "CUDA" not in str(caught.value)
    monkeypatch.undo()
    assert pipeline.generate("a red circle", seed=0, **HOW).image.size == (128, 96)


def test_out_of_memory_gives_the_memory_back_before_the_next_job(pipeline, monkeypatch):
    alive = []

    def fail(*_, **__):
        tensor = torch.zeros(1000)  # what the failed call held on the GPU
        alive.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory")

    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(alive[0]()))
    monkeypatch.setattr(pipeline._pipe.transformer, "forward", fail)
    with pytest.raises(OutOfMemory) as caught:
        pipeline.generate("a red circle", seed=0, **HOW)
    assert freed == [None]  # the cache was emptied once nothing held the tensor any more
    assert caught.value.__context__ is None


def test_a_dead_gpu_stays_that_when_cleaning_up_would_fail_too(pipeline, monkeypatch):
    def dead(*_, **__):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(pipeline._pipe.transformer, "forward", dead)
    monkeypatch.setattr(pipeline._pipe, "maybe_free_model_hooks", dead)
    with pytest.raises(GpuFailed):
        pipeline.generate("a red circle", seed=0, **HOW)


def test_weights_that_do_not_fit_although_they_should_say_what_it_may_be(config, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("imagegen.model.assembly.read_tensor", fail)
    with pytest.raises(ConfigurationError, match="another process may hold some of it"):
        FluxPipeline(config).load()


def test_a_stop_takes_every_part_off_the_gpu(pipeline, monkeypatch):
    """A part that was fetched for an image would stay."""
    freed = []
    monkeypatch.setattr(pipeline._pipe, "maybe_free_model_hooks", lambda: freed.append(True))

    def on_step(step, total, preview):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.generate("a red circle", seed=0, on_step=on_step, **HOW)
    assert freed == [True]


def test_a_transformer_that_is_fetched_comes_once_an_image_and_leaves_before_it_is_decoded(config, monkeypatch):
    from dataclasses import replace

    seen = []
    with FluxPipeline(replace(config, offload="model")) as fetched:
        hook, decode = fetched._pipe.fetched, fetched._pipe.vae.decode
        leave = type(hook).leave
        monkeypatch.setattr(
            fetched._pipe.vae, "decode", lambda *given, **how: seen.append("decode") or decode(*given, **how)
        )
        fetched._pipe.transformer.register_forward_hook(lambda *_: seen.append("step") if hook._here else None)
        monkeypatch.setattr(
            type(hook), "leave", lambda self: (seen.append("leave") if self is hook else None, leave(self))
        )
        for seed in (0, 1):
            fetched.generate("a red circle", seed=seed, **HOW).image.load()
    steps = ["step"] * HOW["num_inference_steps"]
    assert seen == [*steps, "leave", "decode"] * 2
