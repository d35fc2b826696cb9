"""The models that can be served."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from imagegen.errors import ConfigurationError

#: The model that is part of the package.
MICRO_PATH = Path(__file__).resolve().parent / "micro"
#: Width and height in pixels.
Size = tuple[int, int]
#: A side is a multiple of this: 8 pixels a latent, 2x2 latents a token.
MULTIPLE = 16
#: The most pixels that a reference keeps, and that an edit takes over from its first reference (diffusers' own bound).
MEGAPIXEL = 1024 * 1024
_NON_COMMERCIAL = "FLUX Non-Commercial License"


@dataclass(frozen=True)
class Architecture:
    """The figures from which a model's bytes follow (`imagegen.memory.footprint`), as its parts' config.json have them.

    klein-9b's and klein-4b's: `Klein9BParams` and `Klein4BParams` of BFL's flux2, as public copies of them agree, and
    the configurations of Qwen3-8B and Qwen3-4B, of which the 4B's was read in copies alone. The transformer's context
    is three of the text encoder's states wide.
    """

    hidden: int
    heads: int
    double_blocks: int
    single_blocks: int
    text_hidden: int
    text_feed_forward: int
    text_layers: int
    text_heads: int
    text_kv_heads: int
    text_head_width: int
    vocabulary: int
    #: Whether the text encoder's head is its embedding table again.
    tied: bool
    channels: int = 128
    timestep_channels: int = 256
    mlp_ratio: int = 3
    #: Counted: its convolutions have no short formula.
    vae_parameters: int = 84_046_115
    #: Channels of the VAE at the image's full size.
    vae_width: int = 128


_KLEIN_9B = Architecture(4096, 32, 8, 24, 4096, 12288, 36, 32, 8, 128, 151_936, tied=False)
_KLEIN_4B = Architecture(3072, 24, 5, 20, 2560, 9728, 36, 32, 8, 128, 151_936, tied=True)
_MICRO = Architecture(
    128,
    4,
    2,
    4,
    64,
    64,
    27,
    4,
    2,
    16,
    118,
    tied=True,
    channels=32,
    timestep_channels=64,
    vae_parameters=661_299,
    vae_width=8,
)


@dataclass(frozen=True)
class ModelSpec:
    """What differs between the models.

    Sizes are pixels and multiples of 16 (8 pixels a latent, 2x2 latents a token); `size` is the side of the default
    square. `revision` is a commit of the repository, None for its main branch.
    """

    name: str
    repository: str | None
    licence: str
    gated: bool = False
    revision: str | None = None
    pipeline_class: str = "Flux2KleinPipeline"
    distilled: bool = True
    num_inference_steps: int = 4
    guidance_scale: float = 1.0
    size: int = 1024
    min_size: int = 256
    max_size: int = 2048
    #: The longest side at which it does well, where that is less than what it accepts.
    good_size: int | None = None
    max_references: int = 4
    max_sequence_length: int = 512
    architecture: Architecture = _KLEIN_9B
    #: What it generates, where that is not everything; words that it does not know are then warned of.
    draws: str | None = None

    @property
    def page(self) -> str | None:
        """The model's page, where a gated licence is accepted."""
        return f"https://huggingface.co/{self.repository}" if self.repository else None

    @property
    def width_ratio(self) -> float:
        """The transformer's hidden width against klein-9b's; what a token needs of the GPU grows with it."""
        return self.architecture.hidden / _KLEIN_9B.hidden


def _base(name: str, repository: str, licence: str, gated: bool, architecture: Architecture) -> ModelSpec:
    # 50 steps and a guidance of 4.0 are Flux2KleinPipeline's own defaults, made for the undistilled models.
    return ModelSpec(
        name,
        repository,
        licence,
        gated,
        distilled=False,
        num_inference_steps=50,
        guidance_scale=4.0,
        architecture=architecture,
    )


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec("klein-9b", "black-forest-labs/FLUX.2-klein-9B", _NON_COMMERCIAL, gated=True),
        ModelSpec(
            "klein-9b-kv",
            "black-forest-labs/FLUX.2-klein-9b-kv",
            _NON_COMMERCIAL,
            gated=True,
            pipeline_class="Flux2KleinKVPipeline",
        ),
        ModelSpec("klein-4b", "black-forest-labs/FLUX.2-klein-4B", "Apache-2.0", architecture=_KLEIN_4B),
        _base("klein-base-9b", "black-forest-labs/FLUX.2-klein-base-9B", _NON_COMMERCIAL, True, _KLEIN_9B),
        _base("klein-base-4b", "black-forest-labs/FLUX.2-klein-base-4B", "Apache-2.0", False, _KLEIN_4B),
        ModelSpec(
            "micro",
            None,
            "MIT",
            size=128,
            min_size=64,
            max_size=1024,
            good_size=256,  # as it was trained; beyond, it repeats what is asked for
            max_sequence_length=32,
            architecture=_MICRO,
            draws="circles, squares, triangles and stars in red, green, blue, yellow, white, black, orange and purple",
        ),
    )
}


def get_model(name: str) -> ModelSpec:
    """The spec of a model.

    Raises:
        ConfigurationError: there is no such model; the message lists those there are.
    """
    try:
        return MODELS[name]
    except KeyError:
        raise ConfigurationError(
            f"IMAGEGEN_MODEL: no model is called {name!r}; known are {', '.join(MODELS)}"
        ) from None


def fit(width: float, height: float, low: int, high: int, most: int = MEGAPIXEL) -> Size:
    """The size nearest to the shape of width x height: at most `most` pixels, sides low to high, in multiples of 16.

    A larger image shrinks as a whole; one that is too small grows until its shorter side is `low`. Only one that is
    too long and thin for both bounds changes its shape.
    """
    scale = min(1.0, math.sqrt(most / (width * height)), high / max(width, height))
    scale = max(scale, low / min(width, height))
    longest = most / low
    w, h = min(width * scale, longest), min(height * scale, longest)
    sizes = [
        (clamp(_down(w) + right, low, high), clamp(_down(h) + below, low, high))
        for right in (0, MULTIPLE)
        for below in (0, MULTIPLE)
    ]
    return min(
        (size for size in sizes if size[0] * size[1] <= most),
        key=lambda size: (abs(size[0] - w) / w + abs(size[1] - h) / h, size),
    )


def _down(side: float) -> int:
    return int(side // MULTIPLE) * MULTIPLE


def clamp(value: int, low: int, high: int) -> int:
    """The nearest number to `value` that is from `low` to `high`."""
    return max(low, min(high, value))


def aspect_size(size: Size, across: int, down: int) -> Size:
    """The smallest size of the shape across:down, to the pixel, that holds `size`."""
    return max(size[0], math.ceil(size[1] * across / down)), max(size[1], math.ceil(size[0] * down / across))
