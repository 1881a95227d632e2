"""`ksgen train tabletop`: make all the embedded models from nothing.

Every part resumes where it was; a part that is done is not done again. Parts that do not need each other can be trained
by two processes at once (`--only`).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..clips.wan_diffusers import ClipModel
from ..errors import KSGenError
from ..keysteps.sdxl_diffusers import KeyStepModel
from ..tabletop.skills import all_texts
from . import clip_stages, encoded, image_stages, judges
from .loop import Progress, Recipe
from .pack import pack
from .pool import TRAIN_INSTANCES, TRAIN_SPLITS, build_pool
from .sdxl_folder import MINI, new_sdxl_folder
from .wan_folder import MINI as WAN_MINI
from .wan_folder import new_wan_folder

PARTS = (
    *("vae", "texts", "backbone", "encoders", "skill", "adapter"),
    *("clip_vae", "clip_decoder", "clips"),
    *("state_judge", "action_judge"),
)
"""In this order; vae and encoders, and everything of the clips, do not depend on each other."""
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
}
"""What each part trains, by the names of `parts()`."""
CLIP_PARTS = ("clip_vae", "clip_decoder", "clips")
IMAGE_PARTS = tuple(part for part in HOLDS if part not in CLIP_PARTS)


def _key_step_model(run: Path, device: str = "cpu") -> KeyStepModel:
    folder = run / "models/keysteps"
    if not folder.exists():
        new_sdxl_folder(run / "models", all_texts(), MINI)
    return KeyStepModel.load(folder, device)


def _clip_model(run: Path, device: str = "cpu") -> ClipModel:
    folder = run / "models/clips"
    if not folder.exists():
        new_wan_folder(run / "models", all_texts(), WAN_MINI)
    return ClipModel.load(folder, device)


def _take(model: KeyStepModel | ClipModel, run: Path, *parts: str) -> None:
    """Take over what earlier parts have reached. A part that is not there yet is an error."""
    for part in parts:
        path = run / f"{part}.safetensors"
        if not path.exists():
            raise KSGenError(f"{part} is not trained yet. Run `ksgen train tabletop --only {part}` first.")
        tensors = load_file(path)
        for name in HOLDS[part]:
            state = {key.split("/", 1)[1]: value for key, value in tensors.items() if key.startswith(name + "/")}
            model.parts()[name].load_state_dict(state)


def _keep(model: KeyStepModel | ClipModel, run: Path, part: str) -> None:
    parts = model.parts()
    states = {f"{name}/{key}": value for name in HOLDS[part] for key, value in parts[name].state_dict().items()}
    save_file({key: value.contiguous().clone() for key, value in states.items()}, run / f"{part}.safetensors")


def start_from(run: Path, models: Path) -> None:
    """Begin a run with the weights of a models folder: every part counts as trained, and trains on from there.

    Raises `KSGenError` if the run has begun already.
    """
    if (run / "models").exists():
        raise KSGenError(f"The run {run} has begun already. Choose an empty folder to start from {models}.")
    run.mkdir(parents=True, exist_ok=True)
    for stage, parts in (("keysteps", IMAGE_PARTS), ("clips", CLIP_PARTS)):
        shutil.copytree(models / stage, run / "models" / stage)
        model = _key_step_model(run) if stage == "keysteps" else _clip_model(run)
        for part in parts:
            _keep(model, run, part)


def pack_models(run: Path, folder: Path) -> None:
    """What is trained so far, as a models folder. A part not trained yet is all zeros, which weigh nothing in git."""
    if folder.resolve() == (run / "models").resolve():
        raise KSGenError(f"{folder} is where the training begins from. Pack into another folder.")
    models = []
    for model, order in ((_key_step_model(run), IMAGE_PARTS), (_clip_model(run), CLIP_PARTS)):
        done = [part for part in order if (run / f"{part}.safetensors").exists()]
        _take(model, run, *done)
        for name in model.parts().keys() - {name for part in done for name in HOLDS[part]}:
            for parameter in model.parts()[name].parameters():
                parameter.data.zero_()
        models.append(model)
    if not (run / "skill.safetensors").exists():
        with torch.no_grad():
            models[0].skill_transformer.empty_tokens.copy_(models[0].zero_image_tokens())
    pack(*models, folder)


def train_part(part: str, run: Path, recipe: Recipe | None = None, device: str = "cpu") -> Iterator[Progress]:
    """Train one part in `run`; earlier parts must be there."""
    if part == "state_judge":
        yield from judges.train_state_judge(run, recipe or judges.STATE_RECIPE, device)
        return
    if part == "action_judge":
        yield from judges.train_action_judge(run, recipe or judges.ACTION_RECIPE, device)
        return
    pool = build_pool(run / "train", TRAIN_SPLITS, range(TRAIN_INSTANCES))
    if part in CLIP_PARTS:
        model = _clip_model(run, device)
        if part != "clip_vae":
            _take(model, run, "clip_vae")
        if part == "clip_vae":
            yield from clip_stages.train_clip_vae(model, pool, run, recipe or clip_stages.CLIP_VAE)
        elif part == "clip_decoder":
            yield from clip_stages.train_clip_decoder(model, pool, run, recipe or clip_stages.CLIP_DECODER)
        else:
            yield from clip_stages.train_clips(model, run, recipe or clip_stages.CLIPS)
        _keep(model, run, part)
        return
    model = _key_step_model(run, device)
    if part == "vae":
        yield from image_stages.train_vae(model, pool, run, recipe or image_stages.VAE)
    elif part == "encoders":
        yield from image_stages.train_encoders(model, pool, run, recipe or image_stages.ENCODERS)
    elif part == "texts":
        yield from image_stages.train_texts(model, run, recipe or image_stages.TEXTS)
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
            yield from image_stages.train_skill(model, data, run, recipe or image_stages.SKILL)
        else:
            _take(model, run, "skill", "backbone")
            foreseen = encoded.foresee(model, data)
            yield from image_stages.train_backbone(model, pool, data, foreseen, run, recipe)
    _keep(model, run, part)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ksgen train tabletop", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/tabletop"), help="where data, checkpoints and logs lie")
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
