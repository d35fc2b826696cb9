"""The order in which a job's images are asked of the GPU and taken from it."""

from types import SimpleNamespace

from imagegen.contract.responses import Timings
from imagegen.engine.generation import generate_images


class Pipeline:
    """Says when an image is queued, and when somebody waits for it."""

    def __init__(self):
        self.order = []

    def encode_prompt(self, _):
        return SimpleNamespace(cached=False, warnings=[], seconds=0.25)

    def generate(self, _, *, seed, num_inference_steps, on_step, **__):
        order = self.order
        for step in range(1, num_inference_steps + 1):
            order.append(f"step {step} of {seed} queued")
            on_step(step, num_inference_steps, lambda: None)

        class Generated:
            denoise = decode = 0.5

            @property
            def image(self):
                order.append(f"{seed} taken")

        return Generated()


def test_the_next_image_is_queued_before_the_last_one_is_waited_for():
    pipeline, finished, timings = Pipeline(), [], Timings()
    job = SimpleNamespace(
        previews=0,
        references=[],
        warnings=[],
        timings=timings,
        spent=lambda stage, seconds, ago=0.0: setattr(timings, stage, getattr(timings, stage) + seconds),
        prompt_cached=None,
        stop=SimpleNamespace(is_set=lambda: False),
        notify=lambda _: None,
    )
    plan = SimpleNamespace(prompt="x", seeds=(1, 2), num_inference_steps=2, width=64, height=64, guidance_scale=1.0)
    generate_images(job, plan, pipeline, lambda seed, _: finished.append(seed), lambda: None)
    assert pipeline.order == [
        "step 1 of 1 queued",
        "step 2 of 1 queued",
        "step 1 of 2 queued",
        "1 taken",
        "step 2 of 2 queued",
        "2 taken",
    ]
    assert finished == [1, 2]
    assert (timings.encode_prompt, timings.denoise, timings.decode) == (0.25, 1.0, 1.0)
