"""Where the host keeps libraries of skills and sentence embeddings, and how they are opened."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths

from ..ksgen_core.checkpoints import read_json
from ..ksgen_core.errors import KSGenError
from . import host
from .host_models import HostModels

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.retrieval.index import VectorIndex
    from ..ksgen_core.retrieval.search import SkillSearch
    from ..ksgen_core.types import Example, Query

log = logging.getLogger("ksgen")
EVERYDAY, TABLETOP = "everyday skills", "Tabletop"
WORDS_ONLY, INSTALLED, OFF = "words only", "installed", "off"
EMBEDDINGS = "sentence_transformers"
"""The kind of model folder with sentence-transformers folders in it."""


def register_folder() -> None:
    folder_paths.add_model_folder_path(EMBEDDINGS, str(Path(folder_paths.models_dir) / EMBEDDINGS))


def user_folder() -> Path:
    """The pack's folder in the host's user folder; its `library` holds the user's own skills."""
    return Path(folder_paths.get_user_directory()) / "ksgen"


def names() -> list[str]:
    """What the load node offers: the libraries that ship, then the files in the user's library folder."""
    return [EVERYDAY, TABLETOP, *(path.name for path in own_libraries())]


def embedding_names() -> list[str]:
    """The ways to compare meaning that are there: an installed embedding first, words alone last."""
    from ..ksgen_core.retrieval.embed import installed_embedding

    installed = [INSTALLED] if installed_embedding() else []
    return [*installed, *_folders_of("bert"), WORDS_ONLY]


def picture_embedding_names() -> list[str]:
    """The CLIP models that can put examples in order by a picture, after the word for none."""
    return [OFF, *_folders_of("clip")]


def _folders_of(model_type: str) -> list[str]:
    """The folders of sentence embeddings that hold a model of this type of transformers."""
    found = set()
    for config in (
        file for root in folder_paths.get_folder_paths(EMBEDDINGS) for file in Path(root).glob("*/config.json")
    ):
        try:
            if read_json(config).get("model_type") == model_type:
                found.add(config.parent.name)
        except KSGenError as error:  # a download that is not yet whole, or another pack's folder
            log.info("Passed over: %s", error)
    return sorted(found)


def ordered_by_picture(examples: Sequence[Example], picture: torch.Tensor, embedding: str) -> Sequence[Example]:
    """The examples with those first that begin as the picture `[H, W, 3]` looks. The model is let go afterwards."""
    from ..ksgen_core.retrieval.mllm_clip import PictureText
    from ..ksgen_core.retrieval.rerank import rerank

    host.require_packages("transformers")
    clip = PictureText(_embedding_folder(embedding))
    return rerank(examples, picture, clip.picture, clip.texts)


def open_library(source: str, embedding: str, more: SkillSearch | None = None) -> SkillSearch:
    """The library called `source`, with the skills of `more`. Raises `KSGenError` for unknown names, naming folders."""
    from ..ksgen_core.retrieval.library import read_library
    from ..ksgen_core.retrieval.search import SkillSearch

    skills = read_library(*_places(source)) + (more.skills if more else ())
    return SkillSearch(skills, _vectors(embedding))


def examples_for(models: HostModels, query: Query, agree: bool) -> Sequence[Example]:
    """What a planner gets that was given no examples: found in the models' own library, else in that of everyday
    skills and the user's. As many as can `agree`, or as a language model reads."""
    from ..ksgen_core import build
    from ..ksgen_core.retrieval.library import BUILT_IN

    places = [BUILT_IN, *own_libraries()]
    count = build.TO_AGREE if agree else build.TO_READ
    return build.retriever(models.models, places, _vectors(embedding_names()[0]), count)(query)


def own_libraries() -> list[Path]:
    """The user's own files of skills."""
    return sorted((user_folder() / "library").glob("*.jsonl"))


def state(source: str | None = None) -> str:
    """Changes whenever a file of the library called `source` does, or one of the user's if none is given."""
    places = own_libraries() if source is None else _places(source)
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.iterdir()))]
    return " ".join(f"{path} {path.stat().st_mtime_ns} {path.stat().st_size}" for path in files)


def _places(source: str) -> list[Path]:
    from ..ksgen_core.retrieval.library import BUILT_IN

    if source == EVERYDAY:
        return [BUILT_IN]
    if source == TABLETOP:
        return [host.MINI / "library.jsonl"]
    folder = user_folder() / "library"
    if Path(source).name != source or not (folder / source).is_file():
        raise KSGenError(f"There is no library {source!r} in {folder}. Put the file there, or choose another one.")
    return [folder / source]


def _vectors(embedding: str) -> VectorIndex | None:
    from ..ksgen_core.retrieval.embed import Embedding, installed_embedding
    from ..ksgen_core.retrieval.index import VectorIndex

    if embedding == WORDS_ONLY:
        return None
    installed = installed_embedding() if embedding == INSTALLED else None
    embed = Embedding(installed or _embedding_folder(embedding))
    return VectorIndex(embed, user_folder() / "index", host.show_progress)


def _embedding_folder(name: str) -> Path:
    return host.find_folder(EMBEDDINGS, name, "embedding")
