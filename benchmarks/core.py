"""`ksgen bench core`: what the pack costs over bare diffusers, what a batch gains, what memory is held and what each
memory option does.

The machine may be shared, so what counts are ratios: both sides run in turns, and the medians of the pairs are taken,
by the clock and by the time of the processor. Every figure of memory is that of a new process. `--full` measures models
of full size, of random weights made on the device; that needs a GPU, `--full --tiny` runs the same code without one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]
from core_table import table  # noqa: E402
from report import REPORTS, write_report  # noqa: E402

from ksgen_core.errors import KSGenError  # noqa: E402
from ksgen_core.memory import ATTENTIONS  # noqa: E402

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {"offload": "none"},
    "parts": {"offload": "parts"},
    "layers": {"offload": "layers"},
    "fp8": {"offload": "none", "fp8": True},
    "tiling": {"offload": "none", "tiling": True},
    "layers, fp8, tiling": {"offload": "layers", "fp8": True, "tiling": True},
    "first_block_cache 0.05": {"offload": "none", "first_block_cache": 0.05},
    "first_block_cache 0.2": {"offload": "none", "first_block_cache": 0.2},
    **{f"attention {name}": {"offload": "none", "attention": name} for name in ATTENTIONS if name != "default"},
}
"""The memory options that are measured, each alone and the ladder's last rung; "none" is what the others are compared
with."""
FEW = ("none", "layers", "fp8", "first_block_cache 0.2")
FULL = (
    "none",
    "parts",
    "layers",
    "fp8",
    "tiling",
    "layers, fp8, tiling",
    "first_block_cache 0.05",
    "attention _native_cudnn",
)
STAGES = ("key images", "clips")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ksgen bench core", description=__doc__)
    parser.add_argument("--pairs", type=_count, default=7, help="runs of each side, in turns (default: 7)")
    parser.add_argument("--rounds", type=_count, default=3, help="processes a memory option (default: 3)")
    parser.add_argument("--updates", type=_count, help="sampler updates (default: the models' own)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--few", action="store_true", help="smaller models, fewer options: to see that it works")
    parser.add_argument("--full", action="store_true", help="also models of full size; needs a GPU")
    parser.add_argument("--tiny", action="store_true", help="with --full: the same code with its models scaled down")
    parser.add_argument("--model", action="append", metavar="NAME", help="with --full: this one alone, e.g. 'LTX-2'")
    parser.add_argument("--option", choices=OPTIONS, action="append", help="this memory option alone")
    parser.add_argument("--only", choices=MEASURES, action="append", help="measure this alone; may be given again")
    parser.add_argument("--reports", type=Path, default=REPORTS)
    args = parser.parse_args(argv)
    # Advice on optional packages, of this process and of those that it starts.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    figures: dict[str, Any] = {"device": device_name(args.device)}
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in MEASURES.items():
            if args.only is None or name in args.only:
                figures[name] = measure(args, Path(folder))
    write_report("core", figures, table(figures), "10 to 17, of the steps; weights 0", args.reports)
    return 0


def overhead(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Key images of SDXL folders by text alone and with image tokens, clips of the embedded model: against the bare
    pipelines. The embedded UNet takes the initial picture too, which no pipeline hands it: so one without is made."""
    from ksgen_core.build import MINI
    from ksgen_core.training.sdxl_folder import MINI as SIZES
    from ksgen_core.training.sdxl_folder import TINY, new_sdxl_folder

    whole, plain = folder / "sdxl", folder / "plain"
    sizes = replace(SIZES, unet_channels=(128, 192, 320), unet_heads=(4, 6, 10), latent_channels=4)
    new_sdxl_folder(whole, texts(), replace(TINY if args.few else sizes, reference=False))
    shutil.copytree(whole / "keysteps", plain)
    for name in ("image_encoder", "ip_adapter"):
        shutil.rmtree(plain / name)
    (plain / "skill_transformer.safetensors").unlink()
    common = {"pairs": args.pairs, "updates": args.updates, "device": args.device}
    keys = {**common, "steps": 2 if args.few else 4}
    clips = {**common, "folder": str(MINI / "clips"), "frames": 5 if args.few else None}
    return {
        "key images, text_only": child("keys_overhead", folder=str(plain), policy="text_only", **keys),
        "key images, image tokens": child(
            "keys_overhead", folder=str(whole / "keysteps"), policy="image_prompt", **keys
        ),
        "clips, the same VAE layers": child("clips_overhead", same_vae=True, **clips),
        "clips, diffusers' VAE layers": child("clips_overhead", same_vae=False, **clips),
    }


def batches(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Key images of the embedded model one by one against all in one batch."""
    return child("batch", pairs=args.pairs, updates=args.updates, steps=2 if args.few else 7, device=args.device)


def memory(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The highest memory of a whole run against that of each stage alone, and against both models held at once."""
    from ksgen_core.training import sdxl_folder, wan_folder

    keys, clips = sdxl_folder.MINI, wan_folder.MINI
    if not args.few:
        keys = replace(keys, unet_channels=(320, 640, 960), unet_heads=(5, 10, 15))
        clips = replace(clips, heads=8, layers=14, ff_width=4096)
    place = folder / "large"
    sdxl_folder.new_sdxl_folder(place, texts(), keys)
    wan_folder.new_wan_folder(place, texts(), clips)
    sizes = {name: sum(file.stat().st_size for file in (place / name).rglob("*.safetensors")) for name in STAGE_FOLDERS}
    found = {which: child("peak", folder=str(place), which=which, updates=2) for which in ("whole", *STAGES, "both")}
    shutil.rmtree(place)
    largest = max(found[name]["peak_mb"] for name in STAGES)
    # The files of the clip model are in half precision.
    weights = {"key images": sizes["keysteps"] / 1e6, "clips": 2 * sizes["clips"] / 1e6}
    return {**found, "weights_mb": weights, "ratio": found["whole"]["peak_mb"] / largest}


STAGE_FOLDERS = ("keysteps", "clips")


def options(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Each memory option on the embedded models, in turns, with the ratio to "none" of the same round."""
    # What the others are compared with comes first.
    chosen = tuple(dict.fromkeys(("none", *args.option))) if args.option else FEW if args.few else tuple(OPTIONS)
    common = {"updates": args.updates, "frames": 5 if args.few else None, "device": args.device}
    found: dict[str, Any] = {stage: {} for stage in STAGES}
    rounds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(args.rounds):
        for stage in STAGES:
            for name in chosen:
                if any("refused" in one for one in rounds.get((stage, name), ())):
                    continue
                out = str(folder / f"{stage} {name}.pt")
                one = child("option", stage=stage, options=OPTIONS[name], out=out, **common)
                rounds.setdefault((stage, name), []).append(one)
    for (stage, name), measured in rounds.items():
        if "refused" in measured[0]:
            found[stage][name] = measured[0]
            continue
        bare = rounds[stage, "none"]
        pairs = list(zip(measured, bare, strict=True))
        found[stage][name] = {
            **{key: statistics.median(one[key] for one in measured) for key in measured[0]},
            "ratio": statistics.median(a["update_seconds"] / b["update_seconds"] for a, b in pairs),
            "processor_ratio": statistics.median(
                a["update_processor_seconds"] / b["update_processor_seconds"] for a, b in pairs
            ),
            **differences(folder / f"{stage} {name}.pt", folder / f"{stage} none.pt"),
        }
    return found


def differences(one: Path, other: Path) -> dict[str, float]:
    """The largest and the mean difference of two pictures or films in 8-bit values."""
    import torch

    apart = (torch.load(one) - torch.load(other)).abs() * 255
    return {"largest_difference": apart.max().item(), "mean_difference": apart.mean().item()}


def full(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Models of full size by memory option, or why they were not measured."""
    import full_size
    import torch

    if not args.full:
        return {"not_measured": "not asked for (--full)"}
    if not args.tiny and not (args.device.startswith("cuda") and torch.cuda.is_available()):
        return {"not_measured": f"no GPU: they need --device cuda, and this is {args.device} of a machine with none"}
    chosen = args.option or (FEW if args.few else FULL)
    models = args.model or tuple(full_size.MODELS)
    if unknown := [name for name in models if name not in full_size.MODELS]:
        raise KSGenError(f"{unknown[0]} is not measured in full size. Choose of {', '.join(full_size.MODELS)}.")
    common = {"device": args.device, "tiny": args.tiny, "updates": max(2, args.updates or (2 if args.tiny else 4))}
    found = {
        model: {name: child("full", model=model, options=OPTIONS[name], **common) for name in chosen}
        for model in models
    }
    return {"scaled_down": args.tiny, "models": found}


def child(job: str, **arguments: Any) -> dict[str, Any]:
    """What a new process measured. Raises `KSGenError` with the end of what it said if it failed."""
    command = [sys.executable, str(ROOT / "benchmarks" / "core_child.py"), job, json.dumps(arguments)]
    print(f"{job}: {', '.join(f'{key} {value}' for key, value in arguments.items())}", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise KSGenError(f"A measure of the benchmark failed, {job} with {arguments}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def texts() -> list[str]:
    from core_child import TEXTS

    return list(TEXTS)


def device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else f"{device}, which is not there"


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1, got {text}")
    return number


MEASURES = {"overhead": overhead, "batches": batches, "memory": memory, "options": options, "full": full}

if __name__ == "__main__":
    sys.exit(main())
