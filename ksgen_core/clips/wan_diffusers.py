"""The clip model: Wan image-to-video (the 2.2 kind: 36 input channels, no image encoder), read from a diffusers folder.

    model_index.json transformer/ vae/ text_encoder/ tokenizer/ scheduler/     a WanImageToVideoPipeline
    transformer_2/                                                             optional, for the low-noise half

Legend: B clips, F frames, H, W their size in pixels, Z latent channels, f, h, w the latents' frames, height and width
(F = 4 (f - 1) + 1, H = 8 h, W = 8 w in Wan 2.1's VAE), L tokens per text, C their width.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoints_diffusers import quietly
from .framewise import make_framewise
from .render import encode_text_native, render_clip, render_clips
from .settings import RenderSettings
from .wan_files_diffusers import check, check_kind, read_folder, save_folder

__all__ = ["ClipModel", "RenderSettings", "encode_text_native", "render_clip", "render_clips"]

# The pipeline's own length, for a tokenizer that does not say one (transformers then gives it 10**30).
LONGEST_TEXT = 512


class ClipModel:
    """All parts for rendering clips, on one device and in one dtype. The parts are plain attributes of `pipe`.

    Every method is differentiable; whoever only renders wraps it in `torch.no_grad()`.
    """

    def __init__(self, pipe, folder: Path | None = None) -> None:
        self.pipe = pipe
        self.folder = folder

    @classmethod
    def load(
        cls, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> ClipModel:
        """Read the folder. Raises `KSGenError`, naming the file, if one is missing, cut off or of another kind."""
        folder = Path(folder)
        check(folder)
        with quietly():
            pipe = read_folder(folder, dtype)
        check_kind(pipe, folder)
        model = cls(pipe, folder)
        for part in model.parts().values():
            part.to(device).eval()
        make_framewise(pipe.vae)
        return model

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write what `load` reads, the weights in `dtype`. Raises `KSGenError` if the folder cannot be written."""
        save_folder(self, Path(folder), dtype)

    def parts(self) -> dict[str, nn.Module]:
        """The trainable parts by name."""
        names = ("transformer", "transformer_2", "vae", "text_encoder")
        return {name: part for name in names if (part := getattr(self.pipe, name, None)) is not None}

    @property
    def device(self) -> torch.device:
        return self.pipe.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pipe.transformer.dtype

    @property
    def latent_channels(self) -> int:
        return self.pipe.vae.config.z_dim

    @property
    def side_multiple(self) -> int:
        """Height and width of a clip are multiples of this: the VAE's scale times the transformer's patch."""
        return self.pipe.vae_scale_factor_spatial * self.pipe.transformer.config.patch_size[1]

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
        mask = batch.attention_mask.to(encoder.device)
        states = encoder(batch.input_ids.to(encoder.device), mask).last_hidden_state
        return (states * mask[..., None]).to(self.device, self.dtype)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Films [B, F, H, W, 3], 0..1 -> latents [B, Z, f, h, w]: the most likely ones, with mean 0 and deviation 1."""
        vae = self.pipe.vae
        pixels = frames.to(vae.device, vae.dtype).movedim(-1, 1) * 2 - 1
        mean, std = self._statistics(vae.device)
        return (vae.encode(pixels).latent_dist.mode().float() - mean) / std

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents [B, Z, f, h, w] -> films [B, F, H, W, 3], float32 0..1."""
        vae = self.pipe.vae
        mean, std = self._statistics(vae.device)
        raw = latents.to(vae.device, torch.float32) * std + mean
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

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        config = self.pipe.vae.config
        numbers = (config.latents_mean, config.latents_std)
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1, 1) for values in numbers)
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
