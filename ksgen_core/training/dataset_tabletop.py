"""`ksgen dataset tabletop`: the procedural skills of Tabletop as a data set of records.

Its training split holds the very instances that the embedded models are trained on, its validation split the next
ones, which nothing is trained on.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

from .. import video
from ..errors import KSGenError
from ..pixels import from_uint8, to_pil
from ..tabletop.instances import make
from ..tabletop.shots import FPS
from .dataset import Record, RecordStep, write_manifest, write_shards
from .pool import TRAIN_INSTANCES, TRAIN_SPLITS

VALIDATION = 100
"""Instances of each split that are kept for validation, from `TRAIN_INSTANCES` on."""


def record_of(split: str, seed: int, purpose: str = "train", clips: bool = False) -> Record:
    """The instance with this number as a record; its pictures and clips are drawn when they are read."""
    instance = make(split, seed)

    def read(name: str) -> bytes:
        step, _, ending = name.partition(".")
        if ending == "mkv":
            with tempfile.TemporaryDirectory(prefix="ksgen-") as folder:
                video.write_lossless(path := Path(folder) / name, instance.film(int(step)), FPS)
                return path.read_bytes()
        file = io.BytesIO()
        to_pil(from_uint8(instance.first_frame(int(step)))).save(file, "PNG", compress_level=1)
        return file.getvalue()

    steps = tuple(
        RecordStep(step.text, f"{k}.png", f"{k}.mkv" if clips else None, step.before, step.after)
        for k, step in enumerate(instance.plan.steps)
    )
    return Record(f"{split}-{seed:06d}", instance.plan.goal, steps, purpose, read, f"tabletop {split} {seed}")


def _drawn(task: tuple[str, int, str, bool]) -> tuple[Record, dict[str, bytes]]:
    """For another process: the record without its pictures and clips, and these."""
    record = record_of(*task)
    pictures = {name: record.read(name) for name in record.files()}
    return Record(record.id, record.goal, record.steps, record.split, where=record.where), pictures


def tabletop_records(instances: int = TRAIN_INSTANCES, workers: int = 1, clips: bool = False) -> Iterator[Record]:
    """`instances` of each training split, in the order of `build_pool`, then the validation records.

    Raises `KSGenError` for more instances than the validation split leaves.
    """
    if not 1 <= instances <= TRAIN_INSTANCES:
        raise KSGenError(f"Tabletop has 1 to {TRAIN_INSTANCES} instances a split to train on, got {instances}.")
    tasks = [(split, seed, "train", clips) for split in TRAIN_SPLITS for seed in range(instances)]
    kept = range(TRAIN_INSTANCES, TRAIN_INSTANCES + min(VALIDATION, instances))
    tasks += [(split, seed, "validation", clips) for split in TRAIN_SPLITS for seed in kept]
    if workers == 1:
        yield from (record_of(*task) for task in tasks)
        return
    with get_context("spawn").Pool(workers) as processes:
        for record, pictures in processes.imap(_drawn, tasks, chunksize=16):
            yield Record(record.id, record.goal, record.steps, record.split, pictures.__getitem__, record.where)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ksgen dataset tabletop", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for the data set")
    parser.add_argument(
        "--instances", type=int, default=TRAIN_INSTANCES, metavar="N", help="a split (default: %(default)s)"
    )
    parser.add_argument(
        "--shards", type=int, default=0, metavar="N", help="write N WebDataset shards instead of a folder of files"
    )
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes that draw (default: %(default)s)"
    )
    parser.add_argument("--clips", action="store_true", help="with the clip of every step, for `ksgen train clips`")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1 or arguments.shards < 0:
        raise KSGenError("--workers is at least 1 and --shards at least 0 (a folder).")
    records = tabletop_records(arguments.instances, arguments.workers, arguments.clips)
    if arguments.shards:
        count = len(TRAIN_SPLITS) * (arguments.instances + min(VALIDATION, arguments.instances))
        write_shards(arguments.out, records, -(-count // arguments.shards))
    else:
        write_manifest(arguments.out, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
