"""`ksgen bench loop`: what the step loop costs in a real ComfyUI: time a step, and memory by the number of steps.

Time: the same native nodes on the embedded clip model, in a loop and wired by hand for every step, in turns on one
server, every run with a seed of its own so that nothing is remembered. Memory: the highest resident memory of a new
server while a loop makes few and many clips and joins them into one film with a chapter a step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT), str(ROOT / "tests" / "host")]
from comfy_server import HOW_TO_GET_A_HOST, Server, find_host, new_base_folder  # noqa: E402
from report import REPORTS, markdown, write_report  # noqa: E402

from ksgen_core.errors import KSGenError  # noqa: E402

TEXTS = ("put the tea bag into the mug", "pour hot water into the mug", "stir the tea with the spoon")
WIDTH, HEIGHT, SECONDS, FPS = 320, 192, 6.0, 8.0
"""Of the clips whose memory is measured."""

Prompt = dict[str, dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ksgen bench loop", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="runs of the loop and by hand (default: 5)")
    parser.add_argument("--updates", type=int, default=12, help="sampler updates a clip (default: 12)")
    parser.add_argument("--few", type=int, default=5, help="steps of the short loop (default: 5)")
    parser.add_argument("--many", type=int, default=100, help="steps of the long loop (default: 100)")
    parser.add_argument("--reports", type=Path, default=REPORTS)
    args = parser.parse_args(argv)
    if find_host() is None:
        raise KSGenError(f"This benchmark needs a ComfyUI. {HOW_TO_GET_A_HOST}")
    figures = {"time": time(args.pairs, args.updates), "memory": memory(args.few, args.many)}
    write_report("loop", figures, table(figures), f"time: 1 to {2 * args.pairs}; memory: 1, 2", args.reports)
    return 0


def time(pairs: int, updates: int) -> dict[str, Any]:
    """Seconds a step in the loop, by hand, and of a loop that remembers everything."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(new_base_folder(Path(folder) / "base"))
        try:
            seconds(server, by_hand(0, updates))  # loads the models
            loops, hands, of_loops, of_hands, remembered = [], [], [], [], []
            for pair in range(pairs):
                started = processor_seconds(server)
                loops.append(seconds(server, looped(2 * pair + 1, updates)) / len(TEXTS))
                between = processor_seconds(server)
                hands.append(seconds(server, by_hand(2 * pair + 2, updates)) / len(TEXTS))
                of_loops.append((between - started) / len(TEXTS))
                of_hands.append((processor_seconds(server) - between) / len(TEXTS))
                again = looped(2 * pair + 1, updates)
                again["start"]["inputs"]["name"] = "again"  # so that the host does not remember the whole loop
                remembered.append(seconds(server, again) / len(TEXTS))
        finally:
            server.stop()
    median = statistics.median
    return {
        "steps": len(TEXTS),
        "loop_seconds": median(loops),
        "by_hand_seconds": median(hands),
        "loop_processor_seconds": median(of_loops),
        "by_hand_processor_seconds": median(of_hands),
        "ratio": median(one / other for one, other in zip(loops, hands, strict=True)),
        "processor_ratio": median(one / other for one, other in zip(of_loops, of_hands, strict=True)),
        "remembered_seconds": median(remembered),
    }


def memory(few: int, many: int) -> dict[str, Any]:
    """The highest resident memory of the server for few and for many steps, and the film of the many."""
    found: dict[str, Any] = {}
    for seed, (name, count) in enumerate((("few", few), ("many", many)), 1):
        with tempfile.TemporaryDirectory() as folder:
            server = Server(new_base_folder(Path(folder) / "base"))
            try:
                server.run(long_loop(2, seed + 100))  # what every run needs, once
                Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
                outputs = server.run(long_loop(count, seed), seconds=3600)
                found[name] = {
                    "steps": count,
                    "peak_mb": peak(server),
                    **film(server.file(outputs["save"]["images"][0])),
                }
            finally:
                server.stop()
    frames = round(SECONDS * FPS)
    clip = frames * WIDTH * HEIGHT * 12 / 1e6
    grown = found["many"]["peak_mb"] - found["few"]["peak_mb"]
    return {**found, "clip_mb": clip, "grown_by_clips": grown / clip, "exact_seconds": many * frames / FPS}


def peak(server: Server) -> float:
    """The highest resident memory in MB since it was last reset."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def processor_seconds(server: Server) -> float:
    """How long the server's threads have worked so far: what else runs on the machine does not count."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def film(path: Path) -> dict[str, Any]:
    """What a film holds. Its length is that of its video stream, counted in ticks."""
    import av

    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        length = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        return {"chapters": len(file.chapters()), "seconds": length, "frames": sum(1 for _ in file.decode(video=0))}


def seconds(server: Server, prompt: Prompt) -> float:
    """How long the host says that a prompt took."""
    entry = server.wait(server.queue(prompt), 3600)
    times = {kind: details["timestamp"] for kind, details in entry["status"]["messages"]}
    if "execution_success" not in times:
        raise KSGenError(f"A prompt of the benchmark failed: {entry['status']['messages'][-1]}")
    return (times["execution_success"] - times["execution_start"]) / 1000


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def start(seed: int, **inputs: Any) -> dict[str, Any]:
    settings = {"makes": "clips", "name": "", "seed": seed, "seeds": "the same for every step", "steps": ""}
    return node("KSGenStepLoopStart", **{**settings, "seconds": 2.0, "fps": FPS, "frame_step": 0, **inputs})


def loaders() -> Prompt:
    return {
        "picture": node("LoadImage", image="ksgen_example.png"),
        "models": node("KSGenLoadModels", folder="embedded"),
        "unet": node("UNETLoader", unet_name="ksgen_mini_wan.safetensors", weight_dtype="default"),
        "vae": node("VAELoader", vae_name="ksgen_mini_wan_vae.safetensors"),
        "negative": node("KSGenNativeText", models=["models", 0], text=""),
    }


def clip(name: str, text: Any, picture: Any, seed: Any, updates: int) -> Prompt:
    """The nodes that make one clip."""
    positive, wan, sample = f"positive{name}", f"wan{name}", f"sample{name}"
    return {
        positive: node("KSGenNativeText", models=["models", 0], text=text),
        wan: node(
            "WanImageToVideo",
            **{"positive": [positive, 0], "negative": ["negative", 0], "vae": ["vae", 0], "start_image": picture},
            **{"width": 128, "height": 128, "length": 17, "batch_size": 1},
        ),
        sample: node(
            "KSampler",
            **{"model": ["unet", 0], "positive": [wan, 0], "negative": [wan, 1], "latent_image": [wan, 2]},
            **{
                "seed": seed,
                "steps": updates,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        ),
        f"decode{name}": node("VAEDecode", samples=[sample, 0], vae=["vae", 0]),
    }


def looped(seed: int, updates: int) -> Prompt:
    return {
        **loaders(),
        "plan": node("KSGenPlanFromText", goal="make tea", text="\n".join(TEXTS)),
        "start": start(seed, plan=["plan", 0], image=["picture", 0]),
        **clip("", ["start", 1], ["start", 7], ["start", 10], updates),
        "end": node("KSGenStepLoopEnd", loop=["start", 0], result=["decode", 0]),
    }


def by_hand(seed: int, updates: int) -> Prompt:
    prompt = loaders()
    for number, text in enumerate(TEXTS):
        prompt |= clip(str(number), text, ["picture", 0], seed, updates)
        prompt[f"end{number}"] = node("PreviewAny", source=[f"decode{number}", 0])
    return prompt


def long_loop(count: int, seed: int) -> Prompt:
    """Clips of noise, and the film of them."""
    texts = "\n".join(f"step number {number}" for number in range(1, count + 1))
    return {
        "picture": node("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=1, color=0x336699),
        "plan": node("KSGenPlanFromText", goal="count", text=texts),
        "start": start(seed, plan=["plan", 0], image=["picture", 0], seconds=SECONDS, seeds="seed + step number"),
        "frames": node("RepeatImageBatch", image=["start", 8], amount=["start", 12]),
        "noise": node("ImageAddNoise", image=["frames", 0], seed=["start", 10], strength=0.05),
        "end": node("KSGenStepLoopEnd", loop=["start", 0], result=["noise", 0]),
        "save": node("KSGenSaveFilm", clips=["end", 0], plan=["end", 2], filename_prefix="loop"),
    }


def table(figures: dict[str, Any]) -> str:
    time, memory = figures["time"], figures["memory"]
    few, many = memory["few"], memory["many"]
    rows = [
        ["in the loop", time["loop_seconds"], time["loop_processor_seconds"]],
        ["the same nodes by hand", time["by_hand_seconds"], time["by_hand_processor_seconds"]],
        ["ratio (median of the pairs)", time["ratio"], time["processor_ratio"]],
    ]
    times = markdown(["a step", "seconds", "processor seconds"], rows)
    sizes = markdown(
        ["steps", "peak memory, MB", "chapters", "frames", "seconds of film"],
        [[one["steps"], one["peak_mb"], one["chapters"], one["frames"], one["seconds"]] for one in (few, many)],
    )
    return (
        f"{times}\n\nA step that is remembered takes {time['remembered_seconds']:.3f} s.\n\n{sizes}\n\n"
        f"A clip is {memory['clip_mb']:.0f} MB in memory; the peak grew by {memory['grown_by_clips']:.2f} clips. "
        f"The film must last {memory['exact_seconds']} s."
    )


if __name__ == "__main__":
    sys.exit(main())
