"""What a pipeline is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagegen.memory.plan import MemoryPlan
from imagegen.memory.types import Offload, Precision
from imagegen.model.acceleration import Attention
from imagegen.models import ModelSpec


@dataclass(frozen=True)
class FluxConfig:
    """What is loaded, and how.

    Args:
        spec: the model.
        path: a diffusers folder with its weights.
        device: "cuda", "cuda:1", "cpu"; None: a CUDA GPU where there is one.
        dtype: of the weights; None: bfloat16 on a GPU, float32 on a CPU.
        transformer, text_encoder: the precision in which each runs. A folder that was quantised has its own; one that
            was not is quantised while it is loaded. "bf16" leaves the weights as they are, in `dtype`.
        offload: what waits on the CPU. "none": nothing; "embeddings": the text encoder's embedding table, of which a
            prompt reads a few rows; "text_encoder": that, and its layers, which come for a new prompt; "model": those,
            and the transformer, which comes for an image; "group": each layer does for its turn, while the one before
            it works.
        progress: show bars on stderr for loading and steps.
        plan: from which these follow, and which knows what fits beside them; None: nothing is known.
        attention: the transformer's kernel for attention; None: diffusers' own choice.
        compile: the transformer's blocks, when they first run; what the GPU does for the first prompt is recorded.
        decoder: a folder with a VAE to use in place of the model's own, FLUX.2-small-decoder for one.
        kv: whether edits with klein-9b-kv cache their references' keys and values; None: where that fits the GPU.
        lora_rank: of the LoRA adapters of one job together; 0: none can be applied, and the model is as it is without.
        prompt_cache: bytes of main memory for the embeddings of the prompts that came last.
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
    attention: Attention | None = None
    compile: bool = False
    decoder: Path | None = None
    kv: bool | None = None
    lora_rank: int = 0
    prompt_cache: int = 0
