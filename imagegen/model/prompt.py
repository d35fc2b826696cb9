"""A prompt on its way to the transformer: its embeddings, and what of it is not in them."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imagegen.errors import GpuFailed
from imagegen.model.caches import PromptCache
from imagegen.model.images import Mark
from imagegen.model.inputs import Tokens
from imagegen.model.transfer import send

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

#: Of the text encoder, whose states are the embeddings: `text_encoder_out_layers` of diffusers' `encode_prompt`. The
#: last is the last there is: later ones are not loaded.
_LAYERS = (9, 18, 27)


@dataclass
class Prompt:
    """A prompt's embeddings (1, max_sequence_length, 3 * hidden), made once for all images of a job, and what of it
    is not in them; `cached` where they were there already."""

    embeddings: torch.Tensor
    begun: Mark
    done: Mark
    warnings: list[str]
    cached: bool = False

    @property
    def seconds(self) -> float:
        """What it took; waits until the GPU has done it."""
        self.done.wait()
        return self.begun.seconds_to(self.done)


class PromptEncoder:
    """Encodes prompts, and keeps the embeddings of the last ones.

    Args:
        pipe: the diffusers pipeline, whose text encoder is used.
        cache: bytes of main memory for embeddings.
        record: whether a GPU repeats what it did for the first prompt, since the text encoder stays where it is.
    """

    def __init__(self, pipe: Any, device: torch.device, cache: int, record: bool) -> None:
        self._pipe, self._device = pipe, device
        self._kept = PromptCache(cache)
        self._graph: Graph | None = None
        self._record = record and device.type == "cuda"

    def encode(self, tokens: Tokens) -> Prompt:
        """A prompt's embeddings; on a GPU it returns when the work is queued."""
        kept = self._kept.get(tokens.text)
        begun = Mark.on(self._device)
        if kept is not None:
            # In the GPU's own queue: the host may be ahead of the copy that fills what was kept.
            embeddings = kept.to(self._device, non_blocking=True)
        else:
            embeddings = self._encode(*send([tokens.read, tokens.mask], self._device))
            self._kept.put(tokens.text, embeddings)
        return Prompt(embeddings, begun, Mark.on(self._device), tokens.warnings, cached=kept is not None)

    def forget_recorded(self) -> None:
        """Gives the memory of what was recorded back, and goes on without; a plan that is not compiled has none."""
        self._graph, self._record = None, False

    def _encode(self, read: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._record:
            self._record = False
            try:
                self._graph = Graph(self._run, read, mask)
            except NotRecorded as error:  # it is as good without, and slower
                log.warning("the text encoder cannot be recorded (%s)", error)
        return self._run(read, mask) if self._graph is None else self._graph(read, mask)

    def _run(self, read: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """As diffusers' `encode_prompt`, of numbers that were made before, without the states that are not used."""
        import torch

        model, states = self._pipe.text_encoder.model, list[torch.Tensor]()
        given = {"inputs_embeds" if read.is_floating_point() else "input_ids": read}
        with ExitStack() as hooks:
            for module in (*(model.layers[layer - 1] for layer in _LAYERS[:-1]), model.norm):
                hooks.callback(module.register_forward_hook(lambda _, __, state: states.append(state)).remove)
            self._pipe.text_encoder(**given, attention_mask=mask, use_cache=False)
        return torch.stack(states, dim=1).permute(0, 2, 1, 3).flatten(2)  # of (1, 3, tokens, hidden)


class NotRecorded(Exception):
    """What a GPU should have recorded has raised; nothing is left of it."""


class Graph:
    """What a GPU did for a function of tensors, to be done again for others of the same shapes: started at once, where
    Python takes twice as long to start each of 2,000 kernels as the GPU to run them (docs/benchmarks.md).

    Raises:
        NotRecorded: the function raised.
        GpuFailed: the recording could not be ended; torch's memory cannot be relied on any more.
    """

    def __init__(self, function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> None:
        import torch

        self._inputs = [one.clone() for one in inputs]
        self._graph = torch.cuda.CUDAGraph()
        queue = torch.cuda.current_stream(inputs[0].device)
        aside = torch.cuda.Stream(inputs[0].device)
        aside.wait_stream(queue)
        fault: Exception | None = None
        with torch.cuda.stream(aside):  # given back whatever happens inside
            function(*self._inputs)  # libraries are set up when they are first used, which cannot be recorded
            try:
                # Other threads may ask the GPU for memory meanwhile.
                with torch.cuda.graph(self._graph, stream=aside, capture_error_mode="thread_local"):
                    try:
                        self._output = function(*self._inputs)
                    except Exception as error:  # noqa: BLE001 - told from a recording that cannot be ended
                        fault = error
            except RuntimeError as error:
                message = "the GPU could not end recording the text encoder; IMAGEGEN_COMPILE=off records nothing"
                raise GpuFailed(message) from (fault or error)
        queue.wait_stream(aside)
        if fault is not None:
            what = f"{type(fault).__name__}: {str(fault)[:200]}"
            traceback.clear_frames(fault.__traceback__)  # they hold tensors
            del fault  # it refers to this frame, and that to it
            raise NotRecorded(what)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        for kept, one in zip(self._inputs, inputs, strict=True):
            kept.copy_(one)
        self._graph.replay()
        return self._output.clone()
