"""Results on disk under a key of everything that made them, so that a finished step is never made twice.

    <root>/<key[:2]>/<key>/                        the results, see cache_entry.py
    <root>/steps/<address[:2]>/<address>.json      which result a step of a loop had last, and whether it is locked
    <root>/generation                              another text after every removal

A result appears whole by one rename and vanishes by one rename, and every use compares its checksums. So several
processes may share a folder, and a crash, a full disk or a damaged file costs a result but never serves a wrong one.
What another process reads cannot be moved on Windows: it stays for later.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .cache_entry import (
    ENTRY_KIND,
    Damaged,
    Result,
    delete,
    is_damaged,
    mark_used,
    patiently,
    read,
    seal,
    size_of,
    step_of,
    sync_folder,
    used_at,
    write_synced,
)
from .checkpoints import write_atomically
from .errors import KSGenError

__all__ = ["ENTRY_KIND", "GRACE", "LOCK_KEPT", "Result", "ResultCache", "default_limit", "default_root"]

log = logging.getLogger("ksgen")

GRACE = 24 * 3600
"""Seconds: what was used within them is never evicted, whoever's run it belongs to."""
LOCK_KEPT = 90 * 24 * 3600
"""Seconds: a lock that no run has met for longer spares nothing from eviction; its plan is long forgotten."""
STEP_KIND = "ksgen.step/1"
DEFAULT_GIGABYTES = 50.0
_HEX = re.compile(r"[0-9a-f]{64}")
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_TRIES = 5


class ResultCache:
    """The results in the folder `root`, which is made when the first one is written. `limit_bytes` None: no limit."""

    def __init__(self, root: str | Path, limit_bytes: int | None = None) -> None:
        self.root = Path(root)
        self.limit_bytes = limit_bytes

    def find(self, key: str) -> Result | None:
        """The result, whole and with the right checksums, marked as used; or None.

        A damaged one is removed, with a warning that says which step it was, so that it is made again.
        """
        folder = self._folder(key)
        for _ in range(_TRIES):
            mark_used(folder)  # before it is read: a process that is about to evict it sees that
            try:
                return read(folder, key)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except Damaged as damage:
                try:
                    # It may just have been exchanged, so what was taken away is looked at once more.
                    removed = self._remove(folder, lambda aside: is_damaged(aside, key))
                except OSError as error:
                    log.warning(
                        "%s, the result of %s, is damaged (%s) but stays: %s", folder, damage.step, damage, error
                    )
                    return None
                if removed:
                    log.warning("The result of %s was damaged (%s); it is made again.", damage.step, damage)
                    return None
        return None

    def keep(self, key: str, write: Callable[[Path], Mapping[str, Any]], about: Mapping[str, Any]) -> Result:
        """Let `write` fill a new folder and say what it wrote (as JSON); the result that then stands under the key.

        That is another process's if it was first. Raises `KSGenError` if the disk is full or `root` cannot be written,
        and nothing half-written stays. An error of `write` about another place passes as it is.
        """
        folder = self._folder(key)
        new = folder.parent / f".writing-{secrets.token_hex(8)}"
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            new.mkdir()
            result = seal(new, folder, write(new), about)
            return self._place(new, folder) or result
        except Exception as error:
            if not self._is_about_the_disk(error):
                raise
            raise KSGenError(
                f"The result of {step_of(about)} cannot be written to {self.root} ({error}). Free some disk space, "
                "clear old results with `ksgen cache clear`, or choose a folder that you may write to."
            ) from error
        finally:
            delete(new)

    def _place(self, new: Path, folder: Path) -> Result | None:
        """Move a new folder into place; None, or the whole result of the process that was first."""
        for tries_left in reversed(range(_TRIES)):
            try:
                patiently(os.rename, new, folder)
                break
            except OSError:
                if os.path.lexists(folder) and (found := self.find(folder.name)):
                    return found
                if not tries_left:
                    raise
        sync_folder(folder.parent)
        sync_folder(self.root)
        return None

    def _is_about_the_disk(self, error: Exception) -> bool:
        """Libraries with errors that are no `OSError`, as FFmpeg's, carry a number too."""
        number, place = getattr(error, "errno", None), getattr(error, "filename", None)
        if number in _FULL or not isinstance(error, OSError):
            return number in _FULL
        if isinstance(place, str):
            return Path(place).is_relative_to(self.root)
        return number in {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}

    def used(self, keys: Iterable[str]) -> None:
        """Mark results as used now; a long run says so of all its results after each step."""
        for key in keys:
            mark_used(self._folder(key))

    def remember(self, address: str, key: str, locked: bool) -> None:
        """Note which result the step at `address` (64 hexadecimal digits) had last, and whether the step is locked.

        Every run says so of all its steps: by that it is known which locks are still in use, see `LOCK_KEPT`.
        Raises `KSGenError` if that cannot be written.
        """
        path, folder = self._pointer(address), self._folder(key)
        if _pointed(path) != (key, bool(locked)):
            text = json.dumps({"kind": STEP_KIND, "key": key, "locked": bool(locked)}) + "\n"
            patiently(write_atomically, path, lambda temporary: write_synced(temporary, text))
        with suppress(OSError):  # what cannot be noted is evicted earlier
            os.utime(path)
        mark_used(folder)

    def last(self, address: str) -> str | None:
        """The key last remembered for the step at `address`."""
        pointed = _pointed(self._pointer(address))
        return pointed[0] if pointed else None

    def trim(self, needed: Iterable[str] = ()) -> int:
        """Remove the results used longest ago until all take at most `limit_bytes`; gives the bytes freed.

        Stays: what is `needed`, what a locked step points to that a run has met within `LOCK_KEPT`, what was used
        within `GRACE`. Leftovers of crashes are swept up.
        """
        self._sweep()
        freed = 0
        if self.limit_bytes is not None:
            stays = {_checked(key, "a key") for key in needed} | self.locked_keys(LOCK_KEPT)
            found = sorted((used_at(folder), folder, size_of(folder)) for folder in self._folders())
            total = sum(size for _, _, size in found)
            for used, folder, size in found:
                if total - freed <= self.limit_bytes:
                    break
                # A time in the future, of a clock that was wrong, counts as long ago.
                if folder.name in stays or abs(time.time() - used) < GRACE:
                    continue
                with suppress(OSError):  # somebody reads it
                    if self._remove(folder, lambda aside, used=used: used_at(aside) == used):
                        freed += size
        for path in self._pointers():
            # A locked step's stays longer: its result may be on the way back into its place, see `_remove`.
            if (pointed := _pointed(path)) and _age(path) > (LOCK_KEPT if pointed[1] else GRACE):
                if not os.path.lexists(self._folder(pointed[0])):
                    delete(path)
        return freed

    def entries(self) -> list[Result]:
        """All results whose entry can be read, the oldest first; their files are not looked into."""
        found = []
        for folder in self._folders():
            with suppress(Damaged, FileNotFoundError, NotADirectoryError):
                found.append(read(folder, folder.name, hashed=False))
        return sorted(found, key=lambda result: (result.made, result.key))

    def verify(self, keys: Iterable[str] | None = None) -> list[tuple[str, str]]:
        """The key of every damaged result, of these or of all, and what is wrong with it. Removes nothing."""
        wrong = []
        for folder in self._chosen(keys):
            if is_damaged(folder, folder.name):
                try:
                    read(folder, folder.name)  # once more: it may just have been exchanged
                except Damaged as damage:
                    wrong.append((folder.name, str(damage)))
                except (FileNotFoundError, NotADirectoryError):
                    pass
        return wrong

    def clear(self, keys: Iterable[str] | None = None, locked: bool = False) -> int:
        """Remove these results, or all, however lately they were used; gives the bytes freed.

        Those that a locked step points to go only with `locked`.
        """
        folders = self._chosen(keys)
        stays = set() if locked else self.locked_keys()
        freed, gone = 0, set()
        for folder in folders:
            size = size_of(folder)
            with suppress(OSError):  # somebody reads it
                if folder.name not in stays and self._remove(folder, lambda _: True):
                    freed += size
                    gone.add(folder.name)
        for path in self._pointers():
            if (pointed := _pointed(path)) and pointed[0] in gone:
                delete(path)
        self._sweep()
        return freed

    def locked_keys(self, seconds: float = math.inf) -> set[str]:
        """The keys that locked steps point to which a run has met within so many seconds."""
        paths = [path for path in self._pointers() if _age(path) <= seconds]
        return {pointed[0] for path in paths if (pointed := _pointed(path)) and pointed[1]}

    def generation(self) -> str:
        """A text that changes whenever any process removed anything; "" if nothing ever was."""
        try:
            return patiently((self.root / "generation").read_text, "ascii", "replace")
        except (FileNotFoundError, NotADirectoryError):
            return ""

    def _folder(self, key: str) -> Path:
        return self.root / _checked(key, "a key")[:2] / key

    def _pointer(self, address: str) -> Path:
        return self.root / "steps" / _checked(address, "an address")[:2] / f"{address}.json"

    def _chosen(self, keys: Iterable[str] | None) -> list[Path]:
        return self._folders() if keys is None else [self._folder(key) for key in dict.fromkeys(keys)]

    def _folders(self) -> list[Path]:
        """The folders of all results, whole or not."""
        shards = [shard for shard in _listed(self.root) if len(shard.name) == 2]
        paths = [path for shard in shards for path in _listed(shard)]
        return [path for path in paths if _HEX.fullmatch(path.name) and path.name[:2] == path.parent.name]

    def _pointers(self) -> list[Path]:
        paths = [path for shard in _listed(self.root / "steps") for path in _listed(shard)]
        return [path for path in paths if path.suffix == ".json" and _HEX.fullmatch(path.stem)]

    def _remove(self, folder: Path, still: Callable[[Path], bool]) -> bool:
        """Take a result away if `still` says so of what was taken. False: it stays, or was gone already.

        Raises `OSError` if it cannot be moved.
        """
        aside = folder.parent / f".removed-{secrets.token_hex(8)}"
        try:
            os.utime(folder)  # by its age a sweeping process knows that somebody is at it
            patiently(os.rename, folder, aside)
        except (FileNotFoundError, NotADirectoryError):
            return False
        taken = False
        try:
            taken = still(aside)
        finally:
            if not taken:
                with suppress(OSError):  # unless another one is in its place by now
                    patiently(os.rename, aside, folder)
        if os.path.lexists(aside):
            # Told before the deleting, which may be cut short, and after it if the disk was too full for that.
            told = False
            with suppress(KSGenError):
                self._tell_removal()
                told = True
            delete(aside)
            if not told:
                self._tell_removal()
        return taken

    def _tell_removal(self) -> None:
        text = secrets.token_hex(16)
        path = self.root / "generation"
        patiently(write_atomically, path, lambda temporary: Path(temporary).write_text(text, "ascii"))

    def _sweep(self) -> None:
        """Delete what was left half-written or half-removed a day ago or earlier."""
        folders = [self.root, *_listed(self.root), *_listed(self.root / "steps")]
        for path in (path for folder in folders for path in _listed(folder)):
            if path.name.startswith((".writing-", ".removed-")) and abs(_age(path)) > GRACE:
                delete(path)


def named_root() -> Path | None:
    """The folder in the environment's KSGEN_CACHE, if it names one."""
    place = os.environ.get("KSGEN_CACHE")
    return Path(place).expanduser() if place else None


def default_root() -> Path | None:
    """KSGEN_CACHE, or a folder of the user's in the ComfyUI that this pack lies in, or None."""
    if named := named_root():
        return named
    # Not resolved: the pack may be linked into custom_nodes.
    packs = Path(os.path.abspath(__file__)).parent.parent.parent
    return packs.parent / "user" / "ksgen" / "results" if packs.name == "custom_nodes" else None


def default_limit() -> int:
    """Bytes that results may take: KSGEN_CACHE_GB, in units of 10**9. Raises `KSGenError` if that is no number."""
    text = os.environ.get("KSGEN_CACHE_GB") or str(DEFAULT_GIGABYTES)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < math.inf:
        raise KSGenError(f"KSGEN_CACHE_GB is a number of gigabytes from 0, got {text!r}. Set it to 50, say.")
    return int(gigabytes * 10**9)


def _checked(digits: str, what: str) -> str:
    if not isinstance(digits, str) or not _HEX.fullmatch(digits):
        raise ValueError(f"{what} is 64 lowercase hexadecimal digits, got {digits!r}")
    return digits


def _pointed(path: Path) -> tuple[str, bool] | None:
    """The key in the file of a step and whether it is locked; None if there is no such file, or it is damaged."""
    try:
        note = json.loads(patiently(path.read_bytes))
        if note["kind"] == STEP_KIND and isinstance(note["locked"], bool):
            return _checked(note["key"], "a key"), note["locked"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        # Not to know a lock would lose a result.
        raise KSGenError(f"{path} cannot be read ({error}). Check the permissions of the file.") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    log.warning("%s is damaged and tells nothing; delete it.", path)
    return None


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise KSGenError(f"{folder} cannot be read ({error}). Check the permissions of the folder.") from error


def _age(path: Path) -> float:
    """Seconds since a file was changed; 0 for one that is gone."""
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0
