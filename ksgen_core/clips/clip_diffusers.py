"""The clip model: one adapter over diffusers' image-to-video pipelines, whose own calls do the work.

Which families there are stands in `families`, what each wants in its own way in `ways`.

Legend: F frames, H, W pixels, Z latent channels, h, w latents.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import pixels
from ..checkpoints_diffusers import quietly
from ..errors import KSGenError
from ..residence_diffusers import keep_on_device
from ..sampling_diffusers import State, run_pipeline
from ..types import Clip
from .cogvideox_diffusers import COGVIDEOX
from .families import Family, family_of, find_family
from .files_diffusers import check, read_folder, save_folder
from .hunyuan_diffusers import HUNYUAN
from .ltx_diffusers import LTX, LTX2, LTX_CONDITION
from .settings import Defaults, defaults, read_own
from .svd_diffusers import SVD
from .ways import WAN, Embeds, Shot, Way

WAYS = {
    "WanImageToVideoPipeline": WAN,
    "CogVideoXImageToVideoPipeline": COGVIDEOX,
    "StableVideoDiffusionPipeline": SVD,
    "LTXImageToVideoPipeline": LTX,
    "LTXConditionPipeline": LTX_CONDITION,
    "LTX2ImageToVideoPipeline": LTX2,
    "HunyuanVideo15ImageToVideoPipeline": HUNYUAN,
}
"""By the class of the pipeline that renders, `Family.pipeline`."""


class ClipModel:
    """All parts for rendering clips, computing on one device in one dtype. The parts are plain attributes of `pipe`.

    `own` is what its folder's `ksgen.json` says, `defaults` that over what its family does.
    """

    def __init__(self, pipe: Any, folder: Path | None = None, own: Mapping[str, Any] | None = None) -> None:
        self.pipe = pipe
        self.folder = folder
        self.own = dict(own or {})
        self.family = _family_of_pipe(pipe)
        self.way: Way = WAYS[self.family.pipeline]
        self.defaults: Defaults = defaults(self.family, {**self.way.own(pipe), **self.own})
        self.denoisers = tuple(name for name in self.family.denoisers if getattr(pipe, name, None) is not None)
        denoiser = getattr(pipe, self.denoisers[0])
        self.device: torch.device = denoiser.device
        self.dtype: torch.dtype = denoiser.dtype
        self._texts: dict[str, Embeds] = {}
        self._texts_made_by: object = None
        self._colours: Tensor | None = None

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        place: Callable[[ClipModel], object] | None = None,
    ) -> ClipModel:
        """Read a folder of any known family. Raises `KSGenError`, naming the file, if one is missing or broken.

        `place` takes over where the parts are kept; without it they all stay on `device`.
        """
        folder = Path(folder)
        family = family_of(folder)
        found = check(folder, family)
        own = read_own(folder)
        with quietly():
            pipe = read_folder(folder, family, found, dtype)
        model = _kind(family)(pipe, folder, own)
        if not isinstance(model, cls):
            raise KSGenError(f"{folder} holds {family.name}, which is not what is trained here.")
        for part in model.parts().values():
            part.eval()
        model.device, model.dtype = torch.device(device), dtype
        model.prepare()
        (place or keep_on_device)(model)
        return model

    def prepare(self) -> None:
        """What remains to be done to parts that were just read. Raises `KSGenError` if they do not fit each other."""

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write what `load` reads, the weights in `dtype`. Raises `KSGenError` if the folder cannot be written."""
        save_folder(self, Path(folder), dtype)

    def parts(self) -> dict[str, nn.Module]:
        """The parts with weights by name."""
        return {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}

    @property
    def side_multiple(self) -> int:
        """Height and width of a clip are multiples of this."""
        return self.way.side_multiple(self.pipe)

    @property
    def own_size(self) -> tuple[int, int] | None:
        """Height and width of the only size that this model renders, None if it renders many."""
        return self.way.own_size(self.pipe)

    @torch.no_grad()
    def encode(self, texts: Iterable[str]) -> dict[str, Embeds]:
        """Each text as the pipeline takes it, on the CPU; nothing for a family that takes no text.

        What was encoded before is not encoded again, while it is asked for and the encoders' weights stay as they are.
        Each on its own: in a batch the last bits of one would depend on the others.
        """
        if self.way.encode is None:
            return {text: {} for text in texts}
        encoders = [part for name, part in self.parts().items() if name.startswith("text_encoder")]
        made_by = _state_of(encoders)
        if made_by != self._texts_made_by:
            self._texts, self._texts_made_by = {}, made_by
        kept = {}
        for text in texts:
            if text not in kept:
                embeds = self._texts.get(text) or self.way.encode(self, text)
                kept[text] = {name: tensor.cpu() for name, tensor in embeds.items()}
        self._texts = kept
        return dict(kept)

    @torch.no_grad()
    def colours(self, image: Tensor) -> Tensor | None:
        """Factors from latents to colours for previews, by the first picture [H, W, 3] that is asked with."""
        if self._colours is None and self.way.latent is not None:
            # In half precision a VAE may overflow: that spoils the preview alone.
            self._colours = pixels.latent_colours(self.way.latent(self, image).nan_to_num(), image)
        return self._colours

    def preview(self, state: State, image: Tensor) -> Tensor | None:
        """A rough picture, as large as the key image [H, W, 3], of the last frame that the sampler foresees now."""
        latent = None if state.foreseen is None else self.way.last(self, state.foreseen, image)
        colours = None if latent is None else self.colours(image)
        if latent is None or colours is None:
            return None
        return pixels.preview(latent[None], colours, image.shape[0])

    def make(self, shot: Shot) -> Generator[State, None, Clip]:
        """Run the pipeline: yields a `State` after every update and returns the clip, frames [F, H, W, 3] in memory."""
        on_device = ({name: t.to(self.device) for name, t in texts.items()} for texts in (shot.text, shot.negative))
        shot = replace(shot, **dict(zip(("text", "negative"), on_device, strict=True)))
        call = {"output_type": "pt", **self.way.arguments(self, shot)}
        result = yield from _hushed(run_pipeline(self.way.running(self, shot), **call))
        frames = self.way.film(self, call, result)[0].float().cpu().movedim(1, -1).clamp(0, 1)
        return Clip.of(frames, shot.fps, self.way.sound(self, result))


def _hushed(states: Generator[State, None, Any]) -> Generator[State, None, Any]:
    """The same, the libraries silent while the pipeline works and as they were in between: some remark in every clip on
    what is the pipelines' own way (LTX-Video's of its timesteps)."""
    with closing(states):
        while True:
            try:
                with quietly():
                    state = next(states)
            except StopIteration as end:
                return end.value
            yield state
            del state


def _kind(family: Family) -> type[ClipModel]:
    """The class that stands for a family: Wan's can also be trained."""
    from .wan_diffusers import WanClipModel

    return WanClipModel if family.pipeline == "WanImageToVideoPipeline" else ClipModel


def _family_of_pipe(pipe: Any) -> Family:
    def config(part: str) -> Mapping[str, Any]:
        return getattr(pipe, part).config

    return find_family(type(pipe).__name__, pipe.config, config, "The pipeline")


def _state_of(parts: list[nn.Module]) -> object:
    """Changes when a weight is written into. Weights made in inference mode do not count their changes."""
    weights = [weight for part in parts for weight in part.parameters()]
    return len(weights), sum(0 if weight.is_inference() else weight._version for weight in weights)
