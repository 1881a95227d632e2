"""`ksgen bench tabletop`: key images and clips of the embedded models, read by judges trained on true renders.

The plans are the true ones: the planner is measured elsewhere. Key image 0 is the given picture and is never counted.
One clip of every instance is judged, that of a step after step 0 that the seed picks; `last_frame` renders the clips
before it as well, as each key image needs them.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pictures import grid, stacked  # noqa: E402
from report import REPORTS, markdown, write_report  # noqa: E402

from ksgen_core import build  # noqa: E402
from ksgen_core.cli_library import whole_number  # noqa: E402
from ksgen_core.clips.render import render_clips  # noqa: E402
from ksgen_core.clips.settings import RenderSettings  # noqa: E402
from ksgen_core.keysteps.draw import draw_key_steps  # noqa: E402
from ksgen_core.keysteps.policies import DrawSettings  # noqa: E402
from ksgen_core.metrics.motion import dis_flow, motion_distance  # noqa: E402
from ksgen_core.metrics.tabletop_judge import Judge  # noqa: E402
from ksgen_core.pipeline import KeyImage, StepClip  # noqa: E402
from ksgen_core.pixels import from_uint8, to_uint8  # noqa: E402
from ksgen_core.tabletop.instances import Instance, make  # noqa: E402
from ksgen_core.training.judges import action_frames, cast_heads, own_accuracy, to_pictures, true_labels  # noqa: E402
from ksgen_core.training.pool import step_class  # noqa: E402
from ksgen_core.types import Clip, with_seeds  # noqa: E402

POLICIES = ("skill_transformer", "reference", "text_only", "last_frame", "initial")
FIRST_SEED = 20_000
SPLITS = ("seen", "unseen")
JUDGES = Path(__file__).resolve().parent / "judges"


class Bench:
    """One copy of the models and judges, and the clocks of drawing and rendering (processor seconds)."""

    def __init__(self, models: build.Models, judges: Path, draw_batch: int = 8) -> None:
        self.key_steps, self.clips = models.key_steps(), models.clips()
        self.state_judge = Judge.load(judges / "state_judge.safetensors")
        self.action_judge = Judge.load(judges / "action_judge.safetensors")
        self.flow = dis_flow()
        self.draw_batch, self.size = draw_batch, self.key_steps.size[0]
        self.drawing: list[float] = []
        self.rendering: list[float] = []

    def initial(self, instance: Instance) -> torch.Tensor:
        """The given picture, at the size that the models draw."""
        return from_uint8(instance.first_frame(0, self.size))

    def key_images(self, instance: Instance, policy: str, seed: int) -> dict[int, torch.Tensor]:
        """The key images of all steps but 0, by number."""
        image = self.initial(instance)
        plan = with_seeds(instance.plan, seed)
        steps = range(1, len(plan.steps))
        settings = DrawSettings(policy, batch=self.draw_batch)
        clock = time.thread_time()
        events = draw_key_steps(self.key_steps, image, plan, list(steps), settings)
        images = {event.step: event.image for event in events if isinstance(event, KeyImage)}
        self.drawing += [(time.thread_time() - clock) / len(images)] * len(images)
        return images

    def clip(self, instance: Instance, image: torch.Tensor, step: int, seed: int) -> Clip:
        plan = with_seeds(instance.plan, seed)
        clock = time.thread_time()
        events = render_clips(self.clips, [image], plan, [step], RenderSettings())
        clip = next(event.clip for event in events if isinstance(event, StepClip))
        self.rendering.append(time.thread_time() - clock)
        return clip

    def chain(
        self, instance: Instance, seed: int, wanted: int | None
    ) -> tuple[dict[int, torch.Tensor], dict[int, Clip]]:
        """Policy last_frame: all key images, and the clips that they and step `wanted` need."""
        image, images, clips = self.initial(instance), {}, {}
        last = len(instance.run.steps) - 1
        for step in range(last + 1):
            if step:
                images[step] = image
            if step < last or step == wanted:
                clips[step] = self.clip(instance, image, step, seed)
                image = clips[step].frames[-1]
        return images, clips

    def judge_image(self, instance: Instance, step: int, image: torch.Tensor, sums: dict[str, list]) -> None:
        true = true_labels(instance, step)
        hits = self.state_judge.read(to_pictures(to_uint8(image)[None]))[0] == true
        of_facts, of_looks = cast_heads(instance)
        sums["state_accuracy"].append(bool(hits[of_facts].all()))
        sums["fact_accuracy"] += hits[of_facts].tolist()
        sums["scene_consistency"] += hits[of_looks & (true > 0)].tolist()

    def judge_clip(self, instance: Instance, step: int, clip: Clip, sums: dict[str, list]) -> None:
        film = to_uint8(clip.frames)
        action = int(self.action_judge.read(to_pictures(action_frames(film)[None]))[0, 0])
        sums["action_accuracy"].append(action == step_class(instance.run.steps[step]))
        end = self.state_judge.read(to_pictures(film[-1:]))[0] == true_labels(instance, step, after=True)
        sums["end_state_accuracy"].append(bool(end[cast_heads(instance)[0]].all()))
        sums["motion_distance"].append(motion_distance(instance.film(step, size=self.size), film, self.flow))


def measure(bench: Bench, split: str, policy: str, instances: int, clips: int) -> dict[str, float]:
    """Figures of one policy on instances FIRST_SEED ... of a split; clips of the first `clips` instances only.

    Seconds are processor time of one thread; 0 where nothing is drawn.
    """
    sums: dict[str, list] = defaultdict(list)
    bench.drawing, bench.rendering = [], []
    for number in range(instances):
        seed = FIRST_SEED + number
        instance = make(split, seed)
        last = len(instance.run.steps) - 1
        chosen = 1 + seed % last if last else 0
        if policy == "last_frame":
            images, films = bench.chain(instance, seed, chosen if number < clips else None)
        elif policy == "initial":
            images, films = {k: bench.initial(instance) for k in range(1, last + 1)}, {}
        else:
            images, films = bench.key_images(instance, policy, seed), {}
        for step, image in images.items():
            bench.judge_image(instance, step, image, sums)
        if number < clips:
            start = images.get(chosen, bench.initial(instance))
            film = films.get(chosen) or bench.clip(instance, start, chosen, seed)
            bench.judge_clip(instance, chosen, film, sums)
    figures = {name: float(np.mean(values)) for name, values in sums.items()}
    counts = {"key_images": len(sums["state_accuracy"]), "clips": len(sums["action_accuracy"])}
    clocks = {"seconds_per_key_image": bench.drawing or [0.0], "seconds_per_clip": bench.rendering}
    return {**figures, **counts, **{name: float(np.mean(seconds)) for name, seconds in clocks.items()}}


def examples(bench: Bench, policies: list[str], count: int) -> Image.Image:
    """Key images of the first instances of each split with at least three steps: the true ones, then by policy."""
    grids = []
    for split in SPLITS:
        made = ((seed, make(split, seed)) for seed in range(FIRST_SEED, FIRST_SEED + 100))
        for seed, instance in islice(((s, i) for s, i in made if len(i.run.steps) >= 3), count):
            steps = range(len(instance.run.steps))
            first = to_uint8(bench.initial(instance))
            rows = [("true", [instance.first_frame(k, bench.size) for k in steps])]
            for policy in policies:
                if policy == "initial":
                    continue
                if policy == "last_frame":
                    images, _ = bench.chain(instance, seed, None)
                else:
                    images = bench.key_images(instance, policy, seed)
                rows.append((policy, [first, *(to_uint8(images[k]) for k in steps[1:])]))
            grids.append(grid(rows, f"{split} {seed}: {'; '.join(instance.run.texts)}"))
    return stacked(grids)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ksgen bench tabletop", description=__doc__)
    parser.add_argument("--instances", type=whole_number, default=200, help="instances a split")
    parser.add_argument("--clips", type=whole_number, default=200, help="instances a split with a clip")
    parser.add_argument("--models", type=Path, help="a models folder other than the embedded one")
    parser.add_argument("--judges", type=Path, default=JUDGES, help="the folder of the judges' weights")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="where the report goes")
    parser.add_argument(
        "--workers", type=whole_number, default=os.cpu_count() or 1, help="tasks at once, each on one processor"
    )
    parser.add_argument("--policies", nargs="*", choices=POLICIES, default=list(POLICIES))
    arguments = parser.parse_args(argv)
    models = build.open_folder(arguments.models) if arguments.models else build.embedded()
    figures: dict[str, Any] = {}
    rows = []
    # One for every worker: diffusers' Wan VAE keeps the state of a pass in itself. Loaded one after another: accelerate
    # changes torch itself while it loads.
    benches: Queue[Bench] = Queue()
    workers = min(arguments.workers, 1 + len(SPLITS) * len(arguments.policies))
    for _ in range(workers):
        benches.put(Bench(models, arguments.judges))

    def with_bench(work: Callable[[Bench], dict[str, float]]) -> dict[str, float]:
        bench = benches.get()
        try:
            return work(bench)
        finally:
            benches.put(bench)

    def judge(bench: Bench) -> dict[str, float]:
        return own_accuracy(bench.state_judge, bench.action_judge, arguments.instances)

    def task(split: str, policy: str) -> Callable[[Bench], dict[str, float]]:
        return lambda bench: measure(bench, split, policy, arguments.instances, arguments.clips)

    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        own = threads.submit(with_bench, judge)
        # The chains take longest, so they start first.
        order = sorted(arguments.policies, key=lambda policy: policy != "last_frame")
        pairs = [(split, policy) for policy in order for split in SPLITS]
        tasks = {pair: threads.submit(with_bench, task(*pair)) for pair in pairs}
        try:
            figures["judge"] = own.result()
            print("judges on true renders:", figures["judge"], flush=True)
            for split in SPLITS:
                figures[split] = {}
                for policy in arguments.policies:
                    got = figures[split][policy] = tasks[split, policy].result()
                    print(split, policy, got, flush=True)
                    rows.append([split, policy, *(got[k] for k in COLUMNS)])
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    figures |= {"peak_memory_gb": peak, "workers": workers}
    table = markdown(["split", "policy", *(c.replace("_", " ") for c in COLUMNS)], rows)
    table += "\n\n![Key images by policy](tabletop.jpg)"
    table += f"\n\nThe judges on true renders: {figures['judge']}."
    table += f" Peak memory {peak:.2f} GB with {workers} copies of all models."
    seeds = f"instances {FIRST_SEED}..{FIRST_SEED + arguments.instances - 1} of each split"
    write_report("tabletop", figures, table, seeds, arguments.reports)
    print(table, flush=True)
    # Last, so that nothing that happens here costs the figures.
    count = min(2, arguments.instances)
    examples(benches.get(), arguments.policies, count).save(arguments.reports / "tabletop.jpg", quality=85)
    return 0


COLUMNS = (
    "state_accuracy",
    "fact_accuracy",
    "scene_consistency",
    "action_accuracy",
    "end_state_accuracy",
    "motion_distance",
    "seconds_per_key_image",
    "seconds_per_clip",
)


if __name__ == "__main__":
    sys.exit(main())
