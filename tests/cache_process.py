"""Another process on a folder of results: `python cache_process.py ROLE ROOT ...`, and what tests share with it."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from ksgen_core.cache import ResultCache  # noqa: E402
from ksgen_core.errors import KSGenError  # noqa: E402

ABOUT = {"loop": "clips", "goal": "make tea", "step": 3, "text": "Pour the water"}


def key_of(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def payload(size: int) -> bytes:
    """Bytes that say themselves whether they are whole."""
    body = os.urandom(size)
    return hashlib.sha256(body).digest() + body


def is_whole(content: bytes) -> bool:
    return hashlib.sha256(content[32:]).digest() == content[:32]


def writing(content: bytes):
    """What fills the folder of a result with `clip.mkv`."""

    def write(folder: Path):
        (folder / "clip.mkv").write_bytes(content)
        return {"file": "clip.mkv", "bytes": len(content)}

    return write


def started(role: str, *arguments: object) -> subprocess.Popen[str]:
    """This file as another process; it has begun when this returns."""
    command = [sys.executable, __file__, role, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def stop_half_way(cache: ResultCache, name: str) -> None:
    """Stand still in the middle of writing."""

    def write(folder: Path):
        (folder / "clip.mkv").write_bytes(b"half")
        print("half", flush=True)
        time.sleep(600)
        return {}

    cache.keep(key_of(name), write, ABOUT)


def keep_for_ever(cache: ResultCache, first: str) -> None:
    for name in range(int(first), 10**9):
        cache.keep(key_of(name), writing(payload(random.randrange(200_000))), {**ABOUT, "text": str(name)})
        print(name, flush=True)


def race(cache: ResultCache, own: str, other: str, count: str) -> None:
    """Keep results under the same keys as another process does at the same time; print what stands there then."""
    for name in range(int(count)):

        def write(folder: Path, name: int = name):
            Path(f"{own}-{name}").touch()
            while not Path(f"{other}-{name}").exists():  # both write before either is done
                time.sleep(0.0005)
            return writing(payload(random.randrange(50_000)))(folder)

        content = cache.keep(key_of(name), write, ABOUT).file("clip.mkv").read_bytes()
        print(len(content), is_whole(content), hashlib.sha256(content).hexdigest(), flush=True)


def rewrite(cache: ResultCache, name: str, times: str) -> None:
    """Remove a result and keep another of another size, again and again."""
    for _ in range(int(times)):
        cache.clear([key_of(name)])
        cache.keep(key_of(name), writing(payload(random.randrange(300_000))), ABOUT)


def exchange(cache: ResultCache, name: str, times: str) -> None:
    """Two results take turns under one key, as fast as folders can be moved."""
    spare = [cache.root / f"spare-{number}" for number in range(2)]
    for folder in spare:
        kept = cache.keep(key_of(name), writing(payload(random.randrange(100_000))), ABOUT).folder
        shutil.copytree(kept, folder)
        cache.clear([key_of(name)])
    turns = [cache.root / f"turn-{number}" for number in range(2)]
    for number in range(int(times)):
        if not turns[number % 2].exists():  # a reader that took it for damaged found its place taken
            shutil.copytree(spare[number % 2], turns[number % 2])
        # A reader that took it for damaged may have it in hand, or have put it back.
        with suppress(OSError):
            os.rename(kept, turns[1 - number % 2])
        with suppress(OSError):
            os.rename(turns[number % 2], kept)


def trim_until(cache: ResultCache, there: str) -> None:
    """Evict whatever may go, again and again, until a file is there."""
    cache.limit_bytes = 0
    while not Path(there).exists():
        cache.trim()


def fill_under_limit(cache: ResultCache, limit: str) -> None:
    """Keep a result that is larger than a file may be."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        cache.keep(key_of(1), writing(payload(2 * int(limit))), ABOUT)
    except KSGenError as error:
        print(error)


ROLES = (stop_half_way, keep_for_ever, race, rewrite, exchange, trim_until, fill_under_limit)

if __name__ == "__main__":
    print("begun", flush=True)
    roles = {role.__name__: role for role in ROLES}
    roles[sys.argv[1]](ResultCache(sys.argv[2]), *sys.argv[3:])
