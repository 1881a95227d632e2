"""`ksgen train skill-transformer`: train a Skill Transformer on your own skills, for any SDXL or Kolors folder.

Texts and key images are encoded once and kept in the run's folder; then the encoders leave and the Skill Transformer
is trained on their tensors. A killed run goes on where it was, by the same command. Several GPUs, or machines that
share the run's folder: `accelerate launch -m ksgen_core.cli train skill-transformer ...`.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from .. import build, pixels
from ..checkpoints import write_atomically
from ..errors import KSGenError
from ..keysteps.policies import DrawSettings
from ..keysteps.sdxl_diffusers import KeyStepModel, draw_key_steps
from ..keysteps.skill_transformer import SkillTransformer, SkillTransformerConfig
from ..pipeline import KeyImage
from ..residence_diffusers import device_named
from .dataset import Record, read_records
from .devices import DTYPES, Share, accelerator_for, precision_named, silence
from .encoded_plans import NO_ENCODERS, encode_records, only_of
from .loop import Recipe, note, noted
from .options import add_recipe, add_rhythm, adder, check_least, due, recipe_of, show
from .skill_costs import ENCODERS, SDXL, costs_of
from .skill_costs import spoken as say_costs
from .skill_stage import spoken, target_mean, train_skill_transformer, validate

RECIPE = Recipe(iterations=20_000, batch=64, rate=1e-4, warm_up=500, ema=0.999, clip=0.25)
"""For full-size models: rate and gradient norm are METHOD.md's."""
PICTURES = 4
"""Records of a grid of pictures: of each a step in the middle."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    accelerator = accelerator_for(arguments.device)
    device = torch.device(accelerator.device if accelerator else device_named(arguments.device))
    precision = precision_named(arguments.dtype, device)
    told = print if accelerator is None or accelerator.is_main_process else silence
    recipe = recipe_of(arguments)
    check_least(arguments, pictures_every=0, encode_batch=1, context_weight=0)
    records = read_records(arguments.data)
    training = only_of(records, "train", arguments.max_images)
    validation = only_of(records, "validation", arguments.max_images)
    if not training:
        raise KSGenError(f"{arguments.data} has no record of two or more steps to train on. See docs/DATASET.md.")
    share = Share.of(accelerator)
    told(f"{len(training)} records to train on, {len(validation)} to validate, in {share.count} processes on {device}")
    folder = arguments.keysteps or build.MINI / "keysteps"
    adapters = {"adapter": arguments.adapter, "image_encoder": arguments.image_encoder}
    if arguments.dry_run:
        told(_foreseen_costs(KeyStepModel.load(folder, "cpu", precision, **adapters), training, arguments))
        return 0

    # Weights in half precision only where they are loaded to save the device's memory.
    weights = torch.float32 if device.type == "cpu" else precision

    def only_encoders() -> KeyStepModel:
        def place(model: KeyStepModel) -> None:
            for name, part in model.parts().items():
                if name not in NO_ENCODERS:
                    part.to(device)

        return KeyStepModel.load(folder, device, weights, place=place, **adapters)

    plans, unused = encode_records(
        only_encoders,
        [*training, *validation],
        arguments.run / "encoded",
        batch=arguments.encode_batch,
        precision=precision,
        share=share,
        told=told,
    )
    held_out = plans.only(range(len(training), len(plans.images)))
    plans = plans.only(range(len(training)))

    torch.manual_seed(arguments.seed)
    skill = SkillTransformer(_config(arguments, plans.zero.shape, plans.texts[0].shape[-1]))
    skill.empty_tokens.copy_(plans.zero)
    skill.to(device)
    main_process = accelerator is None or accelerator.is_main_process
    mean = target_mean(plans) if validation and main_process else plans.zero

    def look(iteration: int, weights_are: str) -> None:
        """Validate and draw with the model as it is."""
        if validation and due(iteration, arguments.validate_every, arguments):
            figures = validate(skill, held_out, mean, precision)
            entry = {"iteration": iteration, "weights": weights_are, "validation": figures}
            if entry not in noted(arguments.run, "skill"):  # a finished run is looked at again
                note(arguments.run, "skill", entry)
            told(f"validation after {iteration} ({weights_are}): {spoken(figures)}")
        if due(iteration, arguments.pictures_every, arguments):
            show(lambda: draw(iteration), "--pictures-every", device, told)

    def draw(iteration: int) -> None:
        model = KeyStepModel.load(folder, device, weights, **adapters)
        path = arguments.run / f"skill-pictures/{iteration:06d}.png"
        write_pictures(model, skill, (validation or training)[:PICTURES], path)

    events = train_skill_transformer(
        skill,
        plans,
        arguments.run,
        recipe,
        precision=precision,
        context_weight=arguments.context_weight,
        seen=f"{asdict(skill.config)} {precision}",
        accelerator=accelerator,
        report=arguments.report_every,
        keep=arguments.keep_every,
    )
    for progress in events:
        told(progress, flush=True)
        if main_process and progress.iteration < progress.total:
            look(progress.iteration, "as they are")
    if main_process:
        look(recipe.iterations, "average" if recipe.ema else "as they are")
        skill.save(arguments.out, DTYPES[arguments.save_dtype])
        told(f"wrote {arguments.out}")
        for path in unused:  # not before: another command may have been meant, whose state was refused
            path.unlink(missing_ok=True)
    if accelerator:
        accelerator.wait_for_everyone()
        accelerator.end_training()
    return 0


@torch.no_grad()
def _foreseen_costs(model: KeyStepModel, records: Sequence[Record], arguments: argparse.Namespace) -> str:
    """What this training takes, from the parts of this very model and a look at some of the texts."""
    states, mask, _ = model.encode_texts([step.text for record in records[:16] for step in record.steps])
    config = _config(arguments, model.zero_image_tokens().shape, states.shape[-1])
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.parts().items()}
    encoders = sum(size for name, size in sizes.items() if name not in NO_ENCODERS)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    recipe, steps = recipe_of(arguments), max(len(record.steps) for record in records)
    batch = -(-recipe.batch // processes)
    costs = costs_of(config, batch, steps, float(mask.sum(1).float().mean()), encoders)
    return say_costs(costs, recipe, 2 * sum(sizes.values()), processes)


@torch.no_grad()
def write_pictures(model: KeyStepModel, skill: SkillTransformer, records: Sequence[Record], path: Path) -> None:
    """A grid of a step in the middle of each record: the true key image above the one drawn with this `skill`.

    `skill` stays as it is, and so do all random numbers. Raises `KSGenError` if the file cannot be written.
    """
    model.skill_transformer = copy.deepcopy(skill).to(model.device, model.dtype).eval()
    model.check_fit()
    columns = []
    with torch.random.fork_rng():
        for record in records:
            step = len(record.steps) // 2
            events = draw_key_steps(model, record.image(0), record.plan, [step], DrawSettings("skill_transformer"))
            made = next(event.image for event in events if isinstance(event, KeyImage))
            columns.append(torch.cat([pixels.fit(record.image(step), *made.shape[:2]), made]))
    write_atomically(path, pixels.to_pil(torch.cat(columns, dim=1)).save)


def _config(arguments: argparse.Namespace, tokens: Sequence[int], text_width: int) -> SkillTransformerConfig:
    try:
        return SkillTransformerConfig(
            token_width=tokens[1],
            text_width=text_width,
            tokens_per_image=tokens[0],
            max_images=arguments.max_images,
            width=arguments.width,
            layers=arguments.layers,
            heads=arguments.heads,
            ff_width=arguments.ff_width,
            dropout=arguments.dropout,
        )
    except ValueError as error:
        raise KSGenError(f"These sizes do not make a Skill Transformer: {error}.") from error


def _parser() -> argparse.ArgumentParser:
    config = SkillTransformerConfig(token_width=2048, text_width=2048)
    costs = costs_of(config, RECIPE.batch, config.max_images, 20, sum(SDXL[name] for name in ENCODERS))
    computed = say_costs(costs, RECIPE, 2 * sum(SDXL.values()))
    parser = argparse.ArgumentParser(
        prog="ksgen train skill-transformer",
        description=__doc__,
        epilog=f"SDXL with IP-Adapter-Plus at these defaults, texts of 20 tokens. {computed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    add = adder(parser)
    path = {"type": Path, "metavar": "PATH"}
    add("--data", "data set: a folder or WebDataset shards, see docs/DATASET.md", required=True, metavar="PATH")
    add("--keysteps", "a diffusers SDXL or Kolors folder (default: the embedded model)", **path)
    add("--adapter", "the IP-Adapter-Plus file, if not in that folder", **path)
    add("--image-encoder", "the folder of its image encoder, if not in that folder", **path)
    add("--out", "the weights file to write, .safetensors", required=True, **path)
    add("--run", "where encoded data, state, log and pictures lie", Path("runs/skill-transformer"), **path)
    add("--device", "auto, cpu, cuda, cuda:1, mps", "auto")
    add("--dtype", "precision to encode and train in", "auto", choices=("auto", "float32", "bfloat16"))
    add("--save-dtype", "precision of the weights in the file", "float32", choices=tuple(DTYPES))
    add_recipe(add, RECIPE, "plans")
    add("--context-weight", "how much staying near the initial picture counts", 0.0)
    add("--width", "inner width", 1024)
    add("--layers", "decoder blocks", 4)
    add("--heads", "attention heads", 16)
    add("--ff-width", "width between the two layers of a feed-forward", 4096)
    add("--dropout", "chance of dropping a value", 0.0)
    add("--max-images", "the most steps that a plan may have", 8)
    add("--encode-batch", "pictures or texts encoded at once", 16)
    add("--validate-every", "iterations, 0 for never", 1000)
    add("--pictures-every", "iterations, 0 for no pictures", 2000)
    add_rhythm(add)
    return parser


if __name__ == "__main__":
    sys.exit(main())
