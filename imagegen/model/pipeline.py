"""The model on its device: load it, draw with it, give its memory back.

This module knows nothing of jobs, queues or base64. It is not safe for two threads at once; `imagegen.engine.service`
gives it a lane of its own. torch and diffusers are imported when a model is loaded, and not with this module: that
takes seconds, in which a door can already answer."""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from PIL import Image

from imagegen import logs
from imagegen.contract import prompts
from imagegen.contract.start_times import StartTimes
from imagegen.errors import ConfigurationError, GpuFailed, ImageGenError, NotReady, OutOfMemory, Unavailable
from imagegen.model import acceleration
from imagegen.model.caches import PromptCache, References, shared_reference_latents
from imagegen.model.compile_cache import CompileCache, compile_key
from imagegen.model.config import FluxConfig
from imagegen.model.preview import estimate_end

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

log = logging.getLogger(__name__)


class StepCallback(Protocol):
    """Called after each denoising step. Raising from it stops the picture; a stop should be a BaseException, so that
    no handler of ordinary errors on the way swallows it."""

    def __call__(self, step: int, total: int, preview: Callable[[], Image.Image]) -> None:
        """Step `step` (from 1) of `total` is done; `preview`, called at once or never, shows what comes."""


@dataclass
class Drawn:
    """One picture and the seconds that it took."""

    image: Image.Image
    denoise: float
    decode: float


@dataclass
class Prompt:
    """A prompt's embeddings (1, max_sequence_length, 3 * hidden), made once for all pictures of a job, and what of it
    is not in them; `cached` where they were there already."""

    embeddings: torch.Tensor
    seconds: float
    warnings: list[str]
    cached: bool = False


class FluxPipeline:
    """FLUX.2 [klein] with a life cycle. As a context manager it is loaded inside and unloaded after.

    For the same seed, sizes and references the pictures are bit-identical to a bare call of the diffusers pipeline
    with `generator=torch.Generator(device).manual_seed(seed)`, as long as nothing is compiled.
    """

    def __init__(self, config: FluxConfig, times: StartTimes | None = None) -> None:
        self.config = config
        #: What the start took; `load` adds its own.
        self.times = times or StartTimes()
        self._pipe: Any = None  # the diffusers pipeline; its classes are not typed
        self._plain: Any = None  # of the same parts, the one that knows no cache of keys and values; mostly the same
        self._compiled = False
        self._prompts = PromptCache(config.prompt_cache)

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
        with self.times.importing():
            import diffusers
            import torch
            from transformers.utils import logging as transformers_logging

            from imagegen.model import assembly

            getattr(diffusers, self.config.spec.pipeline_class)  # it is imported when it is first asked for
        logs.adopt()
        config = self.config
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, config.dtype or ("float32" if device == "cpu" else "bfloat16"))
        diffusers.utils.logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        try:
            pipe = assembly.assemble(config, device, dtype, self.times)
        except ConfigurationError:
            raise
        except Exception as error:  # diffusers, transformers and safetensors raise many kinds for a broken folder
            kind = ConfigurationError
            message = f"{config.spec.name}: its weights cannot be loaded ({type(error).__name__})"
            if isinstance(error, torch.OutOfMemoryError):
                message = f"{config.spec.name} does not fit the card's memory; another process may hold some of it"
                kind = Unavailable
            # Its frames hold what was loaded, and a second try would find it on the card.
            traceback.clear_frames(error.__traceback__)
            gc.collect()
            torch.cuda.empty_cache()
            raise kind(message) from error
        self._pipe, self._plain = pipe, acceleration.plain_pipeline(pipe)
        for one in (self._pipe, self._plain):
            one.set_progress_bar_config(disable=not config.progress, desc="steps")
        if config.attention is not None:
            acceleration.use_attention(pipe, config.attention, device)
        if config.compile:
            acceleration.compile_blocks(pipe)
        self._compiled = config.compile

    def unload(self) -> None:
        """Gives the memory back, the card's and the CPU's; does nothing when nothing is loaded."""
        if not self.loaded:
            return
        import torch

        self._pipe.remove_all_hooks()
        self._pipe = self._plain = None
        self._prompts.clear()
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
        """The prompt's embeddings, for as many calls of `generate` or `edit` as wanted; the same from the cache."""
        pipe = self._loaded()
        kept = self._prompts.get(prompt)

        def encode() -> Prompt:
            begun = time.monotonic()
            if kept is not None:
                embeddings, warnings = kept[0].to(pipe._execution_device), kept[1]
            else:
                embeddings, _ = self._plain.encode_prompt(
                    prompt, max_sequence_length=self.config.spec.max_sequence_length
                )
                warnings = prompts.warnings(self.config.spec, prompt, pipe.tokenizer)
                self._prompts.put(prompt, embeddings, warnings)
            self._synchronize()
            return Prompt(embeddings, time.monotonic() - begun, warnings, cached=kept is not None)

        return self.translating_gpu_errors(encode)

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
        images: Sequence[Image.Image] | References,
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
            images: RGB, sides multiples of 16 and at most a megapixel; of another size diffusers would crop them. As
                one `References` for several pictures they are encoded once.
        """
        references = images if isinstance(images, References) else References(list(images))
        return self._draw(prompt, references, width, height, num_inference_steps, guidance_scale, seed, on_step)

    def compile_cache(self, folder: Path) -> CompileCache:
        """Where the compiled code of this pipeline lies in a folder, on a machine like this."""
        return CompileCache(folder, compile_key(self._loaded(), self.config.spec))

    def warm_up(self) -> None:
        """Draws at the usual sizes, from words and from a reference, so that no job waits for what only a first picture
        needs: kernels to be loaded and chosen, blocks to be compiled, memory to be had from the card. Two steps, since
        the second differs from the first where keys and values are cached."""
        spec, plan = self.config.spec, self.config.plan
        one = References([Image.new("RGB", (spec.size, spec.size))])
        for references in (None, one) if plan is None or plan.references else (None,):
            try:
                self._draw("", references, spec.size, spec.size, 2, spec.guidance_scale, 0, None)
            except OutOfMemory:
                what = "with a reference" if references else "from words"
                log.warning("a picture of %dx%d %s does not fit the card's memory", spec.size, spec.size, what)

    def _draw(
        self,
        prompt: str | Prompt,
        references: References | None,
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float,
        seed: int,
        on_step: StepCallback | None,
    ) -> Drawn:
        import torch

        # 1. The prompt, and the empty one where guidance compares with it
        self._loaded()
        if isinstance(prompt, str):
            prompt = self.encode_prompt(prompt)
        begun = denoised = time.monotonic()
        pipe = self._path(references, width, height)
        arguments: dict[str, Any] = {}
        if pipe is self._plain:  # the other knows no guidance
            arguments = {"guidance_scale": guidance_scale}
            if guidance_scale > 1 and not pipe.config.is_distilled:
                arguments["negative_prompt_embeds"] = self.encode_prompt("").embeddings

        # 2. What is told of the steps
        before: list[torch.Tensor] = []

        def note_latents(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
            before[:] = [kwargs["hidden_states"][:, kwargs.get("num_ref_tokens", 0) :]]

        def after_step(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal denoised
            if step + 1 == num_inference_steps:
                self._synchronize()
                denoised = time.monotonic()
            if on_step is not None:
                latents = tensors["latents"]
                preview = partial(estimate_end, self._pipe, before[0], latents, width, height)
                on_step(step + 1, num_inference_steps, preview)
            return tensors

        # 3. References are encoded, the steps run, the latents decoded
        def call() -> Image.Image:
            with shared_reference_latents(pipe, references) if references else nullcontext():
                picture: Image.Image = pipe(
                    image=references.images if references else None,
                    prompt_embeds=prompt.embeddings,
                    width=width,
                    height=height,
                    num_inference_steps=num_inference_steps,
                    generator=torch.Generator(pipe._execution_device).manual_seed(seed),
                    max_sequence_length=self.config.spec.max_sequence_length,
                    callback_on_step_end=after_step,
                    **arguments,
                ).images[0]
            if pipe is not self._pipe:
                self._pipe.maybe_free_model_hooks()  # which are the loaded one's; under model offload
            return picture

        hook = pipe.transformer.register_forward_pre_hook(note_latents, with_kwargs=True)
        try:
            image = self.with_eager_fallback(call)
        finally:
            hook.remove()
        return Drawn(image, denoised - begun, time.monotonic() - denoised)

    def _path(self, references: References | None, width: int, height: int) -> Any:
        """The diffusers pipeline for a picture: the one that caches its references' keys and values where the model has
        it, there are some, and they fit; the plain one otherwise."""
        if references is None or not references.images or self._pipe is self._plain:
            return self._plain
        fits, plan = self.config.kv, self.config.plan
        if fits is None:
            fits = plan is None or plan.kv_fits((width, height), [image.size for image in references.images])
        return self._pipe if fits else self._plain

    def with_eager_fallback(self, call: Callable[[], T]) -> T:
        """Calls `call`; where its compiled blocks fail to compile, logs that once and calls it again without them, as
        it does from then on."""
        try:
            return self.translating_gpu_errors(call)
        except acceleration.compile_errors() as error:
            if not self._compiled:
                raise
            log.warning("blocks cannot be compiled (%s); it is drawn without from now on", type(error).__name__)
        acceleration.run_eagerly(self._pipe)
        self._compiled = False
        return self.translating_gpu_errors(call)

    def translating_gpu_errors(self, work: Callable[[], T]) -> T:
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
