"""`ksgen train clips`: fine-tune an image-to-video model on clips of your own skills, by a LoRA on its transformer.

Clips and texts are encoded once and kept in the run's folder; then the text encoders leave, the VAE leaves the device,
and the LoRA is trained. A killed run goes on where it was, by the same command. Several GPUs, or machines that share
the run's folder: `accelerate launch -m ksgen_core.cli train clips ...`. `ksgen run --clip-lora FILE` renders with it.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from .. import build
from ..clips.clip_diffusers import ClipModel
from ..clips.families import check_frames
from ..clips.render import clip_size
from ..errors import KSGenError
from ..residence_diffusers import device_named
from .clip_costs import WAN_5B, WAN_14B, Sizes, sizes_of, spoken
from .clip_flow import Flow, WanFlow, flow_of
from .clip_lora_stage import on_device, spread, train_lora, validate, write_rows
from .dataset import Record, read_records
from .devices import DTYPES, Share, accelerator_for, precision_named, silence
from .encoded_clips import ClipForm, encode_clips
from .loop import Recipe, note, noted
from .lora_adapter import add_lora, linear_layers, save_lora, save_native
from .options import add_recipe, add_rhythm, adder, check_least, due, recipe_of, show

RECIPE = Recipe(iterations=2000, batch=4, rate=1e-4, warm_up=50)
RANK, SHIFT, DROP_TEXT, SHOWN_CLIPS = 32, 3.0, 0.1, 2
"""SHIFT is that of the noise levels trained on: the samplers' own (3 to 8 for Wan) and less, so that the late updates
are trained as well. DROP_TEXT keeps guidance away from the empty text possible."""

TEXT_ENCODER = "text_encoder"
"""How the names of those parts begin that leave when all texts are encoded."""
EXAMPLES = (
    (WAN_5B, (49, 704, 1280), False),
    (WAN_5B, (121, 704, 1280), False),
    (WAN_14B, (33, 272, 480), True),
    (WAN_14B, (81, 480, 832), False),
)
"""Whose costs are told: a transformer, frames, height and width of clips, whether its weights are kept in 8 bits."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    _check(arguments)
    accelerator = accelerator_for(arguments.device)
    device = torch.device(accelerator.device if accelerator else device_named(arguments.device))
    # Processors are at home in float32; on GPUs the frozen weights need no more than half of it.
    automatic = arguments.dtype == "auto" and device.type == "cpu"
    precision = torch.float32 if automatic else precision_named(arguments.dtype, device)
    main_process = accelerator is None or accelerator.is_main_process
    told = print if main_process else silence
    if device.type == "cuda":
        # The LoRA is float32: TF32 takes its products as fast as others, and has more bits than what comes in.
        torch.set_float32_matmul_precision("high")
    recipe = recipe_of(arguments)
    records = [r for r in read_records(arguments.data) if any(step.clip is not None for step in r.steps)]
    if not any(record.split == "train" for record in records):
        raise KSGenError(f"{arguments.data} has no clip to train on. See docs/DATASET.md.")

    def place(model: ClipModel) -> None:
        for name, part in model.parts().items():
            if name not in model.denoisers:
                part.to(model.device)

    where = "cpu" if arguments.dry_run else device
    model = ClipModel.load(arguments.clip_model or build.MINI / "clips", where, precision, place=place)
    flow = flow_of(model, arguments.expert, arguments.fps)
    if arguments.native and not isinstance(flow, WanFlow):
        raise KSGenError(f"--native is for Wan's models; {model.folder} holds {model.family.name}. Leave it out.")
    form = _form(model, records, arguments)
    layers = linear_layers(flow.transformer, arguments.target or flow.targets, all_of_them=arguments.target is not None)
    told(_told_costs(flow, form, arguments))
    if arguments.dry_run:
        return 0

    share = Share.of(accelerator)
    clips, unused = encode_clips(
        flow, records, form, (model.defaults.negative,), arguments.run / "encoded",
        share=share, told=told,
    )  # fmt: skip
    training, held_out = clips.only("train"), clips.only("validation")
    if not training.steps:
        raise KSGenError(f"{arguments.data} has no clip to train on that is long enough. Give fewer --frames.")
    told(
        f"{len(training.steps)} clips to train on, {len(held_out.steps)} to validate, in {share.count} processes on "
        f"{device}"
    )
    _let_encoders_go(model)
    on_device(flow, everything=False)
    lora = add_lora(
        flow.transformer, arguments.rank, arguments.alpha or arguments.rank, layers, arguments.seed,
        fp8=arguments.fp8,
    )  # fmt: skip
    if arguments.gradient_checkpointing:
        flow.transformer.enable_gradient_checkpointing()

    def look(iteration: int, weights_are: str) -> None:
        """Validate and make clips with the model as it is."""
        if held_out.steps and due(iteration, arguments.validate_every, arguments):
            figure = validate(flow, held_out, arguments.shift, arguments.validate_clips)
            entry = {"iteration": iteration, "weights": weights_are, "validation": figure}
            if entry not in noted(arguments.run, "lora"):  # a finished run is looked at again
                note(arguments.run, "lora", entry)
            told(f"validation after {iteration} ({weights_are}): {figure:.5f}", flush=True)
        if due(iteration, arguments.clips_every, arguments):
            some = held_out if held_out.steps else training
            path = arguments.run / f"lora-clips/{iteration:06d}.png"
            chosen = spread(len(some.steps), SHOWN_CLIPS)
            show(lambda: write_rows(flow, some, chosen, form, path), "--clips-every", device, told)

    about = {**asdict(form), "family": model.family.name, "expert": arguments.expert, "rank": arguments.rank}
    seen = {**about, "clips": training.seen, "layers": layers, "alpha": arguments.alpha, "shift": arguments.shift,
            "drop_text": arguments.drop_text, "precision": str(precision), "fp8": arguments.fp8}  # fmt: skip
    if main_process and not (arguments.run / "lora.state").exists():
        look(0, "untrained")
    events = train_lora(
        flow, lora, training, arguments.run, recipe, shift=arguments.shift, drop_text=arguments.drop_text,
        at_once=arguments.at_once, seen=str(seen), accelerator=accelerator, report=arguments.report_every,
        keep=arguments.keep_every,
    )  # fmt: skip
    for progress in events:
        told(progress, flush=True)
        if main_process and progress.iteration < progress.total:
            look(progress.iteration, "as they are")
    if main_process:
        look(recipe.iterations, "average" if recipe.ema else "as they are")
        about |= {"iterations": recipe.iterations, "alpha": arguments.alpha or arguments.rank}
        dtype = DTYPES[arguments.save_dtype]
        save_lora(arguments.out, flow.transformer, dtype, about)
        told(f"wrote {arguments.out}")
        if arguments.native:
            save_native(arguments.native, flow.transformer, dtype, about)
            told(f"wrote {arguments.native}")
        for path in unused:  # not before: another command may have been meant, whose state was refused
            path.unlink(missing_ok=True)
    if accelerator:
        accelerator.wait_for_everyone()
        accelerator.end_training()
    return 0


def _form(model: ClipModel, records: Sequence[Record], arguments: argparse.Namespace) -> ClipForm:
    """What is said, else what this model renders; without a size that of the first key image of a clip."""
    frames = model.defaults.frames if arguments.frames is None else arguments.frames
    check_frames(model.family, frames)
    image = next(r.image(k) for r in records for k, step in enumerate(r.steps) if step.clip is not None)
    height, width = clip_size(model, image, arguments.size)
    return ClipForm(frames, height, width, model.defaults.fps if arguments.fps is None else arguments.fps)


def _let_encoders_go(model: ClipModel) -> None:
    """Texts are encoded; making a clip needs the other parts again."""
    names = [name for name in model.parts() if name.startswith(TEXT_ENCODER)]
    model.pipe.register_modules(**dict.fromkeys(names))
    gc.collect()


def _told_costs(flow: Flow, form: ClipForm, arguments: argparse.Namespace) -> str:
    model, config = flow.model, flow.transformer.config
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.parts().items()}
    wan = isinstance(flow, WanFlow)
    scale = model.pipe.vae_scale_factor_spatial if wan else model.pipe.vae_spatial_compression_ratio
    patch = config.patch_size if wan else (1, config.patch_size, config.patch_size)
    every = model.family.every
    sizes: Sizes = sizes_of(
        model.family.name, config, counts[flow.name],
        sum(count for name, count in counts.items() if name not in model.denoisers),
        text_tokens=next(iter(model.encode([""])[""].values())).shape[1],
        shown=sum(count for name, count in counts.items() if name != flow.name and not name.startswith(TEXT_ENCODER)),
        times=flow.in_place, patch=(every * patch[0], scale * patch[1], scale * patch[2]),
    )  # fmt: skip
    return spoken(
        sizes, (form.frames, form.height, form.width), arguments.rank, arguments.batch, arguments.iterations,
        min(arguments.at_once, arguments.batch), arguments.gradient_checkpointing, bool(arguments.ema), arguments.fp8,
    )  # fmt: skip


def _check(arguments: argparse.Namespace) -> None:
    a = arguments
    check_least(a, rank=1, alpha=0, at_once=1, shift=1, drop_text=0, validate_clips=1, clips_every=0)
    if a.drop_text > 1:
        raise KSGenError(f"--drop-text is a share, at most 1, got {a.drop_text}.")
    if a.fp8 and not a.gradient_checkpointing:
        raise KSGenError("--fp8 saves nothing where all blocks wait for the way back: add --gradient-checkpointing.")
    if a.fps is not None and not 0 < a.fps <= 240:
        raise KSGenError(f"--fps is more than 0 and at most 240, got {a.fps}.")
    for path in (a.out, a.native):
        if path is not None and path.suffix != ".safetensors":
            raise KSGenError(f"{path} does not end in .safetensors, which a LoRA file is. Give another name.")


def _size(text: str) -> tuple[int, int]:
    """`WIDTHxHEIGHT` -> (height, width)."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"a size is WIDTHxHEIGHT in pixels, e.g. 832x480, got {text!r}")
    return int(height), int(width)


def _parser() -> argparse.ArgumentParser:
    computed = "\n".join(
        spoken(sizes, form, RANK, RECIPE.batch, RECIPE.iterations, fp8=fp8) for sizes, form, fp8 in EXAMPLES
    )
    parser = argparse.ArgumentParser(
        prog="ksgen train clips",
        description=__doc__,
        epilog=computed,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    add = adder(parser)
    path = {"type": Path, "metavar": "PATH"}
    add(
        "--data",
        "data set with clips: a folder or WebDataset shards, see docs/DATASET.md",
        required=True,
        metavar="PATH",
    )
    add("--clip-model", "a diffusers folder of Wan 2.1, Wan 2.2 or LTX-Video (default: the embedded model)", **path)
    add("--expert", "which transformer of Wan 2.2 14B: 1 for much noise, 2 for little; train one, then the other", 1,
        choices=(1, 2))  # fmt: skip
    add("--out", "the LoRA file to write, .safetensors, as diffusers has them", required=True, **path)
    add("--native", "write it also under Wan's own names, for ComfyUI's LoRA loaders", **path)
    add("--run", "where encoded clips, state, log and made clips lie", Path("runs/clips"), **path)
    add("--frames", "of a clip (default: what the model renders)", type=int, metavar="N")
    add("--size", "of a clip in pixels (default: that of the first key image)", type=_size, metavar="WxH")
    add("--fps", "frames a second to bring clips to (default: what the model renders)", type=float, metavar="N")
    add("--rank", "of the LoRA", RANK)
    add("--alpha", "of the LoRA, 0: as its rank", 0.0)
    add("--target", "layers that get it, by the ends of their names (default: attention and feed-forward)", nargs="+",
        metavar="NAME")  # fmt: skip
    add("--device", "auto, cpu, cuda, cuda:1, mps", "auto")
    add("--dtype", "of the frozen weights", "auto", choices=("auto", "float32", "bfloat16"))
    add("--save-dtype", "precision of the weights in the file", "float32", choices=tuple(DTYPES))
    add("--gradient-checkpointing", "compute blocks again on the way back: more work, far less memory", False,
        action="store_true")  # fmt: skip
    add("--fp8", "keep the frozen weights in 8 bits: half of their memory; the LoRA learns their rounding too", False,
        action="store_true")  # fmt: skip
    add_recipe(add, RECIPE, "clips")
    add("--at-once", "clips of a batch that are on the device together", 1)
    add("--shift", "of the noise levels, 1 for none: more means more noise", SHIFT)
    add("--drop-text", "share of clips that are trained on without their text", DROP_TEXT)
    add("--validate-every", "iterations, 0 for never", 250)
    add("--validate-clips", "the most clips of a validation", 64)
    add("--clips-every", "iterations between two looks at made clips, which takes all parts to the device at once; 0 "
        "for none", 500)  # fmt: skip
    add_rhythm(add)
    return parser


if __name__ == "__main__":
    sys.exit(main())
