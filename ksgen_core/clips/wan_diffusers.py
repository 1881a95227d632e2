"""Wan's clip model: what the adapter needs of it, and its forward passes for training and for ComfyUI's own nodes.

    model_index.json transformer/ vae/ text_encoder/ tokenizer/ scheduler/     a WanImageToVideoPipeline
    transformer_2/                                                             Wan 2.2 14B: for the low-noise half
    image_encoder/ image_processor/                                            Wan 2.1: tokens of the first picture

Legend: B clips, F frames, H, W their size in pixels, Z latent channels, f, h, w the latents' frames, height and width
(F = 4 (f - 1) + 1, H = 8 h, W = 8 w in Wan 2.1's VAE), L tokens per text, C their width.
"""

from __future__ import annotations

import html
import re

import torch
from torch import Tensor, nn

from ..errors import KSGenError
from .clip_diffusers import ClipModel
from .framewise import make_framewise

# The pipeline's own length, for a tokenizer that does not say one (transformers then gives it 10**30).
LONGEST_TEXT = 512


class WanClipModel(ClipModel):
    """A `ClipModel` of a Wan folder.

    Every method of its own is differentiable; whoever only renders wraps it in `torch.no_grad()`. `condition`,
    `with_mask` and `predict` are those of the kind that ships with the pack, Wan 2.2 14B.
    """

    def prepare(self) -> None:
        """Lay the VAE out for processors. Raises `KSGenError` if transformer and VAE do not fit each other."""
        config, channels = self.pipe.transformer.config, self.latent_channels
        wanted = channels if self.pipe.config.expand_timesteps else 2 * channels + self.frame_multiple
        if config.in_channels != wanted:
            raise KSGenError(
                f"{self.folder and self.folder / 'transformer'} has {config.in_channels} input channels, "
                f"{self.family.name} with this VAE has {wanted}. Choose a folder whose parts belong together."
            )
        make_framewise(self.pipe.vae)

    @property
    def latent_channels(self) -> int:
        return self.pipe.vae.config.z_dim

    @property
    def frame_multiple(self) -> int:
        """The number of frames is a multiple of this, plus 1."""
        return self.pipe.vae_scale_factor_temporal

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Each text on its own -> [B, L, C], zeros after its end, as `WanImageToVideoPipeline` has it.

        The pipeline's own method needs ftfy, which repairs broken Unicode; here the text is taken as it is.
        """
        tokenizer, encoder = self.pipe.tokenizer, self.pipe.text_encoder
        length = min(tokenizer.model_max_length, LONGEST_TEXT)
        clean = [re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip() for text in texts]
        batch = tokenizer(clean, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        mask = batch.attention_mask.to(self.device)
        states = encoder(batch.input_ids.to(self.device), mask).last_hidden_state
        return (states * mask[..., None]).to(self.device, self.dtype)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Films [B, F, H, W, 3], 0..1 -> latents [B, Z, f, h, w]: the most likely ones, with mean 0 and deviation 1."""
        vae = self.pipe.vae
        pixels = frames.to(self.device, vae.dtype).movedim(-1, 1) * 2 - 1
        mean, std = self._statistics()
        return (vae.encode(pixels).latent_dist.mode().float() - mean) / std

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents [B, Z, f, h, w] -> films [B, F, H, W, 3], float32 0..1."""
        vae = self.pipe.vae
        mean, std = self._statistics()
        raw = latents.to(self.device, torch.float32) * std + mean
        pixels = vae.decode(raw.to(vae.dtype), return_dict=False)[0]
        return (pixels.float().movedim(1, -1) / 2 + 0.5).clamp(0, 1)

    def condition(self, images: Tensor, frames: int) -> Tensor:
        """First frames [B, H, W, 3] of clips of `frames` frames -> condition [B, 4 + Z, f, h, w].

        The picture is followed by middle grey and encoded as a film; `with_mask` says the rest.
        """
        grey = torch.full_like(images, 0.5)[:, None].expand(-1, frames - 1, -1, -1, -1)
        return self.with_mask(self.encode_frames(torch.cat([images[:, None], grey], dim=1)))

    def with_mask(self, latents: Tensor) -> Tensor:
        """Latents [B, Z, f, h, w] of a picture followed by grey -> condition [B, 4 + Z, f, h, w].

        In front stand as many mask channels as frames share a latent: 1 where the frame is given, that is in the
        first latent, 0 elsewhere.
        """
        mask = latents.new_zeros(latents.shape[0], self.frame_multiple, *latents.shape[2:])
        mask[:, :, 0] = 1
        return torch.cat([mask, latents], dim=1)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Tensor, condition: Tensor, transformer: nn.Module | None = None
    ) -> Tensor:
        """One pass: noisy latents [B, Z, f, h, w], timesteps [B] or scalar, 0..1000 (1000 times sigma), text [B, L, C]
        and condition [B, 4 + Z, f, h, w] -> velocity (noise minus clean) [B, Z, f, h, w].
        """
        transformer = self.pipe.transformer if transformer is None else transformer
        joined = torch.cat([noisy, condition.to(noisy.dtype)], dim=1).to(transformer.dtype)
        times = timesteps.to(joined.device).expand(len(joined))
        return transformer(joined, times, text.to(transformer.dtype), return_dict=False)[0]

    def _statistics(self) -> tuple[Tensor, Tensor]:
        config = self.pipe.vae.config
        numbers = (config.latents_mean, config.latents_std)
        mean, std = (torch.tensor(values, device=self.device).view(1, -1, 1, 1, 1) for values in numbers)
        return mean, std


@torch.no_grad()
def fold_latent_statistics(vae: nn.Module, mean: Tensor, std: Tensor) -> None:
    """Rewrite the VAE's 1x1x1 quant convolutions in place, so that its raw latents get the statistics of its config.

    `mean` [Z] and `std` [Z] are what its raw latents (the mode, before normalisation) have now. ComfyUI normalises by
    Wan 2.1's fixed numbers, whatever the VAE: they stand in the config as `latents_mean` and `latents_std`. What the
    VAE makes of a picture stays the same, float rounding aside.
    """
    count = vae.config.z_dim
    weight = vae.quant_conv.weight
    mean, std = (torch.as_tensor(v, dtype=torch.float64, device=weight.device) for v in (mean, std))
    wanted_mean, wanted_std = (
        torch.tensor(v, dtype=torch.float64, device=weight.device)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    scale = wanted_std / std
    shift = wanted_mean - mean * scale
    # The first Z outputs are the mode, the others the logarithm of the variance.
    quant, back = vae.quant_conv, vae.post_quant_conv
    quant.weight[:count] = (quant.weight[:count].double() * scale.view(-1, 1, 1, 1, 1)).to(weight.dtype)
    quant.bias[:count] = (quant.bias[:count].double() * scale + shift).to(weight.dtype)
    quant.bias[count:] += (2 * scale.log()).to(weight.dtype)
    undone = back.weight.double() / scale.view(1, -1, 1, 1, 1)
    back.bias.copy_(back.bias.double() - undone.flatten(1) @ shift)
    back.weight.copy_(undone)
