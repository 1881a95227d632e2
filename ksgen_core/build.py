"""From a models folder to working stages: the only wiring.

A models folder is laid out like the embedded one, `mini`: `keysteps/` (an SDXL folder of diffusers with
`image_encoder/`, `ip_adapter/` and `skill_transformer.safetensors`), `clips/` (a Wan image-to-video folder of
diffusers) and, if it has one, `library.jsonl` (one ksgen.plan/1 document a line). A plain SDXL folder as `keysteps/`
draws by the policy `text_only`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoints import read_json, read_json_lines
from .clips.settings import RenderSettings
from .errors import KSGenError
from .keysteps.policies import DrawSettings
from .pipeline import Drawer, KeyImage, Planner, Renderer, Retriever, StepClip, Update
from .planning.nearest import plan_of_nearest
from .retrieval.lexical import LexicalRetriever
from .types import Plan

if TYPE_CHECKING:
    import torch

    from .clips.wan_diffusers import ClipModel
    from .keysteps.sdxl_diffusers import KeyStepModel

MINI = Path(__file__).resolve().parent / "mini"
STAGE_FILES = {
    "keysteps": ("model_index.json", "unet/config.json", "vae/config.json"),
    "clips": ("model_index.json", "transformer/config.json", "vae/config.json"),
}
"""The least that a stage's folder must hold; what else is missing, the stage's own loader names."""


@dataclass(frozen=True)
class Models:
    """A models folder. Nothing is loaded before a method asks for it."""

    folder: Path

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise KSGenError(f"The models folder {self.folder} is not there. Give a folder laid out like {MINI}.")
        if not any((self.folder / stage).is_dir() for stage in STAGE_FILES):
            raise KSGenError(
                f"{self.folder} holds neither a keysteps nor a clips folder. Give a folder laid out like {MINI}."
            )

    def key_steps(self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> KeyStepModel:
        """Load the key image model. Raises `KSGenError` naming what is missing or broken."""
        from .keysteps.sdxl_diffusers import KeyStepModel

        return KeyStepModel.load(self._stage("keysteps"), device, dtype or _float32())

    def clips(self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> ClipModel:
        """Load the clip model. Raises `KSGenError` naming what is missing or broken."""
        from .clips.wan_diffusers import ClipModel

        return ClipModel.load(self._stage("clips"), device, dtype or _float32())

    def library(self) -> tuple[Plan, ...]:
        """The plans to retrieve from: the folder's own `library.jsonl`, else the embedded one."""
        own = self.folder / "library.jsonl"
        return read_library(own if own.is_file() else MINI / "library.jsonl")

    def picture_size(self) -> tuple[int, int]:
        """Height and width of the key images that the folder's backbone was made for."""
        folder = self._stage("keysteps")
        latent = read_json(folder / "unet" / "config.json").get("sample_size")
        levels = len(read_json(folder / "vae" / "config.json").get("block_out_channels", ()))
        height, width = latent if isinstance(latent, list) else (latent, latent)
        if not levels or not isinstance(height, int) or not isinstance(width, int):
            raise KSGenError(f"{folder} does not say its picture size: sample_size of the unet is {latent!r}.")
        scale = 2 ** (levels - 1)
        return height * scale, width * scale

    def _stage(self, name: str) -> Path:
        folder = self.folder / name
        missing = [file for file in STAGE_FILES[name] if not (folder / file).is_file()]
        if missing:
            raise KSGenError(
                f"The models folder {self.folder} lacks {', '.join(f'{name}/{file}' for file in missing)}."
            )
        return folder


def embedded() -> Models:
    """The models that ship with the pack."""
    return Models(MINI)


def open_folder(path: str | Path) -> Models:
    """A models folder of the user's. Raises `KSGenError` if it is none."""
    return Models(Path(path).expanduser().resolve())


@lru_cache(maxsize=4)
def read_library(path: Path) -> tuple[Plan, ...]:
    """Read a file with one ksgen.plan/1 document a line. Raises `KSGenError` naming file and line."""
    return tuple(read_json_lines(path, "The library of plans", Plan.from_json, "{path}, line {number}"))


def planner(models: Models) -> tuple[Retriever, Planner]:
    """What finds examples, and what makes a plan of them."""
    return LexicalRetriever(models.library()), plan_of_nearest


def drawer(
    models: Models,
    settings: DrawSettings | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Drawer:
    """What draws key images. The model is loaded when the first picture is asked for."""
    from .keysteps.draw import draw_key_steps

    load = cache(lambda: models.key_steps(device, dtype))

    def draw(image: torch.Tensor, plan: Plan, steps: Sequence[int]) -> Iterator[Update | KeyImage]:
        return draw_key_steps(load(), image, plan, steps, settings or DrawSettings())

    return draw


def renderer(
    models: Models,
    settings: RenderSettings | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Renderer:
    """What renders clips. The model is loaded when the first clip is asked for."""
    from .clips.render import render_clip

    load = cache(lambda: models.clips(device, dtype))

    def render(image: torch.Tensor, plan: Plan, step: int) -> Iterator[Update | StepClip]:
        return render_clip(load(), image, plan, step, settings or RenderSettings())

    return render


def _float32() -> torch.dtype:
    import torch

    return torch.float32
