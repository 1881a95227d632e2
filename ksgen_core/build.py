"""From a models folder to working stages: the only wiring.

A models folder is laid out like the embedded one, `mini`: `keysteps/` (an SDXL folder of diffusers with
`image_encoder/`, `ip_adapter/` and `skill_transformer.safetensors`), `clips/` (a Wan image-to-video folder of
diffusers) and, if it has them, `planner/` (a language model of transformers) and `library.jsonl` (one ksgen.plan/1
document a line). A plain SDXL folder as `keysteps/`
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
from .planning.consensus import Consensus
from .planning.wording import FEWEST, MOST
from .retrieval.lexical import step_words_of, words_of
from .retrieval.library import BUILT_IN, Skill
from .retrieval.library import read_library as read_skills
from .retrieval.search import SkillSearch
from .types import Example, Plan, Query

if TYPE_CHECKING:
    import torch

    from .clips.wan_diffusers import ClipModel
    from .keysteps.sdxl_diffusers import KeyStepModel
    from .retrieval.index import VectorIndex

MINI = Path(__file__).resolve().parent / "mini"
TO_AGREE, TO_READ = 64, 4
"""How many examples a consensus wants (on COIN .644 by edit score, .639 with 8), and how many a language model."""
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
        """The folder's own plans to retrieve from, none if it has no `library.jsonl`."""
        own = self.folder / "library.jsonl"
        return read_library(own) if own.is_file() else ()

    def planner(self) -> Path:
        """The folder of the language model that plans: the folder's own `planner`, else the embedded one."""
        own = self.folder / "planner"
        return own if own.is_dir() else MINI / "planner"

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


def retriever(
    models: Models,
    libraries: Sequence[str | Path] = (BUILT_IN,),
    vectors: VectorIndex | None = None,
    count: int = TO_AGREE,
) -> Retriever:
    """What finds at most `count` examples in the folder's own plans and in `libraries` of skills (files, or folders of
    them) together, by `vectors` too if given. If the best one is the folder's own, so are all: those its models draw.
    """
    own = tuple(map(Skill.of_plan, models.library()))
    others = read_skills(*libraries)
    search = SkillSearch((*own, *others), vectors, count)
    own_sources, other_sources = ({skill.source for skill in skills} for skills in (own, others))

    def retrieve(query: Query) -> tuple[Example, ...]:
        found = search(query)
        if found[0].source not in own_sources:
            return found
        return search.find(query.goal, without=other_sources - own_sources)

    return retrieve


def consensus(fewest: int = FEWEST, most: int = MOST) -> Planner:
    """The planner without a language model: the steps that the examples agree on."""
    return Consensus(words_of, fewest, most, step_words_of)


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
