"""The Wan VAE's layers, computed frame by frame on processors: the same numbers, several times faster.

torch's 3D convolution is slow on processors, so a causal one over k frames is done as a 2D one over k times the
channels. Over a single first frame, before which there are only zeros, the last of the k kernels alone counts.

Legend: B films, C channels in, O out, T frames, N frames out, k kernel frames, H, W height and width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LANES = 16
"""float32 numbers in a vector register of a present-day processor."""


class FramewiseConv(nn.Module):
    """diffusers' `WanCausalConv3d`, sharing its parameters under the same names."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.frames, self.skip, self.stride = conv.kernel_size[0], conv.stride[0], conv.stride[1:]
        # As its `F.pad` takes it: left, right, top, bottom, frames before, frames after.
        self.pad_side, _, self.pad_top, _, self.before, _ = conv._padding

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """x [B, C, T, H, W] and, if given, the frames before it -> [B, O, N, H, W]."""
        weight, frames, before = self.weight, self.frames, self.before
        if cache_x is not None and before:
            x = torch.cat([cache_x.to(x.device), x], dim=2)
            before -= cache_x.shape[2]
        if x.device.type != "cpu":
            return self._whole(x, before)
        if before == frames - 1 and x.shape[2] == 1:
            weight, frames = weight[:, :, -1:], 1
        elif before > 0:
            x = F.pad(x, (0, 0, 0, 0, before, 0))
        if weight.shape[0] < LANES and x.shape[2] > frames:
            return self._together(x, weight, frames)
        # [B, N, k, C, H, W]: for each frame out, the k frames that it depends on.
        windows = x.movedim(2, 1).unfold(1, frames, self.skip).permute(0, 1, 5, 2, 3, 4)
        flat = windows.reshape(-1, frames * x.shape[1], *x.shape[3:])
        kernel = weight.transpose(1, 2).flatten(1, 2)
        y = F.conv2d(flat, kernel, self.bias, self.stride, (self.pad_top, self.pad_side))
        return y.unflatten(0, windows.shape[:2]).movedim(1, 2)

    def _whole(self, x: Tensor, before: int) -> Tensor:
        """As diffusers does it."""
        x = F.pad(x, (self.pad_side, self.pad_side, self.pad_top, self.pad_top, max(0, before), 0))
        return F.conv3d(x, self.weight, self.bias, (self.skip, *self.stride))

    def _together(self, x: Tensor, weight: Tensor, frames: int) -> Tensor:
        """All frames as channels of one picture, in one convolution whose kernel is zero where a frame is not seen.

        More work on paper, but a few output channels a frame would leave most of a processor's lanes empty.
        """
        count = (x.shape[2] - frames) // self.skip + 1
        outer, inner, _, height, width = weight.shape
        kernel = weight.new_zeros(count, outer, x.shape[2], inner, height, width)
        for n in range(count):
            kernel[n, :, n * self.skip : n * self.skip + frames] = weight.transpose(1, 2)
        flat = x.movedim(2, 1).flatten(1, 2)
        bias = None if self.bias is None else self.bias.repeat(count)
        y = F.conv2d(flat, kernel.flatten(2, 3).flatten(0, 1), bias, self.stride, (self.pad_top, self.pad_side))
        return y.unflatten(1, (count, outer)).movedim(1, 2)


class QuickNorm(nn.Module):
    """diffusers' `WanRMS_norm`, sharing its parameters; torch's own norm along a strided dimension is slow."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.gamma, self.scale = norm.gamma, norm.scale

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, ...] -> the same shape, of length sqrt(C) * gamma along C."""
        wide = x.float()
        # The least length that F.normalize divides by.
        length = wide.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
        return (wide * (self.scale / length)).to(x.dtype) * self.gamma


def make_framewise(vae: nn.Module) -> None:
    """Put these layers in place of the VAE's own; its parameters stay the same objects under the same names."""
    for parent in list(vae.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv3d) and hasattr(child, "_padding"):
                setattr(parent, name, FramewiseConv(child))
            elif type(child).__name__ == "WanRMS_norm" and child.channel_first and not torch.is_tensor(child.bias):
                setattr(parent, name, QuickNorm(child))
