"""The model on its device: load it, draw with it, give its memory back.

This module knows nothing of jobs, queues or base64. It is not safe for two threads at once; `imagegen.service` gives
it a lane of its own. torch and diffusers are imported when a model is loaded, and not with this module: that takes
seconds, in which a door can already answer.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar, cast

from PIL import Image

from imagegen import logs, prompts
from imagegen.errors import ConfigurationError, GpuFailed, ImageGenError, NotReady, OutOfMemory
from imagegen.memory import MemoryPlan, Offload, Precision
from imagegen.models import ModelSpec
from imagegen.startup import StartTimes

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class StepCallback(Protocol):
    """Called after each denoising step. Raising from it stops the picture; a stop should be a BaseException, so that
    no handler of ordinary errors on the way swallows it."""

    def __call__(self, step: int, total: int, preview: Callable[[], Image.Image]) -> None:
        """Step `step` (from 1) of `total` is done; `preview`, called at once or never, shows what comes."""


@dataclass(frozen=True)
class FluxConfig:
    """What is loaded, and how.

    Args:
        spec: the model.
        path: a diffusers folder with its weights.
        device: "cuda", "cuda:1", "cpu"; None: a CUDA card where there is one.
        dtype: of the weights; None: bfloat16 on a card, float32 on a CPU.
        transformer, text_encoder: the precision in which each runs. A folder that was quantised has its own; one that
            was not is quantised while it is loaded. "bf16" leaves the weights as they are, in `dtype`.
        offload: what waits on the CPU. "none": nothing; "embeddings": the text encoder's embedding table, of which a
            prompt reads a few rows; "text_encoder": that, and its layers, which come for their turn; "model": each part
            comes for its turn; "group": each layer does, while the one before it works.
        progress: show bars on stderr for loading and steps.
        plan: from which these follow, and which knows what fits beside them; None: nothing is known.
    """

    spec: ModelSpec
    path: Path
    device: str | None = None
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    transformer: Precision = "bf16"
    text_encoder: Precision = "bf16"
    offload: Offload = "none"
    progress: bool = False
    plan: MemoryPlan | None = None


@dataclass
class Drawn:
    """One picture and the seconds that it took."""

    image: Image.Image
    denoise: float
    decode: float


@dataclass
class Prompt:
    """A prompt's embeddings (1, max_sequence_length, 3 * hidden), made once for all pictures of a job, and what of it
    is not in them."""

    embeddings: torch.Tensor
    seconds: float
    warnings: list[str]


class FluxPipeline:
    """FLUX.2 [klein] with a life cycle. As a context manager it is loaded inside and unloaded after.

    For the same seed, sizes and references the pictures are bit-identical to a bare call of the diffusers pipeline
    with `generator=torch.Generator(device).manual_seed(seed)`.
    """

    def __init__(self, config: FluxConfig, times: StartTimes | None = None) -> None:
        self.config = config
        #: What the start took; `load` adds its own.
        self.times = times or StartTimes()
        self._pipe: Any = None  # the diffusers pipeline; its classes are not typed

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._pipe is not None

    @property
    def device(self) -> str | None:
        """Where pictures are made; None before `load`."""
        return str(self._pipe._execution_device) if self._pipe is not None else None

    def gpu_memory(self) -> int | None:
        """Bytes of the card that torch holds for this process; None without a card."""
        if self._pipe is None or self._pipe._execution_device.type != "cuda":
            return None
        import torch

        return torch.cuda.memory_reserved(self._pipe._execution_device)

    def load(self) -> None:
        """Reads the weights; does nothing when they are there.

        Raises:
            ConfigurationError: the weights do not fit, or the folder is not a whole diffusers model.
        """
        if self.loaded:
            return
        with self.times.measure("imports"):
            import diffusers
            import torch
            from transformers.utils import logging as transformers_logging

            from imagegen import assembly

        logs.adopt()
        config = self.config
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, config.dtype or ("float32" if device == "cpu" else "bfloat16"))
        diffusers.utils.logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        try:
            pipe = assembly.assemble(config, device, dtype, self.times)
        except torch.OutOfMemoryError as error:
            message = f"{config.spec.name} does not fit the card's memory; IMAGEGEN_OFFLOAD=model needs less"
            raise ConfigurationError(message) from error
        except Exception as error:  # diffusers, transformers and safetensors raise many kinds for a broken folder
            message = f"{config.spec.name}: its weights cannot be loaded ({type(error).__name__})"
            raise ConfigurationError(message) from error
        pipe.set_progress_bar_config(disable=not config.progress, desc="steps")
        self._pipe = pipe

    def unload(self) -> None:
        """Gives the memory back, the card's and the CPU's; does nothing when nothing is loaded."""
        if not self.loaded:
            return
        import torch

        self._pipe.remove_all_hooks()
        self._pipe = None
        gc.collect()  # modules and hooks refer to each other in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        self.load()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unload()

    def encode_prompt(self, prompt: str) -> Prompt:
        """The prompt's embeddings, for as many calls of `generate` or `edit` as wanted."""
        pipe = self._loaded()

        def encode() -> torch.Tensor:
            embeddings, _ = pipe.encode_prompt(prompt, max_sequence_length=self.config.spec.max_sequence_length)
            self._synchronize()
            return cast("torch.Tensor", embeddings)

        begun = time.monotonic()
        embeddings = self._guarded(encode)
        seconds = time.monotonic() - begun
        return Prompt(embeddings, seconds, prompts.warnings(self.config.spec, prompt, pipe.tokenizer))

    def generate(
        self,
        prompt: str | Prompt,
        *,
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float,
        seed: int,
        on_step: StepCallback | None = None,
    ) -> Drawn:
        """Draws one picture from words.

        Args:
            width, height: pixels, multiples of 16.
            seed: of a generator of its own, so that a picture does not depend on those before it.
            on_step: progress, and the way to stop.

        Raises:
            NotReady: nothing is loaded.
            OutOfMemory: it did not fit; the memory has been given back.
            GpuFailed: the card's context is dead.
        """
        return self._draw(prompt, None, width, height, num_inference_steps, guidance_scale, seed, on_step)

    def edit(
        self,
        prompt: str | Prompt,
        images: Sequence[Image.Image],
        *,
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float,
        seed: int,
        on_step: StepCallback | None = None,
    ) -> Drawn:
        """Draws one picture from words and references; otherwise like `generate`.

        Args:
            images: RGB, sides multiples of 16 and at most a megapixel; of another size diffusers would crop them.
        """
        return self._draw(prompt, list(images), width, height, num_inference_steps, guidance_scale, seed, on_step)

    def _draw(
        self,
        prompt: str | Prompt,
        images: list[Image.Image] | None,
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float,
        seed: int,
        on_step: StepCallback | None,
    ) -> Drawn:
        import torch

        pipe = self._loaded()
        if isinstance(prompt, str):
            prompt = self.encode_prompt(prompt)
        arguments: dict[str, Any] = {"guidance_scale": guidance_scale}
        if self.config.spec.pipeline_class == "Flux2KleinKVPipeline":
            arguments = {}  # it is distilled and knows no guidance
        begun = denoised = time.monotonic()

        before: list[torch.Tensor] = []

        def note_latents(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
            before[:] = [kwargs["hidden_states"]]

        def after_step(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal denoised
            if step + 1 == num_inference_steps:
                self._synchronize()
                denoised = time.monotonic()
            if on_step is not None:
                latents = tensors["latents"]
                on_step(step + 1, num_inference_steps, lambda: self._preview(before[0], latents, width, height))
            return tensors

        def call() -> Image.Image:
            picture: Image.Image = pipe(
                image=images,
                prompt_embeds=prompt.embeddings,
                width=width,
                height=height,
                num_inference_steps=num_inference_steps,
                generator=torch.Generator(pipe._execution_device).manual_seed(seed),
                max_sequence_length=self.config.spec.max_sequence_length,
                callback_on_step_end=after_step,
                **arguments,
            ).images[0]
            return picture

        hook = pipe.transformer.register_forward_pre_hook(note_latents, with_kwargs=True)
        try:
            image = self._guarded(call)
        finally:
            hook.remove()
        return Drawn(image, denoised - begun, time.monotonic() - denoised)

    def _preview(self, before: torch.Tensor, after: torch.Tensor, width: int, height: int) -> Image.Image:
        """The picture that the last step points to.

        `before` (1, tokens + references, C) and `after` (1, tokens, C) are the latents around the step; on the straight
        path of flow matching x_sigma = (1 - sigma) * x_0 + sigma * noise, the line through both ends in x_0 at sigma 0.
        (Not from the transformer's output: with guidance that is one of two.) The rest is what the pipeline does with
        its last latents.
        """
        import torch

        pipe = self._pipe
        scheduler, vae = pipe.scheduler, pipe.vae
        was, sigma = scheduler.sigmas[scheduler.step_index - 1 : scheduler.step_index + 1].tolist()
        with torch.no_grad():
            velocity = (after - before[:, : after.shape[1]]) / (sigma - was)
            x0 = (after - sigma * velocity).to(vae.dtype)
            scale = 2 * pipe.vae_scale_factor
            x0 = x0.transpose(1, 2).reshape(1, -1, height // scale, width // scale)
            mean = vae.bn.running_mean.view(1, -1, 1, 1).to(x0)
            deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).to(x0)
            picture = vae.decode(pipe._unpatchify_latents(x0 * deviation + mean), return_dict=False)[0]
            return cast(Image.Image, pipe.image_processor.postprocess(picture, output_type="pil")[0])

    def _guarded(self, work: Callable[[], T]) -> T:
        """Runs `work` on the card. Whatever ends it, the next call finds the card as it was.

        Raises:
            OutOfMemory, GpuFailed: for the card's own errors.
        """
        import torch

        failure: ImageGenError
        try:
            with torch.no_grad():
                return work()
        except torch.OutOfMemoryError:
            failure = OutOfMemory(
                "the picture does not fit the card's memory; ask for a smaller size or fewer references"
            )
        except torch.AcceleratorError:
            raise GpuFailed("the card failed; this worker must be replaced") from None
        except BaseException:
            # It stands only at the end of the pipeline's call; the next job would find the transformer on the card.
            self._pipe.maybe_free_model_hooks()
            raise
        # Outside of the handler, whose exception holds the frames that hold the tensors.
        self._pipe.maybe_free_model_hooks()
        gc.collect()
        torch.cuda.empty_cache()
        raise failure

    def _synchronize(self) -> None:
        """Waits for the card, else a clock would show when work was queued and not when it was done."""
        import torch

        if self._pipe._execution_device.type == "cuda":
            torch.cuda.synchronize(self._pipe._execution_device)

    def _loaded(self) -> Any:
        if self._pipe is None:
            raise NotReady("the model is not loaded")
        return self._pipe
