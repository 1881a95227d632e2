"""What one training pass of an image-to-video transformer is: the same flow for every family, one small class for what
a family has of its own.

A clean clip x is mixed with noise n, z = (1 - sigma) x + sigma n, and the transformer foresees the velocity n - x
(Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003), as the samplers of these families take it to be. What
is given, the first frame, stays clean where it is part of z, and counts nothing then.

Legend: B clips, F frames, H, W their size in pixels, Z latent channels, f, h, w the latents' frames, height and width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import pixels
from ..clips.clip_diffusers import ClipModel
from ..clips.wan_diffusers import WanClipModel
from ..errors import KSGenError

Given = dict[str, Tensor]
"""What a clip is, encoded: "clean" are its latents [Z, f, h, w], the others what it starts from; with a batch in
front in `Flow.losses`."""


class Flow:
    """The pass of one family. `name` is that of the transformer among the model's parts, `sigmas` its range of noise,
    `targets` the linear layers that a LoRA goes on unless somebody says otherwise: attention and feed-forward.
    """

    targets: tuple[str, ...]

    def __init__(self, model: ClipModel, expert: int, fps: float) -> None:
        if expert not in (1, 2) or expert > len(model.denoisers):
            raise KSGenError(
                f"{model.folder} has {len(model.denoisers)} transformer{'s' if expert == 1 else ''}, the expert "
                f"{expert} is not there. Leave --expert out."
            )
        self.model, self.fps = model, fps
        self.name = model.denoisers[expert - 1]
        # The pipeline asks the first expert from this share of noise on (WanImageToVideoPipeline.__call__).
        boundary = model.pipe.config.get("boundary_ratio") if len(model.denoisers) > 1 else None
        self.sigmas = (0.0, 1.0) if boundary is None else ((boundary, 1.0), (0.0, boundary))[expert - 1]

    @property
    def transformer(self) -> Any:
        return getattr(self.model.pipe, self.name)

    def encode(self, film: Tensor) -> Given:
        """A film [F, H, W, 3], 0..1, that starts with the frame that is given, on the CPU in float32."""
        raise NotImplementedError

    @property
    def in_place(self) -> bool:
        """Is the frame that is given the first latent itself?"""
        raise NotImplementedError

    def learned(self, clean: Tensor) -> Tensor:
        """Clean latents [B, Z, f, h, w] -> bool [1, 1, f, 1, 1]: False where the frame that is given stands."""
        mask = torch.ones(1, 1, clean.shape[2], 1, 1, dtype=torch.bool, device=clean.device)
        if self.in_place:
            mask[:, :, 0] = False
        return mask

    def velocity(self, noisy: Tensor, sigma: Tensor, given: Given, text: Given) -> Tensor:
        """One pass: noisy latents [B, Z, f, h, w], sigma [B] -> velocity of the same shape."""
        raise NotImplementedError

    def draw_sigmas(self, u: Tensor, shift: float) -> Tensor:
        """Uniform u [B] -> sigma [B] in this transformer's range: s u / (1 + (s - 1) u), of it the part that lies there
        (Esser et al., arXiv 2403.03206, eq. 23).
        """
        low, high = (sigma / (shift - (shift - 1) * sigma) for sigma in self.sigmas)
        u = low + (high - low) * u
        return shift * u / (1 + (shift - 1) * u)

    def losses(self, given: Given, text: Given, sigma: Tensor, noise: Tensor) -> Tensor:
        """The velocity's mean squared error [B], float32, at levels sigma [B] with noise [B, Z, f, h, w]."""
        device = self.model.device
        given, text = ({name: value.to(device) for name, value in some.items()} for some in (given, text))
        clean, noise, level = given["clean"].float(), noise.to(device), sigma.to(device)[:, None, None, None, None]
        learned = self.learned(clean)
        noisy = torch.where(learned, (1 - level) * clean + level * noise, clean)
        got = self.velocity(noisy, sigma.to(device), given, text)
        error = (got.float() - (noise - clean)).square() * learned
        return error.flatten(1).sum(1) / learned.expand(clean.shape).flatten(1).sum(1)


class WanFlow(Flow):
    """Wan's kinds, as `WanImageToVideoPipeline.__call__` and `prepare_latents` have them (diffusers,
    src/diffusers/pipelines/wan/pipeline_wan_i2v.py).

    2.1 and 2.2 14B: the picture followed by grey, encoded, in channels beside the noisy latents; 2.1 has tokens of the
    picture too. 2.2 5B: the picture is the first latent itself, at timestep 0, and every token has its timestep.
    """

    targets = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj", "ffn.net.0.proj", "ffn.net.2")
    model: WanClipModel

    @property
    def in_place(self) -> bool:
        return bool(self.model.pipe.config.expand_timesteps)

    def encode(self, film: Tensor) -> Given:
        model = self.model
        given = {"clean": model.encode_frames(film[None])[0]}
        if not self.in_place:
            # The mask channels in front say the same for every clip.
            given["first"] = model.condition(film[None, 0], len(film))[0, model.frame_multiple :]
        if self.transformer.config.image_dim is not None:
            given["image"] = model.pipe.encode_image(pixels.to_pil(film[0]), model.device)[0]
        return {name: value.float().cpu() for name, value in given.items()}

    def velocity(self, noisy: Tensor, sigma: Tensor, given: Given, text: Given) -> Tensor:
        model, times = self.model, 1000 * sigma
        if self.in_place:
            _, height, width = self.transformer.config.patch_size
            tokens = self.learned(noisy).expand(-1, -1, -1, *noisy.shape[3:])[:, 0, :, ::height, ::width]
            times = tokens.flatten(1) * times[:, None]
        else:
            noisy = torch.cat([noisy, model.with_mask(given["first"].float())], dim=1)
        image = given["image"].to(model.dtype) if "image" in given else None
        return self.transformer(
            noisy.to(model.dtype), times, text["prompt_embeds"].to(model.dtype), image, return_dict=False
        )[0]


class LtxFlow(Flow):
    """LTX-Video, as `LTXImageToVideoPipeline.__call__` has it (diffusers, src/diffusers/pipelines/ltx/
    pipeline_ltx_image2video.py): latents in rows of tokens, the first frame among them at timestep 0.
    """

    targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    @property
    def in_place(self) -> bool:
        return True

    def encode(self, film: Tensor) -> Given:
        pipe, vae = self.model.pipe, self.model.pipe.vae
        frames = (film * 2 - 1).movedim(-1, 0)[None].to(self.model.device, vae.dtype)
        latents = vae.encode(frames).latent_dist.mode().float()
        return {"clean": pipe._normalize_latents(latents, vae.latents_mean, vae.latents_std)[0].cpu()}

    def velocity(self, noisy: Tensor, sigma: Tensor, given: Given, text: Given) -> Tensor:
        model, pipe = self.model, self.model.pipe
        patches = pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
        frames, height, width = noisy.shape[2:]
        mask = self.learned(noisy).float().expand(1, 1, *noisy.shape[2:])
        side = pipe.vae_spatial_compression_ratio
        got = self.transformer(
            pipe._pack_latents(noisy, *patches).to(model.dtype),
            text["prompt_embeds"].to(model.dtype),
            1000 * sigma[:, None] * pipe._pack_latents(mask, *patches)[..., 0],
            text["prompt_attention_mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(pipe.vae_temporal_compression_ratio / self.fps, side, side),
            return_dict=False,
        )[0]
        return pipe._unpack_latents(got, frames, height, width, *patches)


FLOWS: dict[str, type[Flow]] = {
    "Wan 2.1": WanFlow,
    "Wan 2.2 14B": WanFlow,
    "Wan 2.2 5B": WanFlow,
    "LTX-Video": LtxFlow,
}
"""By the family's name."""


def flow_of(model: ClipModel, expert: int = 1, fps: float | None = None) -> Flow:
    """The pass of a model's family, for one of its transformers.

    Raises `KSGenError` for a family that cannot be trained, or an expert that is not there.
    """
    if model.family.name not in FLOWS:
        raise KSGenError(
            f"{model.folder} holds {model.family.name}, which cannot be trained here. Choose a folder of one of these: "
            f"{', '.join(FLOWS)}."
        )
    return FLOWS[model.family.name](model, expert, model.defaults.fps if fps is None else fps)
