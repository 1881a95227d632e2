"""Key images by editing: models that take pictures and an instruction, run through diffusers' own pipelines.

Which pictures and which words: `edit_chain.py`; which models: `families.py`.

Legend: H, W height and width in pixels, h, w of latents, Z latent channels, L tokens of the backbone (one for 2 x 2
latent pixels), C their width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import pixels
from ..checkpoints_diffusers import quietly
from ..errors import KSGenError
from ..ladder_diffusers import with_ladder, with_ladder_once
from ..pipeline import Fallback, KeyImage, Update
from ..residence_diffusers import keep_on_device
from ..sampling_diffusers import State, relayed, run_pipeline
from ..types import Plan, with_seeds
from .edit_chain import check_order, instruction, references
from .edit_files_diffusers import check, read_folder, save_folder
from .families import Defaults, Family, defaults_of, size_like
from .policies import DrawSettings

POLICIES = ("edit_chain", "auto", "initial")
KLEIN_LAYERS = (9, 18, 27)
"""The layers of Qwen3 that Flux.2 Klein reads (diffusers' Flux2KleinPipeline)."""

SHORTEST = 64
"""Pixels; diffusers' Flux2ImageProcessor takes no smaller reference."""


@dataclass(frozen=True)
class Wanted:
    """How the key images of one run are drawn, with nothing left open."""

    updates: int
    guidance: float
    negative: str
    height: int
    width: int


class EditModel:
    """An editing pipeline of diffusers, on one device and in one dtype. The pipeline's components are borrowed as they
    are and reached only by calling them.

    `device` is where it computes, whatever a component's place is when it does not work.
    """

    denoisers = ("transformer",)

    def __init__(self, pipe: Any, family: Family, defaults: Defaults, folder: Path) -> None:
        self.pipe = pipe
        self.family = family
        self.defaults = defaults
        self.folder = folder
        self.device: torch.device = pipe.transformer.device
        self.dtype: torch.dtype = pipe.transformer.dtype
        self._check_fit()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        place: Callable[[EditModel], object] | None = None,
    ) -> EditModel:
        """Read the folder. Raises `KSGenError`, naming the file, if one is missing, cut off or of another kind.

        `place` takes over where the components are kept; without it they all stay on `device`.
        """
        folder = Path(folder)
        family = check(folder)
        defaults = defaults_of(folder, family)
        with quietly():
            pipe = read_folder(folder, family, dtype)
        model = cls(pipe, family, defaults, folder)
        model.device = torch.device(device)
        for part in model.parts().values():
            part.eval()
        (place or keep_on_device)(model)
        return model

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the folder that `load` reads, weights in `dtype`. The model itself stays as it is."""
        save_folder(self, Path(folder), dtype)

    def parts(self) -> dict[str, nn.Module]:
        """The components that hold weights, by name."""
        return {name: getattr(self.pipe, name) for name in self.family.parts}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of key images in pixels for a square initial picture; see `size_for`."""
        return self.defaults.size or size_like(1, 1, self.family, self.defaults.area)

    def size_for(self, image: Tensor) -> tuple[int, int]:
        """Height and width of key images for this initial picture [H, W, 3]: the model's own area in its shape, or the
        size that its folder names.

        A key image's size stays as it is. Raises `KSGenError` for a picture that is much longer than wide.
        """
        return self.defaults.size or size_like(image.shape[-3], image.shape[-2], self.family, self.defaults.area)

    def draw(
        self,
        image: Tensor,
        plan: Plan,
        steps: Sequence[int],
        settings: DrawSettings | None = None,
        made: Mapping[int, Tensor] | None = None,
    ) -> Iterator[Update | KeyImage | Fallback]:
        """Draw the key images of `steps` (numbers from 0), given the initial picture [H, W, 3] and the whole plan.

        Each is an edit of earlier ones, which are drawn before it or found in `made` (a picture of step 0 there takes
        the place of the initial one). Yields an `Update` per sampler update and a `KeyImage` (float32 0..1 on the CPU,
        of the size that `size_for` says) per finished step, one step after another: they depend on each other. Where
        memory runs out a `Fallback` comes, and the step begins again. Steps without a seed count theirs from 0. Raises
        `KSGenError` before any work if something is lacking or this model cannot draw so.
        """
        settings = settings or DrawSettings(policy="edit_chain")
        if wrong := [k for k in steps if not 0 <= k < len(plan.steps)]:
            raise ValueError(f"the plan has steps 0..{len(plan.steps) - 1}, got {wrong}")
        if settings.policy not in POLICIES:
            raise KSGenError(
                f"The model in {self.folder} edits pictures; it cannot draw by the policy {settings.policy!r}. Choose "
                f"one of {', '.join(POLICIES)}."
            )
        if self.family.name.startswith("flux2") and self.pipe.transformer.is_cache_enabled:
            # diffusers 0.42 takes what the first block gives, and what the last one does, for the same kind of thing.
            raise KSGenError(f"FirstBlockCache does not work with the model in {self.folder}, a Flux.2. Turn it off.")
        ordered, made = sorted(set(steps)), dict(made or {})
        image = pixels.one_picture(made.get(0, image))
        wanted = self._wanted(settings, image)
        if settings.policy != "initial":
            check_order(ordered, made)
        there = {0: image} | {r: made[r] for k in ordered for r in references(k) if r in made and r > 0}
        there = {k: pixels.fit(picture, wanted.height, wanted.width) for k, picture in there.items()}
        return self._draw(there, with_seeds(plan, 0), ordered, wanted, settings.policy == "initial")

    def _draw(
        self, there: dict[int, Tensor], plan: Plan, steps: list[int], wanted: Wanted, initial: bool
    ) -> Iterator[Update | KeyImage | Fallback]:
        drawn = []
        for k in steps:
            if k == 0 or initial:
                yield KeyImage(k, there[0].clone())
            else:
                drawn.append(k)
        if not drawn:
            return

        def prepare() -> tuple[list[dict[str, Any]], Tensor]:
            texts = self._texts([instruction(plan, k, self.family.references) for k in drawn], wanted)
            return texts, pixels.latent_colours(self._latents_of(there[0]), there[0])

        tell = functools.partial(Fallback, "draw", tuple(drawn))
        texts, colours = yield from with_ladder_once(self, prepare, tell)
        for number, (k, text) in enumerate(zip(drawn, texts, strict=True)):
            pictures = [there[r] for r in references(k, self.family.references)]
            call = functools.partial(self._call, pictures, text, plan.steps[k].seed, wanted)
            edit = functools.partial(self._edit, call, k, number, len(drawn), colours, wanted, there)
            yield from with_ladder(self, edit, functools.partial(Fallback, "draw", (k,)))

    def _edit(
        self,
        call: Callable[[], dict[str, Any]],
        k: int,
        number: int,
        count: int,
        colours: Tensor,
        wanted: Wanted,
        there: dict[int, Tensor],
    ) -> Iterator[Update | KeyImage]:
        """Run the pipeline once, as edit `number` (from 0) of `count`, and put key image `k` with those that are there.
        `call` gives its arguments, with a generator of random numbers that nobody has drawn from."""

        def update(state: State) -> Update:
            latents = self._unfold(state, wanted)
            rough = pixels.preview(latents, colours, pixels.preview_height(latents.shape[-2], wanted.height))
            return Update("draw", (k,), number * state.total + state.number, count * state.total, rough)

        with self._caching():
            result = yield from relayed(run_pipeline(self.pipe, **call()), update)
        there[k] = pixels.on_8_bit_grid(result.images[0].movedim(0, -1))
        yield KeyImage(k, there[k].clone())

    def _caching(self) -> AbstractContextManager[None]:
        """What FirstBlockCache, if it is on, wants around a pipeline's run."""
        transformer = self.pipe.transformer
        if not transformer.is_cache_enabled:
            return nullcontext()
        transformer._reset_stateful_cache()  # a run that was stopped has left its own behind
        # Kontext's is the pipeline that says nothing to the cache.
        return transformer.cache_context("cond") if self.family.name == "flux-kontext" else nullcontext()

    def _wanted(self, settings: DrawSettings, image: Tensor) -> Wanted:
        """The settings with nothing left open. Raises `KSGenError` for what this model cannot do."""
        defaults, family = self.defaults, self.family
        updates = defaults.updates if settings.updates is None else settings.updates
        guidance = defaults.guidance if settings.guidance is None else settings.guidance
        if family.guidance_word is None and guidance != 1:
            raise KSGenError(
                f"The model in {self.folder} was distilled to a few updates and knows no guidance, got {guidance}. "
                "Leave guidance open, or at 1."
            )
        negative = settings.negative or defaults.negative
        if family.negative is None and negative:
            raise KSGenError(f"The model in {self.folder} takes no negative prompt, got {negative!r}. Leave it empty.")
        height, width = settings.size or self.size_for(image)
        unit = 2 * self.pipe.vae_scale_factor
        if height % unit or width % unit:
            raise KSGenError(
                f"Key images of {self.folder} have sides that are multiples of {unit}, got {height} x {width}."
            )
        if min(height, width) < SHORTEST:
            raise KSGenError(f"Key images have sides of at least {SHORTEST} pixels, got {height} x {width}.")
        return Wanted(updates, float(guidance), negative, height, width)

    def _call(self, pictures: list[Tensor], text: dict[str, Any], seed: int | None, wanted: Wanted) -> dict[str, Any]:
        """The arguments of the pipeline's call for one edit."""
        family = self.family
        images = [pixels.to_pil(picture) for picture in pictures]
        call = {
            "image": images if family.references > 1 else images[0],
            "height": wanted.height,
            "width": wanted.width,
            "num_inference_steps": wanted.updates,
            # On the CPU, so that a step's noise is the same on any device (HOUSE.md, example 10).
            "generator": torch.Generator("cpu").manual_seed(seed or 0),
            "output_type": "pt",
            family.guidance_word or "guidance_scale": wanted.guidance,
            **text,
        }
        if family.name == "flux-kontext":
            # The picture has its size already; the pipeline would choose another one.
            call |= {"max_area": wanted.height * wanted.width, "_auto_resize": False}
        if self._layers is not None:
            call["text_encoder_out_layers"] = self._layers
        return call

    @torch.no_grad()
    def _texts(self, texts: list[str], wanted: Wanted) -> list[dict[str, Any]]:
        """The arguments of the call that stand for each instruction: encoded here once, so that the text encoders work
        before the backbone and not again. Qwen's encoder reads the pictures with the text, so it works in every call.
        """
        with quietly():  # CLIP reads only the beginning, and says so each time
            if self.family.name.startswith("qwen"):
                more = {"negative_prompt": wanted.negative} if wanted.guidance > 1 else {}
                return [{"prompt": text, **more} for text in texts]
            if self.family.name == "flux-kontext":
                found = [self.pipe.encode_prompt(text, device=self.device)[:2] for text in texts]
                return [{"prompt_embeds": tokens, "pooled_prompt_embeds": pooled} for tokens, pooled in found]
            more = {}
            if self.family.guidance_word and wanted.guidance > 1:
                more = {"negative_prompt_embeds": self._klein_tokens(wanted.negative)}
            return [{"prompt_embeds": self._klein_tokens(text), **more} for text in texts]

    def _klein_tokens(self, text: str) -> Tensor:
        return self.pipe.encode_prompt(text, device=self.device, text_encoder_out_layers=self._layers)[0]

    @torch.no_grad()
    def _latents_of(self, image: Tensor) -> Tensor:
        """A picture [H, W, 3] -> its latents [Z, h, w] as the backbone knows them (of Klein [4 Z, h / 2, w / 2])."""
        ready = self.pipe.image_processor.preprocess(pixels.to_pil(image), *image.shape[:2])
        ready = ready.to(self.device, self.pipe.vae.dtype)
        if self.family.name.startswith("qwen"):
            return self.pipe._encode_vae_image(ready.unsqueeze(2), None)[0, :, 0]
        return self.pipe._encode_vae_image(ready, None)[0]

    def _unfold(self, state: State, wanted: Wanted) -> Tensor:
        """The foreseen latents [1, L, C] as a picture's [1, Z, h, w], in the layout of `_latents_of`."""
        latents = state.latents if state.foreseen is None else state.foreseen
        if self.family.name.startswith("flux2"):
            side = 2 * self.pipe.vae_scale_factor
            return latents.movedim(1, -1).unflatten(-1, (wanted.height // side, wanted.width // side))
        latents = self.pipe._unpack_latents(latents, wanted.height, wanted.width, self.pipe.vae_scale_factor)
        return latents[:, :, 0] if latents.ndim == 5 else latents

    @property
    def _layers(self) -> tuple[int, ...] | None:
        """The text encoder's layers that are read; None where the pipeline has no such choice."""
        if not self.family.name.startswith("flux2"):
            return None
        return self.defaults.text_layers or KLEIN_LAYERS

    def _check_fit(self) -> None:
        """Raise `KSGenError` if the parts belong to different models, or `ksgen.json` to another one."""
        pipe, unit = self.pipe, 2 * self.pipe.vae_scale_factor
        if self.family.multiple % unit:
            raise KSGenError(
                f"The VAE in {self.folder} shrinks pictures {pipe.vae_scale_factor} times; sides of this family are "
                f"multiples of {self.family.multiple}, which {unit} does not divide. Get the model's own VAE."
            )
        if (layers := self._layers) is None:
            if self.defaults.text_layers is not None:
                raise KSGenError(f"{self.folder / 'ksgen.json'} names text_layers, which this family has none of.")
            return
        config = pipe.text_encoder.config
        width = pipe.transformer.config.joint_attention_dim
        if max(layers) > config.num_hidden_layers or len(layers) * config.hidden_size != width:
            raise KSGenError(
                f"The transformer in {self.folder} reads {width} numbers a token; layers {', '.join(map(str, layers))} "
                f"of its text encoder of {config.num_hidden_layers} layers give {len(layers)} x {config.hidden_size}. "
                "Get the text encoder that belongs to it, or name the layers as text_layers in ksgen.json."
            )
