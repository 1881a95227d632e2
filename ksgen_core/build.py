"""From a models folder to working stages: the only wiring.

A models folder is laid out like the embedded one, `mini`: `keysteps/` (a diffusers folder of one of
`keysteps.families`, e.g. SDXL, with `image_encoder/`, `ip_adapter/` and `skill_transformer.safetensors` if it has
them), `clips/` (a diffusers folder of one of `clips.families`, e.g. Wan) and, if it has them, `planner/` (a language
model of transformers) and `library.jsonl` (one ksgen.plan/1 document a line). Each part may also lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoints import read_json, read_json_lines, read_metadata
from .clips.settings import RenderSettings
from .errors import KSGenError
from .keysteps.policies import DrawSettings, read_defaults
from .lora_diffusers import Lora, load_loras
from .memory import MemoryOptions
from .pipeline import Drawer, Fallback, KeyImage, Planner, Renderer, Retriever, StepClip, Update
from .planning.consensus import Consensus
from .planning.wording import FEWEST, MOST
from .retrieval.lexical import step_words_of, words_of
from .retrieval.library import BUILT_IN, Skill
from .retrieval.library import read_library as read_skills
from .retrieval.search import SkillSearch
from .types import Example, Plan, Query

if TYPE_CHECKING:
    import torch

    from .clips.clip_diffusers import ClipModel
    from .keysteps.edit_diffusers import EditModel
    from .keysteps.sdxl_diffusers import KeyStepModel
    from .residence_diffusers import Residence
    from .retrieval.index import VectorIndex

MINI = Path(__file__).resolve().parent / "mini"
STAGES = {"keysteps": "drawing key images", "clips": "rendering clips"}
TO_AGREE, TO_READ = 64, 4
"""How many examples a consensus wants (on COIN .644 by edit score, .639 with 8), and how many a language model."""


@dataclass(frozen=True)
class Models:
    """A models folder, or parts from elsewhere. Nothing is loaded before a method asks for it.

    `key_folder` and `clip_folder` are diffusers folders that stand for the folder's `keysteps` and `clips`. `adapter`
    (an IP-Adapter-Plus file), `image_encoder` (its folder) and `skill_transformer` (a file) go before those beside the
    key image model. `memory` says how each stage uses the device; its attention and FirstBlockCache are for
    transformers and say nothing to the UNets of SDXL and Kolors, and only clips are split over GPUs.
    """

    folder: Path | None = None
    key_folder: Path | None = None
    clip_folder: Path | None = None
    adapter: Path | None = None
    image_encoder: Path | None = None
    skill_transformer: Path | None = None
    key_loras: tuple[Lora, ...] = ()
    clip_loras: tuple[Lora, ...] = ()
    memory: MemoryOptions = MemoryOptions()

    def __post_init__(self) -> None:
        if self.folder is not None and not self.folder.is_dir():
            raise KSGenError(f"The models folder {self.folder} is not there. Give a folder laid out like {MINI}.")
        stages = (self.key_folder, self.clip_folder, *(self.folder and (self.folder / name for name in STAGES) or ()))
        if not any(stage.is_dir() for stage in stages if stage):
            raise KSGenError(
                f"{self.folder} holds neither a keysteps nor a clips folder. Give a folder laid out like {MINI}."
            )

    def key_steps(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        residence: Residence | None = None,
    ) -> KeyStepModel | EditModel:
        """Load the key image model; `residence` moves its components, if the host does that.

        Raises `KSGenError` naming what is missing or broken, or what does not fit.
        """
        from .keysteps.edit_diffusers import EditModel
        from .keysteps.families import family_of
        from .keysteps.sdxl_diffusers import KeyStepModel

        folder, dtype = self.stage_folder("keysteps"), dtype or _float32()
        edits = family_of(folder).edits
        memory = replace(self.memory, gpus=1)
        memory = memory if edits else replace(memory, attention="default", first_block_cache=0.0)
        place = _place(self.key_loras, memory, residence)
        if not edits:
            parts = {"adapter": self.adapter, "image_encoder": self.image_encoder}
            parts["skill_transformer"] = self.skill_transformer
            return KeyStepModel.load(folder, device, dtype, **parts, place=place)
        given = (self.adapter, self.image_encoder, self.skill_transformer)
        if names := [str(path) for path in given if path]:
            raise KSGenError(
                f"{folder} holds an image edit model, which takes no IP-Adapter and no Skill Transformer: "
                f"{', '.join(names)}. Leave them out, or choose an SDXL or Kolors folder."
            )
        return EditModel.load(folder, device, dtype, place=place)

    def clips(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        residence: Residence | None = None,
    ) -> ClipModel:
        """Load the clip model; `residence` moves its components, if the host does that.

        Raises `KSGenError` naming what is missing or broken, or what does not fit.
        """
        from .clips.clip_diffusers import ClipModel

        place = _place(self.clip_loras, self.memory, residence)
        return ClipModel.load(self.stage_folder("clips"), device, dtype or _float32(), place=place)

    def check(self, settings: RenderSettings, *, ends: bool = False, draws: bool = True) -> None:
        """Raise `KSGenError` for clips that the clip model cannot make, or if a folder lacks or mixes files: from small
        files and headers alone, so that it is said before anything is drawn.

        `ends`: there is a picture for the last clip to end in. `draws`: key images are drawn, too.
        """
        from .clips.checks import check_settings
        from .clips.files_diffusers import check_clip_folder
        from .keysteps.check_diffusers import check_key_folder

        folder = self.stage_folder("clips")
        family = check_clip_folder(folder)
        self.memory.check_packages()
        check_settings(family, folder, settings)
        if draws:
            parts = {"adapter": self.adapter, "image_encoder": self.image_encoder}
            check_key_folder(self.stage_folder("keysteps"), **parts, skill_transformer=self.skill_transformer)
        for lora in (*self.clip_loras, *self.key_loras):
            read_metadata(lora.path)
        if family.needs_last_frame and not ends:
            raise KSGenError(
                f"{family.name} makes clips between two pictures, and the last step has none to end in. Give a picture "
                "of the end (--end-image), or choose a model that starts from one picture alone."
            )

    def check_lengths(self, settings: RenderSettings, plan: Plan) -> None:
        """Raise `KSGenError` for a step that is to last longer than a clip of the clip model can."""
        from .clips.families import family_of, legal_frames
        from .clips.settings import defaults, read_own

        folder = self.stage_folder("clips")
        family = family_of(folder)
        fps = defaults(family, read_own(folder)).over(settings).fps
        for step in plan.steps:
            if step.seconds is not None:
                legal_frames(family, step.seconds, fps)

    def library(self) -> tuple[Plan, ...]:
        """The folder's own plans to retrieve from, none if it has no `library.jsonl`."""
        own = self.folder and self.folder / "library.jsonl"
        return read_library(own) if own and own.is_file() else ()

    def planner(self) -> Path:
        """The folder of the language model that plans: the folder's own `planner`, else the embedded one."""
        own = self.folder and self.folder / "planner"
        return own if own and own.is_dir() else MINI / "planner"

    def picture_size(self, image: torch.Tensor) -> tuple[int, int]:
        """Height and width of the key images that the backbone was made for, given the initial picture [H, W, 3].

        Text-to-image models have one size, edit models keep the picture's shape.
        """
        from .keysteps import families

        folder = self.stage_folder("keysteps")
        family = families.family_of(folder)
        if family.edits:
            own = families.defaults_of(folder, family)
            return own.size or families.size_like(image.shape[-3], image.shape[-2], family, own.area)
        if size := read_defaults(folder).get("size"):
            return size
        latent = read_json(folder / "unet" / "config.json").get("sample_size")
        levels = len(read_json(folder / "vae" / "config.json").get("block_out_channels", ()))
        height, width = latent if isinstance(latent, list) else (latent, latent)
        if not levels or not isinstance(height, int) or not isinstance(width, int):
            raise KSGenError(f"{folder} does not say its picture size: sample_size of the unet is {latent!r}.")
        scale = 2 ** (levels - 1)
        return height * scale, width * scale

    def stage_folder(self, name: str) -> Path:
        """The diffusers folder of the stage `name` of `STAGES`. Raises `KSGenError` if there is none."""
        folder = {"keysteps": self.key_folder, "clips": self.clip_folder}[name]
        if folder is None and self.folder is None:
            raise KSGenError(f"No model was chosen for {STAGES[name]}. Choose a diffusers folder for it.")
        folder = folder or self.folder / name  # type: ignore[operator]
        if not (folder / "model_index.json").is_file():
            raise KSGenError(
                f"{folder / 'model_index.json'} is missing. For {STAGES[name]} a diffusers folder is wanted, complete."
            )
        return folder


def _place(loras: Sequence[Lora], memory: MemoryOptions, residence: Residence | None) -> Callable[[Any], None]:
    """What puts LoRAs on a model that was read, and its components where they belong."""

    def place(model: Any) -> None:
        from .residence_diffusers import settle

        load_loras(model, loras)
        settle(model, memory, residence)

    return place


class OneStage:
    """Holds the model of the stage that works, and lets go of it before another stage's is loaded.

    Planner, image model and video model are so never in memory together; within one run no stage comes twice.
    """

    def __init__(self) -> None:
        self._name, self._model = "", None

    def get(self, name: str, load: Callable[[], Any]) -> Any:
        """The model of the stage `name`, loaded if another one, or none, is held."""
        if self._name != name:
            self.clear()
            self._model, self._name = load(), name
        return self._model

    def clear(self) -> None:
        """Let go of the model, and give its memory back to the device and the system."""
        from .residence_diffusers import free_now

        device = getattr(self._model, "device", "cpu")
        self._name, self._model = "", None
        free_now(device)


def embedded() -> Models:
    """The models that ship with the pack."""
    return Models(MINI)


def open_folder(path: str | Path) -> Models:
    """A models folder of the user's. Raises `KSGenError` if it is none."""
    return Models(_whole(path))


def open_models(folder: str | Path | None = None, **parts: Any) -> Models:
    """A models folder with parts from elsewhere, or those alone: the fields of `Models` by name.

    Raises `KSGenError` for what is not there.
    """
    for name, path in parts.items():
        if isinstance(path, str | Path):
            parts[name] = _whole(path)
    for path in (*(part for part in parts.values() if isinstance(part, Path)), *_lora_files(parts)):
        if not path.exists():
            raise KSGenError(f"{path} is not there. Check the path.")
    return Models(_whole(folder) if folder else None, **parts)


def _lora_files(parts: Mapping[str, Any]) -> Iterator[Path]:
    return (lora.path for name in ("key_loras", "clip_loras") for lora in parts.get(name, ()))


def _whole(path: str | Path) -> Path:
    return Path(path).expanduser().resolve()


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
    stage: OneStage | None = None,
) -> Drawer:
    """What draws key images. The model is loaded when the first picture is asked for; `stage` holds it."""
    from .keysteps.draw import draw_key_steps

    stage = stage or OneStage()

    def draw(
        image: torch.Tensor, plan: Plan, steps: Sequence[int], made: Mapping[int, torch.Tensor]
    ) -> Iterator[Update | KeyImage | Fallback]:
        model = stage.get("key images", lambda: models.key_steps(device, dtype))
        return draw_key_steps(model, image, plan, steps, settings or DrawSettings(), made)

    return draw


def renderer(
    models: Models,
    settings: RenderSettings | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    stage: OneStage | None = None,
) -> Renderer:
    """What renders clips. The model is loaded when the first clip is asked for; `stage` holds it."""
    from .clips.render import render_clip

    stage = stage or OneStage()

    def render(
        image: torch.Tensor, plan: Plan, step: int, end: torch.Tensor | None
    ) -> Iterator[Update | StepClip | Fallback]:
        model = stage.get("clips", lambda: models.clips(device, dtype))
        return render_clip(model, image, plan, step, settings or RenderSettings(), end)

    return render


def _float32() -> torch.dtype:
    import torch

    return torch.float32
