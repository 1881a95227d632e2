"""One result on disk: a folder with `entry.json`, which knows size and checksum of every file and of itself.

<root>/<key[:2]>/<key>/entry.json + files      a key is 64 hexadecimal digits (SHA-256)
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from .errors import KSGenError

ENTRY = "entry.json"
ENTRY_KIND = "ksgen.result/1"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""Names of files in a result: none that leads elsewhere, on any system."""

Done = TypeVar("Done")


@dataclass(frozen=True)
class Result:
    """One finished result on disk.

    `about` is for people (loop, goal, text of the step), `facts` is what its writer said of the files (kind, fps, ...).
    `bytes` counts all files, `made` is an ISO time in UTC, `used` is in seconds since the epoch.
    """

    key: str
    folder: Path
    about: Mapping[str, Any]
    facts: Mapping[str, Any]
    bytes: int
    made: str
    used: float
    files: tuple[str, ...] = ()

    def file(self, name: str) -> Path:
        """Where a file of the result lies. Raises `ValueError` for a name that the result does not have."""
        if name not in self.files:
            raise ValueError(f"the result {self.key} has the files {', '.join(self.files)}, not {name!r}")
        return self.folder / name


class Damaged(Exception):
    """What is wrong with an entry; `step` says of which step it is, as far as that can be read."""

    def __init__(self, what: str, step: str) -> None:
        super().__init__(what)
        self.step = step


def seal(new: Path, folder: Path, facts: Mapping[str, Any], about: Mapping[str, Any]) -> Result:
    """Write the entry of the files in `new` and bring all onto the disk; the result once `new` is moved to `folder`.

    Raises `ValueError` for what no result may hold: folders, links, names with odd characters.
    """
    files = {}
    for path in sorted(new.iterdir()):
        if not _NAME.fullmatch(path.name) or path.name.lower() == ENTRY or not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError(f"a result holds plain files of plain names, got {path.name!r}")
        # The copy of a file that may only be read could not be synced, nor on Windows removed.
        path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IRUSR | stat.S_IWUSR)
        with path.open("r+b") as file:
            os.fsync(file.fileno())
            files[path.name] = {"sha256": _digest(file), "bytes": os.fstat(file.fileno()).st_size}
    entry = {
        "kind": ENTRY_KIND,
        "key": folder.name,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "about": dict(about),
        "facts": dict(facts),
        "files": files,
    }
    entry = json.loads(json.dumps(entry, allow_nan=False))
    write_synced(new / ENTRY, json.dumps({**entry, "sha256": _own_digest(entry)}, indent=1, sort_keys=True) + "\n")
    sync_folder(new)
    return Result(
        folder.name, folder, entry["about"], entry["facts"], size_of(new), entry["made"], used_at(new), tuple(files)
    )


def read(folder: Path, key: str, hashed: bool = True) -> Result:
    """The result in a folder, the contents of its files compared with their checksums if `hashed`.

    Raises `Damaged`, `FileNotFoundError` or `NotADirectoryError` if there is no such folder, and `KSGenError` if the
    system cannot read now, which says nothing about the entry.
    """
    mode, step = folder.lstat().st_mode, f"the key {key[:12]}"
    try:
        if not stat.S_ISDIR(mode):
            raise Damaged("it is no folder", step)
        _check_plain(folder / ENTRY, step)
        entry = json.loads(patiently((folder / ENTRY).read_bytes))
        own = entry.pop("sha256")
        if own != _own_digest(entry):
            raise Damaged(f"{ENTRY} was changed", step)
        if entry["kind"] != ENTRY_KIND or entry["key"] != key:
            raise Damaged(f"{ENTRY} is the {entry['kind']} of {entry['key']}", step)
        step = step_of(entry["about"])
        for name, known in entry["files"].items():
            if not _NAME.fullmatch(name):
                raise Damaged(f"{name!r} is no name of a file", step)
            if (size := _check_plain(folder / name, step)) != known["bytes"]:
                raise Damaged(f"{name} has {size} bytes instead of {known['bytes']}", step)
            if hashed:
                with patiently((folder / name).open, "rb") as file:
                    if _digest(file) != known["sha256"]:
                        raise Damaged(f"{name} has another checksum", step)
        about, facts, made = dict(entry["about"]), dict(entry["facts"]), str(entry["made"])
        return Result(key, folder, about, facts, size_of(folder), made, used_at(folder), tuple(entry["files"]))
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError) or error.errno == errno.EIO:
            raise Damaged(f"{Path(error.filename or folder).name}: {error.strerror}", step) from error
        # Too many open files, say.
        raise KSGenError(f"The result of {step} in {folder} cannot be read ({error}). Try again.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{ENTRY} is no {ENTRY_KIND}", step) from error


def is_damaged(folder: Path, key: str) -> bool:
    try:
        read(folder, key)
    except Damaged:
        return True
    except (FileNotFoundError, NotADirectoryError):
        pass
    return False


def step_of(about: Mapping[str, Any]) -> str:
    """How to call the step of a result: step 3 of the loop 'clips' (Pour the water)."""
    loop = f" of the loop {about['loop']!r}" if about.get("loop") else ""
    text = f" ({str(about['text'])[:80]})" if about.get("text") else ""
    return f"step {about.get('step', '?')}{loop}{text}"


def used_at(folder: Path) -> float:
    """When the result was used last, in seconds since the epoch; 0 if it has no entry."""
    try:
        return (folder / ENTRY).lstat().st_mtime
    except OSError:
        return 0.0


def mark_used(folder: Path) -> None:
    """Now. Where that cannot be noted, the result is evicted earlier."""
    with suppress(OSError):
        os.utime(folder / ENTRY, follow_symlinks=os.utime not in os.supports_follow_symlinks)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; 0 if there is none."""
    total = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            total += entry.stat(follow_symlinks=False).st_size
    return total


def delete(path: Path) -> None:
    """A file, a link or a folder with all in it, as far as that is possible now."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def write_synced(path: str | Path, text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder onto the disk, where the system and the file system can do that."""
    if os.name == "posix":
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def patiently(act: Callable[..., Done], *args: Any) -> Done:
    """Windows moves and opens nothing that another process (a reader, a virus scanner) holds, mostly for moments."""
    for pause in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4) if os.name == "nt" else ():
        try:
            return act(*args)
        except (PermissionError, KSGenError) as error:
            if isinstance(error, KSGenError) and not isinstance(error.__cause__, PermissionError):
                raise
            time.sleep(pause)
    return act(*args)


def _check_plain(path: Path, step: str) -> int:
    """The size in bytes of a file that is no link, folder or device."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise Damaged(f"{path.name} is no plain file", step)
    return found.st_size


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _own_digest(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
