"""The command line's options for models of one's own, their sizes and their memory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import KSGenError
from .memory import ATTENTIONS, OFFLOADS, MemoryOptions

if TYPE_CHECKING:
    from .build import Models

OF_CLIPS = ("render", "clip_model", "clip_lora", "end_picture", "first_block_cache", "attention")
"""Settings of a run that only its clips depend on."""
OWN = ("key_model", "clip_model", "ip_adapter", "image_encoder", "skill_transformer", "key_lora", "clip_lora")
"""What is a model of the user's; together with `--models` it says what makes the pictures."""


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models of your own")
    group.add_argument(
        "--key-model",
        type=Path,
        metavar="DIR",
        help="a diffusers folder that draws key images: SDXL, Kolors, Qwen-Image-Edit, FLUX.1 Kontext, FLUX.2 Klein",
    )
    group.add_argument(
        "--clip-model",
        type=Path,
        metavar="DIR",
        help="a diffusers folder that renders clips: Wan, LTX, LTX-2, HunyuanVideo 1.5, CogVideoX, SVD",
    )
    group.add_argument("--ip-adapter", type=Path, metavar="FILE", help="an IP-Adapter-Plus for --key-model")
    group.add_argument("--image-encoder", type=Path, metavar="DIR", help="the CLIP vision model that it was made for")
    group.add_argument("--skill-transformer", type=Path, metavar="FILE", help="a Skill Transformer for both")
    lora = "a LoRA; may be given several times. EXPERT 2 is Wan 2.2's transformer for little noise"
    for kind in ("key", "clip"):
        group.add_argument(
            f"--{kind}-lora", action="append", default=[], metavar="FILE[:STRENGTH[:EXPERT]]", help=f"{kind}s: {lora}"
        )

    group = parser.add_argument_group("memory")
    group.add_argument(
        "--offload", choices=OFFLOADS, default="auto", help="what leaves the device when (default: auto)"
    )
    group.add_argument(
        "--fp8", action="store_true", help="keep the backbone's weights in 8 bits: pictures change a bit"
    )
    group.add_argument("--tiling", action="store_true", help="the VAE works on tiles: faint seams")
    group.add_argument(
        "--attention", choices=list(ATTENTIONS), default="default", metavar="NAME", help=", ".join(ATTENTIONS)
    )
    group.add_argument(
        "--first-block-cache", type=float, default=0.0, metavar="X", help="skip updates that change little: 0.05 to 0.2"
    )
    group.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="split each clip over N GPUs: torchrun --nproc-per-node N ..."
    )


def chosen(args: argparse.Namespace) -> Models:
    """The models that the options name. Raises `KSGenError` for options that do not go together."""
    from . import build
    from .lora_diffusers import Lora

    memory = MemoryOptions(args.offload, args.fp8, args.tiling, args.attention, args.first_block_cache, args.gpus)
    if not args.models and bool(args.key_model) != bool(args.clip_model):
        have, lack = ("--key-model", "--clip-model") if args.key_model else ("--clip-model", "--key-model")
        raise KSGenError(
            f"{have} was given and {lack} was not: the embedded models know the small pictures of Tabletop alone. "
            "Give both, or a models folder with --models."
        )
    return build.open_models(
        args.models or (None if args.key_model else build.MINI),
        key_folder=args.key_model,
        clip_folder=args.clip_model,
        adapter=args.ip_adapter,
        image_encoder=args.image_encoder,
        skill_transformer=args.skill_transformer,
        key_loras=tuple(map(Lora.parse, args.key_lora)),
        clip_loras=tuple(map(Lora.parse, args.clip_lora)),
        memory=memory,
    )


def join_processes(args: argparse.Namespace) -> int:
    """Which of the processes that torchrun started this is, 0 for the only one. All compute, the first one writes.

    With several, `args.device` becomes each one's own GPU. Raises `KSGenError` if there are not as many as `--gpus`.
    """
    import os

    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if args.gpus == 1 and processes == 1:
        return 0
    if processes != args.gpus:
        raise KSGenError(
            f"--gpus is {args.gpus} and {processes} process(es) run. Start one a GPU: torchrun --nproc-per-node "
            f"{args.gpus} -m ksgen_core.cli run ... --gpus {args.gpus}"
        )
    import torch

    if torch.cuda.device_count() < processes:
        raise KSGenError(
            f"--gpus is {args.gpus}, and this machine has {torch.cuda.device_count()}. Give a smaller one."
        )
    torch.cuda.set_device(rank)
    args.device = f"cuda:{rank}"
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl")
    return rank


def described(args: argparse.Namespace) -> dict[str, Any]:
    """What of these options decides on the pictures, where it is given, for the settings of a run.

    Memory options that change numbers count, those that only move weights do not: a run may go on with others.
    """
    given = {name: value for name in OWN if (value := getattr(args, name))}
    for name, value in given.items():  # from wherever the run is gone on with
        given[name] = value if isinstance(value, list) else value.expanduser().resolve()
    settings = {
        name: [str(one) for one in value] if isinstance(value, list) else str(value) for name, value in given.items()
    }
    for name in ("fp8", "tiling", "first_block_cache"):
        if getattr(args, name):
            settings[name] = getattr(args, name)
    if args.attention == "sage":
        settings["attention"] = args.attention
    return settings
