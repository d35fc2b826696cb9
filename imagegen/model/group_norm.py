"""GroupNorm on a GPU as fast as its memory: torch's own measures each group with one block of threads, and an image of
one has 32 groups for 132 multiprocessors. In klein's decoder that was half of the time: on an H100 at 1024x1024 it
takes 43 ms with these norms and 90 with torch's (docs/benchmarks.md)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class SpreadGroupNorm(nn.GroupNorm):
    """torch.nn.GroupNorm; on a GPU its moments are made by torch's reductions over the whole chip, in float32."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(B, C, ...) normalised by group; on a CPU, and of several images, as torch's own."""
        one_on_gpu = values.device.type == "cuda" and values.shape[0] == 1
        return self.spread(values) if one_on_gpu else super().forward(values)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """(1, C, ...) normalised by group, on any device. The variance is the mean of the squares less the square of
        the mean: where that is a thousand times the deviation, float32's rounding of the sums takes a tenth of it."""
        grouped = values.unflatten(1, (self.num_groups, -1))
        inner = tuple(range(2, grouped.ndim))
        mean = grouped.mean(inner, dtype=torch.float32)
        square = torch.linalg.vector_norm(grouped, dim=inner, dtype=torch.float32).square()
        count = values.numel() // self.num_groups
        variance = (square / count - mean.square()).clamp_(min=0)  # rounding can leave less of a group of equal values
        # With its moments given, batch norm does the rest, in float32 and in one pass.
        width = self.num_channels // self.num_groups
        mean, variance = (one[0].repeat_interleave(width, output_size=self.num_channels) for one in (mean, variance))
        return functional.batch_norm(values, mean, variance, self.weight.float(), self.bias.float(), eps=self.eps)


def spread_group_norms(module: nn.Module) -> None:
    """Lets each GroupNorm inside a module be a `SpreadGroupNorm` of the same weights."""
    for name, norm in list(module.named_modules()):
        if type(norm) is nn.GroupNorm:
            spread = SpreadGroupNorm(norm.num_groups, norm.num_channels, norm.eps, device="meta")
            spread.weight, spread.bias = norm.weight, norm.bias
            module.set_submodule(name, spread.train(norm.training))
