"""The model on its device: load it, generate with it, free its memory.

This module knows nothing of jobs, queues or base64. It is not safe for two threads at once; `imagegen.engine` gives it
a thread of its own. torch and diffusers are imported when a model is loaded, and not with this module: that takes
seconds, in which a transport can already answer."""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from PIL import Image

from imagegen import logs
from imagegen.compat.diffusers import execution_device
from imagegen.compat.torch import empty_host_cache, errors_of_compilation, free_workspaces
from imagegen.contract.start_times import StartTimes
from imagegen.errors import ConfigurationError, NotReady, Unavailable
from imagegen.memory.plan import MemoryPlan
from imagegen.model import acceleration
from imagegen.model.compile_cache import CompileCache, compile_key
from imagegen.model.config import FluxConfig
from imagegen.model.generation import StepCallback, generate
from imagegen.model.gpu_errors import find_gpu_fault, translate_gpu_errors
from imagegen.model.images import GeneratedImage
from imagegen.model.inputs import Inputs, Preparation, References, Tokens
from imagegen.model.prompt import Prompt, PromptEncoder
from imagegen.models import Size

if TYPE_CHECKING:
    import torch

    from imagegen.model.adapters import LoraLayers, Scaled

T = TypeVar("T")

log = logging.getLogger(__name__)


class FluxPipeline:
    """FLUX.2 [klein] with a life cycle. As a context manager it is loaded inside and unloaded after.

    For the same seed, sizes and references the images are those of a bare call of the diffusers pipeline with
    `generator=torch.Generator(device).manual_seed(seed)`: on a CPU to the bit, as long as nothing is compiled; on a GPU
    within rounding, since the VAE's group norms add in another order there (`group_norm`).
    """

    def __init__(self, config: FluxConfig, times: StartTimes | None = None) -> None:
        self.config = config
        #: What the start took; `load` adds its own.
        self.times = times or StartTimes()
        self._device: torch.device
        self._pipe: Any = None  # the diffusers pipeline; its classes are not typed
        self._plain: Any = None  # of the same parts, the one that knows no cache of keys and values; mostly the same
        self._compiled = False
        self._loras: LoraLayers | None = None
        #: In which the transformer computes, once it is loaded.
        self.dtype: torch.dtype
        self._preparation: Preparation
        self._encoder: PromptEncoder

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._pipe is not None

    @property
    def compiled(self) -> bool:
        """Whether its blocks are compiled: they were asked to be, and could be."""
        return self._compiled

    @property
    def device(self) -> str | None:
        """Where images are made; None before `load`."""
        return str(self._device) if self._pipe is not None else None

    def gpu_memory(self) -> int | None:
        """Bytes of the GPU that torch holds for this process; None without one."""
        if self._pipe is None or self._device.type != "cuda":
            return None
        import torch

        return torch.cuda.memory_reserved(self._device)

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
            if find_gpu_fault(error) == "memory":
                message = f"{config.spec.name} does not fit the GPU's memory; another process may hold some of it"
                kind = Unavailable
            # Its frames hold what was loaded, and a second try would find it on the GPU.
            traceback.clear_frames(error.__traceback__)
            gc.collect()
            torch.cuda.empty_cache()
            if torch.cuda.is_available():
                empty_host_cache()
            raise kind(message) from error
        self._device, self.dtype = execution_device(pipe), dtype
        self._pipe, self._plain = pipe, acceleration.plain_pipeline(pipe)
        for one in (self._pipe, self._plain):
            one.set_progress_bar_config(disable=not config.progress, desc="steps")
        if config.attention is not None:
            capability = torch.cuda.get_device_capability(device) if self._device.type == "cuda" else None
            acceleration.use_attention(pipe, config.attention, device, capability)
        if config.lora_rank:
            # Before the blocks are compiled, so that what is copied in later compiles nothing.
            from imagegen.model.adapters import LoraLayers

            self._loras = LoraLayers(pipe.transformer, config.spec, config.lora_rank, self._device, dtype)
        if config.compile:
            acceleration.compile_blocks(pipe)
        self._compiled = config.compile
        self._preparation = Preparation(self._plain, config.spec, self._device, dtype)
        record = config.compile and config.offload in ("none", "embeddings")
        self._encoder = PromptEncoder(self._plain, self._device, config.prompt_cache, record)

    def unload(self) -> None:
        """Gives the memory back, the GPU's and the CPU's; does nothing when nothing is loaded."""
        if not self.loaded:
            return
        import torch

        self._pipe.remove_all_hooks()
        self._pipe = self._plain = self._loras = None
        del self._preparation, self._encoder
        gc.collect()  # modules and hooks refer to each other in circles
        if torch.cuda.is_available():
            free_workspaces()
            torch.cuda.empty_cache()
            empty_host_cache()

    def __enter__(self) -> Self:
        self.load()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unload()

    @property
    def preparation(self) -> Preparation:
        """What makes the inputs of images, beside their prompt, and its tokens; in any thread, ahead of the GPU's turn.

        Raises:
            NotReady: nothing is loaded.
        """
        self._loaded()
        return self._preparation

    def encode_prompt(self, prompt: str | Tokens) -> Prompt:
        """The prompt's embeddings, for as many images as wanted; the same from the cache."""
        tokens = self.preparation.tokens(prompt) if isinstance(prompt, str) else prompt
        return self.translating_gpu_errors(lambda: self._encoder.encode(tokens))

    def generate(
        self,
        prompt: str | Prompt,
        *,
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float,
        seed: int,
        negative_prompt: str = "",
        loras: Sequence[Scaled] = (),
        on_step: StepCallback | None = None,
    ) -> GeneratedImage:
        """Generates one image from a prompt. On a GPU it returns when the work is queued; the image waits for its end.

        Args:
            width, height: pixels, multiples of 16.
            seed: of a generator of its own, so that an image does not depend on those before it.
            negative_prompt: what guidance leads away from; without effect on a distilled model.
            loras: adapters that change the transformer for this image.
            on_step: progress, and the way to stop.

        Raises:
            NotReady: nothing is loaded.
            OutOfMemory: it did not fit; the memory has been given back.
            GpuFailed: the GPU's context is dead.
        """
        return self.edit(
            prompt,
            [],
            width=width,
            height=height,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            negative_prompt=negative_prompt,
            loras=loras,
            on_step=on_step,
        )

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
        negative_prompt: str = "",
        strength: float = 1.0,
        loras: Sequence[Scaled] = (),
        on_step: StepCallback | None = None,
    ) -> GeneratedImage:
        """Generates one image from a prompt and references; otherwise like `generate`.

        Args:
            images: RGB, sides multiples of 16, at most a megapixel; one `References` is encoded once for many images.
            strength: over 0; below 1 the image begins at the first reference, of its size, at this level of noise.
        """
        inputs = self.preparation.inputs(
            images if isinstance(images, References) else References(list(images)),
            width=width,
            height=height,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            seeds=[seed],
            strength=strength,
        )
        encoded = self.encode_prompt(prompt) if isinstance(prompt, str) else prompt
        return self.generate_prepared(inputs, encoded, seed, on_step, loras)

    def generate_prepared(
        self,
        inputs: Inputs,
        prompt: Prompt,
        seed: int,
        on_step: StepCallback | None = None,
        loras: Sequence[Scaled] = (),
    ) -> GeneratedImage:
        """Generates one image of inputs that were prepared; otherwise like `generate`."""
        self._loaded()
        if loras and self._loras is None:
            raise ValueError("the model was loaded without room for LoRA adapters")
        sizes = [image.size for image in inputs.references.images]
        pipe = self._pipe if self.caches_keys_and_values(inputs.size, sizes) else self._plain
        arguments: dict[str, Any] = {"prompt_embeds": prompt.embeddings}
        if pipe is self._plain:  # the other knows no guidance
            arguments["guidance_scale"] = inputs.guidance_scale
            if inputs.negative is not None:
                if isinstance(inputs.negative, Tokens):
                    inputs.negative = self.encode_prompt(inputs.negative).embeddings
                arguments["negative_prompt_embeds"] = inputs.negative

        def call() -> GeneratedImage:
            noise = inputs.noise.get(seed)
            noise = self.preparation.noise(inputs.size, seed) if noise is None else noise
            with self._loras.applied(loras) if self._loras else nullcontext():
                return generate(pipe, inputs, noise, arguments, on_step, self._device)

        return self.with_eager_fallback(call)

    def compile_cache(self, folder: Path) -> CompileCache:
        """Where the compiled code of this pipeline lies in a folder, on a machine like this."""
        return CompileCache(folder, compile_key(self._loaded(), self.config.spec, self.config.lora_rank))

    def use_plan(self, plan: MemoryPlan) -> None:
        """Goes by another plan, of the same weights, from the next job on; says so in the log."""
        self.config = replace(self.config, plan=plan)
        log.warning("memory: %s", plan)

    def caches_keys_and_values(self, size: Size, references: Sequence[Size]) -> bool:
        """Whether an edit keeps its references' keys and values: where the model has that and they fit."""
        if not references or self._pipe is self._plain:
            return False
        fits, plan = self.config.kv, self.config.plan
        return (plan is None or plan.kv_fits(size, references)) if fits is None else fits

    def with_eager_fallback(self, call: Callable[[], T]) -> T:
        """Calls `call`; where its compiled blocks fail to compile, logs that once and calls it again without them, as
        it does from then on."""
        try:
            return self.translating_gpu_errors(call)
        except errors_of_compilation() as error:
            if not self._compiled:
                raise
            log.warning("blocks cannot be compiled (%s); they run without from now on", type(error).__name__)
        acceleration.run_eagerly(self._pipe)
        self._encoder.forget_recorded()
        self._compiled = False
        if (plan := self.config.plan) is not None and plan.gpu is not None:
            self.use_plan(plan.eager())
        return self.translating_gpu_errors(call)

    def translating_gpu_errors(self, work: Callable[[], T]) -> T:
        """Runs `work` on the GPU. Whatever ends it, the next call finds the GPU as it was.

        Raises:
            OutOfMemory, GpuFailed: for the GPU's own errors.
        """
        # The pipeline frees its hooks only at the end of its call; the next job would find the transformer on the GPU.
        return translate_gpu_errors(work, self._pipe.maybe_free_model_hooks)

    def _loaded(self) -> Any:
        if self._pipe is None:
            raise NotReady("the model is not loaded")
        return self._pipe
