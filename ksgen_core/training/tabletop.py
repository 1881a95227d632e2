"""`ksgen train tabletop`: make all the embedded models from nothing.

Every part resumes where it was; a part that is done is not done again. Parts that do not need each other can be trained
by two processes at once (`--only`). The run keeps a log of each part's losses and pictures of what it makes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..checkpoints import read_tensors, write_atomically, write_folder
from ..clips.wan_diffusers import WanClipModel
from ..errors import KSGenError
from ..keysteps.sdxl_diffusers import KeyStepModel
from ..tabletop.skills import all_texts
from . import clip_stages, encoded, image_stages, judges, planner_stage, samples
from .loop import Progress, Recipe
from .pack import pack
from .planner_folder import MINI as PLANNER_MINI
from .planner_folder import PlannerModel, new_planner_folder, take_over_tower
from .planner_samples import build_pictures
from .pool import TRAIN_INSTANCES, TRAIN_SPLITS, Pool, build_pool
from .sdxl_folder import MINI, new_sdxl_folder
from .wan_folder import MINI as WAN_MINI
from .wan_folder import new_wan_folder

PARTS = (
    *("vae", "texts", "backbone", "encoders", "skill", "adapter"),
    *("clip_vae", "clip_decoder", "clips"),
    "planner",
    *("state_judge", "action_judge"),
)
"""In this order; vae and encoders, and everything of the clips, do not depend on each other; planner needs encoders."""
HOLDS = {
    "vae": ("vae",),
    "texts": ("text_encoder", "text_encoder_2"),
    "backbone": ("unet",),
    "encoders": ("image_encoder", "resampler"),
    "skill": ("skill_transformer",),
    "adapter": ("unet",),
    "clip_vae": ("vae",),
    "clip_decoder": ("vae",),
    "clips": ("transformer", "text_encoder"),
    "planner": ("planner",),
}
"""What each part trains, by the names of `parts()`."""
CLIP_PARTS = ("clip_vae", "clip_decoder", "clips")
IMAGE_PARTS = tuple(part for part in HOLDS if part not in (*CLIP_PARTS, "planner"))
Model = KeyStepModel | WanClipModel | PlannerModel
RECIPES = {
    "vae": image_stages.VAE,
    "texts": image_stages.TEXTS,
    "backbone": image_stages.BACKBONE,
    "encoders": image_stages.ENCODERS,
    "skill": image_stages.SKILL,
    "adapter": image_stages.ADAPTER,
    "clip_vae": clip_stages.CLIP_VAE,
    "clip_decoder": clip_stages.CLIP_DECODER,
    "clips": clip_stages.CLIPS,
    "planner": planner_stage.PLANNER,
}


def _key_step_model(run: Path, device: str = "cpu") -> KeyStepModel:
    folder = run / "models/keysteps"
    if not folder.exists():
        _check_start(run)
        write_folder(folder, lambda new: new_sdxl_folder(new.parent, all_texts(), MINI))
    return KeyStepModel.load(folder, device)


def _clip_model(run: Path, device: str = "cpu") -> WanClipModel:
    folder = run / "models/clips"
    if not folder.exists():
        _check_start(run)
        write_folder(folder, lambda new: new_wan_folder(new.parent, all_texts(), WAN_MINI))
    return WanClipModel.load(folder, device)


def _planner_model(run: Path, device: str = "cpu") -> PlannerModel:
    folder = run / "models/planner"
    if not folder.exists():
        _check_start(run)
        write_folder(folder, lambda new: new_planner_folder(new, all_texts(), PLANNER_MINI))
    return PlannerModel.load(folder, device)


def _check_start(run: Path) -> None:
    """Raise `KSGenError` if the run has parts but nothing that they can have begun from, see `start_from`."""
    if not (run / "models").exists() and (found := _trained(run, HOLDS)):
        raise KSGenError(
            f"{run / 'models'} is missing, but {found[0]}.safetensors is there: the run was interrupted while it "
            "started from other models. Repeat that with --start."
        )


def _trained(run: Path, parts: Iterable[str]) -> list[str]:
    return [part for part in parts if (run / f"{part}.safetensors").exists()]


def _take(model: Model, run: Path, *parts: str) -> None:
    """Take over what earlier parts have reached. Raises `KSGenError` for a part that is not there yet, or broken."""
    for part in parts:
        path = run / f"{part}.safetensors"
        if not path.exists():
            raise KSGenError(f"{part} is not trained yet. Run `ksgen train tabletop --only {part}` first.")
        try:
            tensors = read_tensors(path)
        except KSGenError as error:
            raise KSGenError(f"{error} `ksgen train tabletop --only {part}` writes it anew from its state.") from error
        for name in HOLDS[part]:
            state = {key.split("/", 1)[1]: value for key, value in tensors.items() if key.startswith(name + "/")}
            model.parts()[name].load_state_dict(state)


def _keep(model: Model, run: Path, part: str) -> None:
    parts = model.parts()
    states = {f"{name}/{key}": value for name in HOLDS[part] for key, value in parts[name].state_dict().items()}
    whole = {key: value.contiguous().clone() for key, value in states.items()}
    write_atomically(run / f"{part}.safetensors", lambda temporary: save_file(whole, temporary))


def start_from(run: Path, models: Path) -> None:
    """Begin a run with the weights of a models folder: every part counts as trained, and trains on from there.

    The run's own models folder comes last, and at once: with it the run has begun. Raises `KSGenError` if it has begun
    already.
    """
    if (run / "models").exists():
        raise KSGenError(
            f"The run {run} has begun already. Leave --start out to go on with it, or choose an empty folder to start "
            f"from {models}."
        )
    for model, parts in (
        (KeyStepModel.load(models / "keysteps"), IMAGE_PARTS),
        (WanClipModel.load(models / "clips"), CLIP_PARTS),
    ):
        for part in parts:
            _keep(model, run, part)
    stages = ["keysteps", "clips"]
    if (models / "planner").exists():
        _keep(PlannerModel.load(models / "planner"), run, "planner")
        stages.append("planner")

    def copy(new: Path) -> None:
        for stage in stages:
            shutil.copytree(models / stage, new / stage)

    write_folder(run / "models", copy)


def pack_models(run: Path, folder: Path) -> None:
    """What is trained so far, as a models folder. A part not trained yet is all zeros, which weigh nothing in git; a
    planner not trained yet is left out.

    Raises `KSGenError` if nothing at all is trained.
    """
    if not _trained(run, HOLDS):
        raise KSGenError(f"The run {run} holds no trained part. Give the folder of the run to pack with --run.")
    if folder.resolve() == (run / "models").resolve():
        raise KSGenError(f"{folder} is where the training begins from. Pack into another folder.")
    models = []
    for model, order in ((_key_step_model(run), IMAGE_PARTS), (_clip_model(run), CLIP_PARTS)):
        done = _trained(run, order)
        _take(model, run, *done)
        for name in model.parts().keys() - {name for part in done for name in HOLDS[part]}:
            for parameter in model.parts()[name].parameters():
                parameter.data.zero_()
        models.append(model)
    if not (run / "skill.safetensors").exists():
        with torch.no_grad():
            models[0].skill_transformer.empty_tokens.copy_(models[0].zero_image_tokens())
    planner = None
    if _trained(run, ["planner"]):
        planner = _planner_model(run)
        _take(planner, run, "planner")
    pack(*models, folder, planner)


def train_part(part: str, run: Path, recipe: Recipe | None = None, device: str = "cpu") -> Iterator[Progress]:
    """Train one part in `run`; earlier parts must be there.

    Pictures of what it makes are written on the way and, when it is done and kept, of what came out.
    """
    if part == "state_judge":
        yield from judges.train_state_judge(run, recipe or judges.STATE_RECIPE, device)
        return
    if part == "action_judge":
        yield from judges.train_action_judge(run, recipe or judges.ACTION_RECIPE, device)
        return
    recipe = recipe or RECIPES[part]
    if part == "planner":
        yield from _train_planner(run, recipe, device)
        return
    pool = build_pool(run / "train", TRAIN_SPLITS, range(TRAIN_INSTANCES))
    if part in CLIP_PARTS:
        model = _clip_model(run, device)
        events = _train_clip_part(part, model, pool, run, recipe)
    else:
        model = _key_step_model(run, device)
        events = _train_image_part(part, model, pool, run, recipe)
    for progress in events:
        if progress.iteration % samples.EVERY == 0 and progress.iteration < progress.total:
            samples.write_pictures(part, model, run, progress.iteration)
        yield progress
    _keep(model, run, part)
    samples.write_pictures(part, model, run, recipe.iterations)


def _train_planner(run: Path, recipe: Recipe, device: str) -> Iterator[Progress]:
    planner, key_steps = _planner_model(run, device), _key_step_model(run)
    _take(key_steps, run, "encoders")
    take_over_tower(planner.model, key_steps.image_encoder)
    pictures = build_pictures(run / "started")
    threads = torch.get_num_threads() if device == "cpu" else 1
    for progress in planner_stage.train_planner(planner, pictures, run, recipe, threads):
        if progress.iteration % samples.EVERY == 0 and progress.iteration < progress.total:
            planner_stage.write_replies(planner, run, progress.iteration)
        yield progress
    _keep(planner, run, "planner")
    planner_stage.write_replies(planner, run, recipe.iterations)


def _train_clip_part(part: str, model: WanClipModel, pool: Pool, run: Path, recipe: Recipe) -> Iterator[Progress]:
    if part == "clip_vae":
        yield from clip_stages.train_clip_vae(model, pool, run, recipe)
        return
    _take(model, run, "clip_vae")
    if part == "clip_decoder":
        yield from clip_stages.train_clip_decoder(model, pool, run, recipe)
    else:
        yield from clip_stages.train_clips(model, run, recipe)


def _train_image_part(part: str, model: KeyStepModel, pool: Pool, run: Path, recipe: Recipe) -> Iterator[Progress]:
    if part == "vae":
        yield from image_stages.train_vae(model, pool, run, recipe)
    elif part == "encoders":
        yield from image_stages.train_encoders(model, pool, run, recipe)
    elif part == "texts":
        yield from image_stages.train_texts(model, run, recipe)
    elif part == "backbone":
        _take(model, run, "vae", "texts")
        data = encoded.encode_pool(model, pool, run, with_tokens=False)
        yield from image_stages.train_backbone(model, pool, data, None, run, recipe)
    else:
        _take(model, run, "vae", "texts", "encoders")
        with torch.no_grad():
            model.skill_transformer.empty_tokens.copy_(model.zero_image_tokens())
        data = encoded.encode_pool(model, pool, run)
        if part == "skill":
            yield from image_stages.train_skill(model, data, run, recipe)
        else:
            _take(model, run, "skill", "backbone")
            foreseen = encoded.foresee(model, data)
            yield from image_stages.train_backbone(model, pool, data, foreseen, run, recipe)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ksgen train tabletop", description=__doc__)
    parser.add_argument(
        "--run", type=Path, default=Path("runs/tabletop"), help="where data, checkpoints, logs and pictures lie"
    )
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="train these parts only")
    parser.add_argument("--start", type=Path, help="begin a new run with the weights of this models folder")
    parser.add_argument("--pack", type=Path, help="only write what is trained so far as a models folder")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--threads", type=int, default=0, help="processor threads (0: torch decides)")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.start:
        start_from(arguments.run, arguments.start)
    if arguments.pack:
        pack_models(arguments.run, arguments.pack)
        return 0
    for part in arguments.only:
        for progress in train_part(part, arguments.run, device=arguments.device):
            print(progress, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
