"""Results on disk under full disks, damage, kill -9 and other processes: no wrong result is ever served."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cache_process import ABOUT, is_whole, key_of, payload, started, writing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ksgen_core.cache import GRACE, ResultCache
from ksgen_core.cache_entry import _own_digest
from ksgen_core.errors import KSGenError

posix = pytest.mark.skipif(os.name != "posix", reason="kills, limits and permissions as POSIX has them")


@pytest.fixture
def cache(tmp_path):
    return ResultCache(tmp_path / "results")


def keep(cache: ResultCache, name: object, size: int = 1000):
    return cache.keep(key_of(name), writing(payload(size)), {**ABOUT, "text": str(name)})


def age(cache: ResultCache, name: object) -> None:
    path = cache.root / key_of(name)[:2] / key_of(name) / "entry.json"
    os.utime(path, (time.time() - 9 * GRACE,) * 2)


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.name.startswith(".")]


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


# -- damage


def test_a_damaged_result_is_removed_and_named_once(cache, caplog):
    result = keep(cache, "pour")
    content = bytearray(result.file("clip.mkv").read_bytes())
    content[500] ^= 1
    result.file("clip.mkv").write_bytes(content)
    assert cache.verify() == [(key_of("pour"), "clip.mkv has another checksum")] and result.folder.exists()
    assert cache.find(key_of("pour")) is None and not result.folder.exists() and leftovers(cache.root) == []
    (record,) = caplog.records
    assert record.name == "ksgen" and record.levelname == "WARNING"
    assert "step 3 of the loop 'clips' (pour)" in record.getMessage() and "checksum" in record.getMessage()
    assert cache.find(key_of("pour")) is None and len(caplog.records) == 1
    assert is_whole(keep(cache, "pour").file("clip.mkv").read_bytes()) and cache.find(key_of("pour"))


def test_a_damaged_result_gives_way_to_a_new_one_that_was_not_asked_for_first(cache):
    keep(cache, 1).file("clip.mkv").write_bytes(b"cut")
    new = keep(cache, 1)
    assert is_whole(new.file("clip.mkv").read_bytes()) and cache.verify() == []


def forged(entry: dict) -> bytes:
    """An entry with its own checksum right."""
    entry = {name: value for name, value in entry.items() if name != "sha256"}
    return json.dumps({**entry, "sha256": _own_digest(entry)}).encode()


def outside(folder: Path, name: str) -> None:
    """An entry that is right in all, but for a file elsewhere."""
    entry = json.loads((folder / "entry.json").read_bytes())
    entry["files"][name] = entry["files"].pop("clip.mkv")
    target = Path(os.path.normpath(folder / name))
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "clip.mkv", target)
    (folder / "entry.json").write_bytes(forged(entry))


def change(folder: Path, **fields: object) -> None:
    entry = json.loads((folder / "entry.json").read_bytes())
    (folder / "entry.json").write_bytes(forged({**entry, **fields}))


def linked(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a file is missing": lambda folder: (folder / "clip.mkv").unlink(),
    "a file is empty": lambda folder: (folder / "clip.mkv").write_bytes(b""),
    "a file is cut": lambda folder: os.truncate(folder / "clip.mkv", 999),
    "a file is longer": lambda folder: (folder / "clip.mkv").open("ab").write(b"!"),
    "a file is a folder": lambda folder: ((folder / "clip.mkv").unlink(), (folder / "clip.mkv").mkdir()),
    "a file is a link": lambda folder: linked(folder / "clip.mkv"),
    "a file is a pipe": lambda folder: ((folder / "clip.mkv").unlink(), os.mkfifo(folder / "clip.mkv")),
    "the entry is missing": lambda folder: (folder / "entry.json").unlink(),
    "the entry is empty": lambda folder: (folder / "entry.json").write_bytes(b""),
    "the entry is cut": lambda folder: os.truncate(folder / "entry.json", 100),
    "the entry is not text": lambda folder: (folder / "entry.json").write_bytes(b"\xff\x00\xfe"),
    "the entry is a list": lambda folder: (folder / "entry.json").write_bytes(b"[1]"),
    "the entry is too deep": lambda folder: (folder / "entry.json").write_bytes(b"[" * 100_000),
    "the entry is another program's": lambda folder: (folder / "entry.json").write_bytes(b'{"kind": "x", "files": {}}'),
    "the entry is a link": lambda folder: linked(folder / "entry.json"),
    "the entry is a pipe": lambda folder: ((folder / "entry.json").unlink(), os.mkfifo(folder / "entry.json")),
    "the entry was edited": lambda folder: (folder / "entry.json").write_bytes(
        (folder / "entry.json").read_bytes().replace(b'"clips"', b'"other"')
    ),
    "another kind": lambda folder: change(folder, kind="ksgen.result/2"),
    "another key": lambda folder: change(folder, key=key_of("other")),
    "files of no kind": lambda folder: change(folder, files=[]),
    "about of no kind": lambda folder: change(folder, about=None),
    "facts of no kind": lambda folder: change(folder, facts=3),
    "a file above": lambda folder: outside(folder, "../clip.mkv"),
    "a file below": lambda folder: outside(folder, "sub/clip.mkv"),
    "a file anywhere": lambda folder: outside(folder, str(folder.parent.parent / "clip.mkv")),
    "a file on a drive": lambda folder: outside(folder, "C:clip.mkv"),
    "a file in Windows": lambda folder: outside(folder, "..\\clip.mkv"),
    "all is a link": lambda folder: linked(folder),
    "all is a file": lambda folder: (shutil.rmtree(folder), folder.write_bytes(b"x")),
}


@posix
@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_damaged_is_not_served_and_made_again(cache, damage):
    folder = keep(cache, 1).folder
    keep(cache, 2)
    DAMAGES[damage](folder)
    assert [key for key, _ in cache.verify()] == [key_of(1)]
    assert cache.find(key_of(1)) is None and not os.path.lexists(folder) and leftovers(cache.root) == []
    assert cache.verify() == [] and cache.find(key_of(2))
    assert is_whole(keep(cache, 1).file("clip.mkv").read_bytes()) and cache.find(key_of(1))


def test_a_link_is_removed_but_not_what_it_leads_to(cache, tmp_path):
    folder = keep(cache, 1).folder
    shutil.move(folder, tmp_path / "mine")
    os.symlink(tmp_path / "mine", folder)
    assert cache.find(key_of(1)) is None and not os.path.lexists(folder)
    assert is_whole((tmp_path / "mine" / "clip.mkv").read_bytes())


def test_a_copy_under_another_key_is_not_served(cache):
    source = keep(cache, 1).folder
    copy = cache.root / key_of(2)[:2] / key_of(2)
    shutil.copytree(source, copy)
    assert cache.find(key_of(2)) is None and not copy.exists() and cache.find(key_of(1))


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(["clip.mkv", "entry.json"]), st.floats(0, 1), st.integers(0, 255), st.booleans())
@example("entry.json", 1.0, 0, True)
def test_no_changed_byte_and_no_cut_changes_what_is_served(name, where, byte, cut):
    with tempfile.TemporaryDirectory() as place:
        cache = ResultCache(place)
        kept = keep(cache, 1, 400)
        before, path = kept.file("clip.mkv").read_bytes(), kept.folder / name
        content = bytearray(path.read_bytes())
        at = int(where * (len(content) - 1))
        path.write_bytes(content[:at] if cut else content[:at] + bytes([byte]) + content[at + 1 :])
        found = cache.find(key_of(1))
        if found is not None:  # the byte was the same, or white space
            assert found.file("clip.mkv").read_bytes() == before
            assert (found.about, found.facts, found.made) == (kept.about, kept.facts, kept.made)
        elif not cut:
            assert content[at] != byte
        if cut and found is not None:
            assert content[at:] == b"\n"


@posix
def test_too_many_open_files_cost_no_result(cache):
    """What the system cannot do now says nothing about a result."""
    import resource

    keep(cache, 1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(64, limits[0]), limits[1]))
        with pytest.raises(OSError):
            while True:
                held.append(open(os.devnull))
        with pytest.raises(KSGenError, match="open files"):
            cache.find(key_of(1))
    finally:
        for file in held:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert cache.find(key_of(1))


# -- disks


@contextmanager
def small_disk(kilobytes: int) -> Iterator[Path]:
    """A file system of its own in memory, which root may have."""
    with tempfile.TemporaryDirectory() as place:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root may mount a small disk")
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", place], check=True)


def fill(path: Path) -> None:
    """Take all room that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(b"x" * size)


@posix
def test_a_full_disk_leaves_nothing_half_written_and_all_that_was_there():
    with small_disk(512) as place:
        cache = ResultCache(place / "results")
        kept = 0
        with pytest.raises(KSGenError) as raised:
            while True:
                keep(cache, kept, 50_000)
                kept += 1
        assert kept >= 5
        for part in (str(cache.root), "step 3", "No space left", "Free some disk space"):
            assert part in str(raised.value)
        assert leftovers(cache.root) == [] and cache.verify() == []
        assert all(cache.find(key_of(name)) for name in range(kept)) and cache.find(key_of(kept)) is None
        cache.clear([key_of(0)])
        assert is_whole(keep(cache, kept, 50_000).file("clip.mkv").read_bytes()) and cache.find(key_of(kept))


@posix
@pytest.mark.parametrize("room", [0, 4096, 8192, 12288])
def test_a_disk_may_be_full_at_any_moment(room):
    """Full for the folder, for the clip, for its entry."""
    with small_disk(512) as place:
        cache = ResultCache(place / "results")
        cache.root.mkdir()
        (cache.root / key_of(1)[:2]).mkdir()
        fill(place / "filler")
        os.truncate(place / "filler", (place / "filler").stat().st_size - room)
        try:
            result = keep(cache, 1, 5000)
        except KSGenError as error:
            assert room < 12288 and "No space left" in str(error) and cache.find(key_of(1)) is None
        else:
            assert room == 12288 and is_whole(result.file("clip.mkv").read_bytes())
        assert leftovers(cache.root) == []


@posix
def test_on_a_full_disk_results_can_still_be_removed_and_that_is_told():
    with small_disk(512) as place:
        cache = ResultCache(place / "results")
        for name in range(3):
            keep(cache, name, 20_000)
        cache.remember(key_of("step"), key_of(1), True)
        cache.clear([key_of(0)])
        fill(place / "filler")
        with pytest.raises(KSGenError, match="No space left"):
            cache.remember(key_of("step"), key_of(2), False)
        assert cache.last(key_of("step")) == key_of(1) and cache.locked_keys() == {key_of(1)}
        before = cache.generation()
        with cache.find(key_of(1)).file("clip.mkv").open("r+b") as file:
            file.write(b"!!!!!!!!")
        assert cache.find(key_of(1)) is None and cache.generation() not in (before, "")
        fill(place / "filler 2")
        before = cache.generation()
        age(cache, 2)
        cache.limit_bytes = 0
        assert cache.trim() > 0 and cache.generation() not in (before, "")
        assert leftovers(cache.root) == []


@posix
def test_a_real_film_writer_on_a_full_disk():
    """FFmpeg has errors of its own."""
    import av
    import numpy as np

    def write(folder: Path):
        noise = np.random.default_rng(0)
        with av.open(str(folder / "clip.mkv"), "w") as film:
            stream = film.add_stream("ffv1", rate=16)
            stream.width = stream.height = 128
            stream.pix_fmt = "bgr0"
            for _ in range(30):
                picture = noise.integers(0, 256, (128, 128, 3), np.uint8)
                film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            film.mux(stream.encode(None))
        return {"kind": "frames", "file": "clip.mkv"}

    with small_disk(512) as place:
        cache = ResultCache(place / "results")
        with pytest.raises(KSGenError, match="No space left.*Free some disk space"):
            cache.keep(key_of(1), write, ABOUT)
        assert leftovers(cache.root) == [] and cache.find(key_of(1)) is None


@posix
def test_a_file_larger_than_the_system_allows(cache):
    """As `test_a_full_disk...`, for whoever may not mount."""
    process = started("fill_under_limit", cache.root, 50_000)
    told, _ = process.communicate()
    assert process.returncode == 0 and "File too large" in told and str(cache.root) in told
    assert leftovers(cache.root) == [] and cache.find(key_of(1)) is None
    assert keep(cache, 1, 100_000) and cache.find(key_of(1))


def without_rights(call: Callable[[], None]) -> None:
    """Root may write everywhere, so it becomes nobody, in a process of its own."""
    if os.getuid():
        return call()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            call()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@posix
def test_a_file_that_may_only_be_read_is_taken():
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o777)
        source, cache = Path(place) / "clip.mp4", ResultCache(Path(place) / "results")
        source.write_bytes(b"video")
        source.chmod(0o444)

        def use() -> None:
            cache.keep(key_of(1), lambda folder: {"file": shutil.copy(source, folder)}, ABOUT)
            assert cache.find(key_of(1)).file("clip.mp4").read_bytes() == b"video"
            assert cache.clear() > 0 and cache.entries() == [] and leftovers(cache.root) == []

        without_rights(use)


@posix
def test_a_file_that_may_not_be_read_is_not_served_and_stays():
    with tempfile.TemporaryDirectory() as place:
        cache = ResultCache(Path(place) / "results")
        paths = [keep(cache, number).folder / name for number, name in enumerate(("clip.mkv", "entry.json"))]
        folders = [Path(place), *(path for path in Path(place).rglob("*") if path.is_dir())]

        def use() -> None:
            for number in range(2):
                assert cache.find(key_of(number)) is None
                with pytest.raises(KSGenError, match="cannot be written"):
                    keep(cache, number)
            assert {key: what for key, what in cache.verify()} == {
                key_of(number): f"{path.name}: Permission denied" for number, path in enumerate(paths)
            }

        try:
            for path in paths:
                path.chmod(0)
            for folder in folders:
                folder.chmod(0o555)
            without_rights(use)
        finally:
            for path in (*folders, *paths):
                path.chmod(0o755)
        assert all(cache.find(key_of(number)) for number in range(2))


@posix
def test_a_folder_that_may_only_be_read_serves_and_says_why_it_takes_nothing():
    with tempfile.TemporaryDirectory() as place:
        cache = ResultCache(Path(place) / "results", 0)
        keep(cache, "whole")
        keep(cache, "broken").file("clip.mkv").write_bytes(b"x")
        age(cache, "whole")
        folders = [Path(place), *(path for path in Path(place).rglob("*") if path.is_dir())]

        def use() -> None:
            assert is_whole(cache.find(key_of("whole")).file("clip.mkv").read_bytes())
            assert cache.find(key_of("broken")) is None and cache.generation() == ""
            for name in ("new", "broken"):
                with pytest.raises(KSGenError, match="Permission denied.*a folder that you may write to"):
                    keep(cache, name)
            with pytest.raises(KSGenError, match="cannot be written"):
                cache.remember(key_of("step"), key_of("whole"), True)
            cache.used([key_of("whole")])
            if not os.getuid():
                return
            assert cache.trim() == 0 and cache.clear() == 0
            assert [key for key, _ in cache.verify()] == [key_of("broken")]

        try:
            for folder in folders:
                folder.chmod(0o555)
            without_rights(use)
        finally:
            for folder in folders:
                folder.chmod(0o755)
        assert cache.find(key_of("whole"))


def test_a_place_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    cache = ResultCache(tmp_path / "file")
    assert cache.find(key_of(1)) is None and cache.last(key_of(1)) is None and cache.entries() == []
    with pytest.raises(KSGenError, match=str(tmp_path / "file")):
        keep(cache, 1)


# -- processes


@posix
def test_a_process_killed_in_the_middle_of_writing_leaves_no_result(cache):
    process = started("stop_half_way", cache.root, "a")
    assert process.stdout.readline() == "half\n"
    killed(process)
    assert cache.find(key_of("a")) is None and cache.verify() == [] and cache.entries() == []
    (left,) = leftovers(cache.root)
    assert is_whole(keep(cache, "a").file("clip.mkv").read_bytes()) and cache.find(key_of("a"))
    cache.trim()
    assert left.exists()  # a living process may be at it
    os.utime(left, (0, 0))
    cache.trim()
    assert leftovers(cache.root) == [] and cache.find(key_of("a"))


@posix
def test_killed_at_any_moment_all_that_was_told_is_there(cache):
    first, told = 0, []
    for _ in range(8):
        process = started("keep_for_ever", cache.root, first)
        process.stdout.readline()
        time.sleep(random.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        told += [first, *map(int, process.communicate()[0].split())]
        first = told[-1] + 1
    assert cache.verify() == []
    for name in told:
        result = cache.find(key_of(name))
        assert result.about["text"] == str(name) and is_whole(result.file("clip.mkv").read_bytes())
    assert len(cache.entries()) <= len(told) + 8  # the last of each may be there, untold
    assert is_whole(keep(cache, first).file("clip.mkv").read_bytes())


def test_of_two_processes_on_one_key_one_wins_and_both_get_it(cache, tmp_path):
    both = [
        started("race", cache.root, tmp_path / own, tmp_path / other, 60) for own, other in (("a", "b"), ("b", "a"))
    ]
    said = [process.communicate()[0].splitlines() for process in both]
    assert len(said[0]) == 60 and said[0] == said[1]
    assert all(line.split()[1] == "True" for line in said[0])
    assert len({line.split()[0] for line in said[0]}) > 30  # of different sizes
    assert leftovers(cache.root) == [] and cache.verify() == [] and cache.generation() == ""


def test_who_reads_while_another_removes_and_rewrites_gets_the_one_or_the_other(cache, caplog):
    process = started("rewrite", cache.root, "a", 300)
    served = {}
    while process.poll() is None:
        if result := cache.find(key_of("a")):
            try:
                content = result.file("clip.mkv").read_bytes()
            except FileNotFoundError:
                continue
            assert is_whole(content)
            served[content[:32]] = True
    assert len(served) > 2
    assert caplog.records == []  # nothing whole was taken for damaged
    assert cache.verify() == [] and leftovers(cache.root) == []


def test_what_is_exchanged_while_it_is_read_is_not_taken_for_damaged(cache, caplog):
    process = started("exchange", cache.root, "a", 4000)
    served = set()
    while process.poll() is None:
        if result := cache.find(key_of("a")):
            served.add(result.facts["bytes"])
    assert process.returncode == 0 and len(served) == 2
    assert [record.getMessage() for record in caplog.records] == [] and leftovers(cache.root) == []


def test_a_removal_that_goes_on_is_no_leftover(cache):
    """A process that sweeps up sees an old folder under a name of old leftovers."""
    folder = keep(cache, 1).folder
    os.utime(folder, (0, 0))

    def still(aside: Path) -> bool:
        cache.trim()
        assert is_whole((aside / "clip.mkv").read_bytes())
        return False

    assert not cache._remove(folder, still) and cache.find(key_of(1))


def test_what_was_found_is_not_evicted_by_another_process_in_the_same_moment(cache, tmp_path):
    found, lost, pause = [], 0, 0.001
    process = started("trim_until", cache.root, tmp_path / "stop")
    for name in range(1000):
        keep(cache, name, 100)
        age(cache, name)
        time.sleep(random.random() * pause)
        if cache.find(key_of(name)):
            found.append(name)
            pause *= 1.1
        else:
            lost += 1
            pause /= 1.1
        if len(found) >= 60 and lost >= 60:
            break
    (tmp_path / "stop").touch()
    process.communicate()
    assert process.returncode == 0
    assert all(cache.find(key_of(name)) for name in found)
    assert found and lost, (len(found), lost)  # both happened, or this shows nothing
