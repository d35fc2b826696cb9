"""The bytes of a model's parts in each precision, and those that an image needs beside them: arithmetic from the few
figures of `Architecture`, which knows no GPU and loads nothing.

The parts' bytes are exact: `tests/memory/test_footprint.py` builds the real classes on the meta device and compares. A
image's are fitted to traces of klein-9b on meta tensors with flash attention, and grow with the model's widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from imagegen.lora.layers import elements
from imagegen.memory.types import Precision
from imagegen.models import MEGAPIXEL, MULTIPLE, Architecture, ModelSpec, Size
from imagegen.weights.files import TEXT_ENCODER_LAYERS

#: Linear layers of one shape: how many, rows, columns.
Linears = tuple[int, int, int]

#: Bytes that the transformer needs beside its weights for each token of an image or of a text: so many for each unit of
#: its hidden width, and for the rotary embedding, which is as wide for all. Not compiled, in every precision; compiled,
#: by precision (int8's product is of int32). `tests/memory/test_fake_gpu.py` and `test_compiled_memory.py` measure
#: them; those of bf16 and fp8 are also those of torch's own code for an H100 (123.9 and 107.6 kB for klein-9b).
_EAGER_WIDTHS, _EAGER_ROTARY = 42, 2_690
_COMPILED_WIDTHS: dict[Precision, int] = {"bf16": 30, "fp8": 26, "int8": 52, "nf4": 30}
_COMPILED_ROTARY = 1_024
#: What a chunk of tokens (`model.quantized_linear.CHUNK`) needs at most while it is multiplied in 8 bits, for each unit
#: of the hidden width; not compiled.
_CHUNK_BYTES: dict[Precision, int] = {"bf16": 0, "fp8": 47_400, "int8": 29_000, "nf4": 0}
#: The same of the text encoder, for each token and unit of its feed-forward width (`tests/model/test_prompt.py`).
_TEXT_BYTES: dict[Precision, float] = {"bf16": 0, "fp8": 9.2, "int8": 8.5, "nf4": 0}
#: The VAE's decoder and encoder for each pixel.
_DECODE_BYTES, _ENCODE_BYTES = 1_541, 1.34e9 / MEGAPIXEL
#: The same for the step that fills the cache of the references' keys and values, for a reference's token and any other:
#: 4.3, 7.5, 10.7 and 13.9 GB with 1 to 4 references, of which the cache is 2.15 GB a reference.
_KV_REFERENCE_BYTES, _KV_TOKEN_BYTES = 3.2e9 / 4096, 1.1e9 / (4096 + 512)
#: bitsandbytes' 4 bits: weights that share a scale of a byte, scales that share a float32, and what each tensor has
#: beside them: a table of 16 values, one of 256 for the scales, and their offset, all float32.
_NF4_BLOCK, _NF4_SCALES, _NF4_TABLES = 64, 256, (16 + 256 + 1) * 4


@dataclass(frozen=True)
class Parts:
    """Bytes of a pipeline's weights. `text_encoder` is what is used of its layers, `embeddings` its table of words,
    which can stay on the CPU; `unused` what a pipeline that is not trimmed holds for nothing."""

    transformer: int
    text_encoder: int
    embeddings: int
    vae: int
    unused: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.transformer + self.text_encoder + self.embeddings + self.vae + self.unused


@dataclass(frozen=True)
class Activations:
    """Bytes that each stage of an image needs beside the weights; they run one after another."""

    encode_prompt: int
    encode_references: int
    denoise: int
    decode: int

    @property
    def image(self) -> int:
        """The most that an image needs once its prompt is encoded."""
        return max(self.encode_references, self.denoise, self.decode)


def transformer_linears(a: Architecture) -> list[Linears]:
    """The transformer's Linear layers that are quantised: those inside its blocks."""
    h, r, double, single = a.hidden, a.mlp_ratio, a.double_blocks, a.single_blocks
    return [
        (8 * double, h, h),
        (2 * double, 2 * r * h, h),
        (2 * double, h, r * h),
        (single, (3 + 2 * r) * h, h),
        (single, h, (1 + r) * h),
    ]


def text_linears(a: Architecture, layers: int) -> list[Linears]:
    """The text encoder's Linear layers that are quantised: those of its layers."""
    h, f, q, kv = a.text_hidden, a.text_feed_forward, a.text_heads, a.text_kv_heads
    width = a.text_head_width
    return [
        (layers, q * width, h),
        (2 * layers, kv * width, h),
        (layers, h, q * width),
        (2 * layers, f, h),
        (layers, h, f),
    ]


def linear_bytes(linears: Sequence[Linears], precision: Precision, element: int = 2) -> int:
    """Bytes of Linear layers without bias, in bf16 with `element` bytes a weight (4: float32, on a CPU).

    fp8 and int8 as torchao keeps them with one scale a row: a byte a weight and a float32 a row, in int8 a zero point
    of one byte more. nf4 as bitsandbytes keeps it: half a byte a weight, and scales that are quantised too.
    """
    if precision == "bf16":
        return sum(count * rows * columns for count, rows, columns in linears) * element
    if precision == "nf4":
        return sum(count * _nf4_bytes(rows * columns) for count, rows, columns in linears)
    row = 4 if precision == "fp8" else 5
    return sum(count * rows * (columns + row) for count, rows, columns in linears)


def _nf4_bytes(weights: int) -> int:
    scales = math.ceil(weights / _NF4_BLOCK)
    return math.ceil(weights / 2) + scales + 4 * math.ceil(scales / _NF4_SCALES) + _NF4_TABLES


def transformer_rest(a: Architecture) -> int:
    """Parameters of the transformer that are never quantised: embedders, modulations, norms, the last layer."""
    h = a.hidden
    embedders = a.channels * h + 3 * a.text_hidden * h + a.timestep_channels * h + h * h
    modulations = (6 + 6 + 3) * h * h  # of the image, of the text, of the single blocks
    norms = (4 * a.double_blocks + 2 * a.single_blocks) * (h // a.heads)
    return embedders + modulations + norms + 2 * h * h + h * a.channels


def part_bytes(
    spec: ModelSpec, transformer: Precision, text_encoder: Precision, trimmed: bool = True, element: int = 2
) -> Parts:
    """Bytes of each part of a pipeline whose transformer and text encoder are in these precisions.

    Args:
        trimmed: the text encoder's later layers, last norm and head are left out. (Of one that ends with layer 27 the
            norm is used.)
        element: bytes of a weight that is not quantised.
    """
    a = spec.architecture

    def layer_bytes(layers: int) -> int:
        norms = layers * 2 * (a.text_hidden + a.text_head_width)
        return linear_bytes(text_linears(a, layers), text_encoder, element) + norms * element

    used, norm = min(a.text_layers, TEXT_ENCODER_LAYERS), a.text_hidden * element
    unused = layer_bytes(a.text_layers) - layer_bytes(used)
    if a.text_layers > TEXT_ENCODER_LAYERS:
        unused, norm = unused + norm, 0
    table = a.vocabulary * a.text_hidden * element
    return Parts(
        transformer=linear_bytes(transformer_linears(a), transformer, element) + transformer_rest(a) * element,
        text_encoder=layer_bytes(used) + norm,
        embeddings=table,
        vae=a.vae_parameters * element,
        unused=0 if trimmed else unused + (0 if a.tied else table),
    )


def lora_bytes(spec: ModelSpec, rank: int, element: int = 2) -> int:
    """Bytes of the buffers for LoRA adapters of `rank` together: two matrices at each layer, and a scale a rank."""
    return (elements(spec) + 1) * rank * element


def two_linears(linears: Sequence[Linears], precision: Precision) -> int:
    """Bytes of the two last kinds of Linear layers, one of each: in a block of either model these are the widest that
    come one after the other."""
    return linear_bytes([(1, rows, columns) for _, rows, columns in linears[-2:]], precision)


def activations(
    spec: ModelSpec,
    size: Size,
    references: Sequence[Size],
    precision: Precision = "bf16",
    compiled: bool = True,
    text_encoder: Precision = "bf16",
) -> Activations:
    """Estimated bytes beside the weights that an image of `size` pixels with these references needs.

    Args:
        precision, text_encoder: of the transformer and of the text encoder.
        compiled: whether its blocks are.
    """
    a = spec.architecture
    # Two layers' states are kept; the widest moment is inside a feed-forward layer (measured on an H100: 55.1 MB).
    prompt = spec.max_sequence_length * (4 * a.text_hidden + 3 * a.text_feed_forward) * 2
    prompt += int(spec.max_sequence_length * a.text_feed_forward * _TEXT_BYTES[text_encoder])
    if text_encoder == "nf4":
        prompt += 2 * a.text_hidden * a.text_feed_forward
    embeddings = spec.max_sequence_length * 3 * a.text_hidden * 2 * (1 if spec.distilled else 2)  # guidance has two
    tokens = sum(width * height for width, height in (size, *references)) // MULTIPLE**2 + spec.max_sequence_length
    if compiled:
        denoise = tokens * (_COMPILED_WIDTHS[precision] * a.hidden + _COMPILED_ROTARY)
    else:
        denoise = tokens * (_EAGER_WIDTHS * a.hidden + _EAGER_ROTARY) + _CHUNK_BYTES[precision] * a.hidden
    if precision == "nf4":  # bitsandbytes makes a weight of 16 bits of the layer that it multiplies
        denoise += 2 * max(rows * columns for _, rows, columns in transformer_linears(a))
    vae_ratio = a.vae_width / 128
    encode = max((width * height * _ENCODE_BYTES * vae_ratio for width, height in references), default=0)
    decode = int(size[0] * size[1] * _DECODE_BYTES * vae_ratio)
    return Activations(prompt, int(encode), denoise + embeddings, decode + embeddings)


def kv_bytes(spec: ModelSpec, size: Size, references: Sequence[Size]) -> int:
    """Estimated bytes beside the weights of the path that keeps its references' keys and values: of the step that fills
    the cache, with the cache, which stays for all steps."""
    cached = sum(width * height for width, height in references) / MULTIPLE**2
    others = size[0] * size[1] / MULTIPLE**2 + spec.max_sequence_length
    return int((cached * _KV_REFERENCE_BYTES + others * _KV_TOKEN_BYTES) * spec.width_ratio)
