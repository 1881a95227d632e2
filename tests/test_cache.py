"""Results on disk: what is kept is found again, what must stay stays, and the oldest goes first."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ksgen_core.cache import GRACE, LOCK_KEPT, ResultCache, default_limit, default_root
from ksgen_core.errors import KSGenError

ROOT = Path(__file__).resolve().parent.parent
ABOUT = {"loop": "clips", "goal": "make tea", "step": 3, "text": "Pour the water"}
FACTS = {"kind": "frames", "file": "clip.mkv", "fps": 16.0, "frames": 81}


def key_of(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def writing(payload: bytes, **more: bytes):
    """What fills the folder of a result with `clip.mkv` and, after that, other files."""

    def write(folder: Path):
        (folder / "clip.mkv").write_bytes(payload)
        for name, content in more.items():
            (folder / name).write_bytes(content)
        return FACTS

    return write


def keep(cache: ResultCache, name: object, payload: bytes = b"frames"):
    return cache.keep(key_of(name), writing(payload), {**ABOUT, "text": str(name)})


def age(cache: ResultCache, name: object, seconds: float) -> None:
    """Make it look as if the result had been used last so long ago."""
    then = time.time() - seconds
    os.utime(cache.root / key_of(name)[:2] / key_of(name) / "entry.json", (then, then))


def age_note(cache: ResultCache, name: object, seconds: float) -> None:
    """Make it look as if no run had met the step for so long."""
    then = time.time() - seconds
    os.utime(cache.root / "steps" / key_of(name)[:2] / f"{key_of(name)}.json", (then, then))


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.fixture
def cache(tmp_path):
    return ResultCache(tmp_path / "results")


def test_what_is_kept_is_found_by_any_process(cache):
    kept = cache.keep(key_of(1), writing(b"frames" * 1000, second=b"x"), ABOUT)
    found = ResultCache(cache.root).find(key_of(1))
    assert found is not None
    assert (found.key, found.about, found.facts, found.made) == (kept.key, ABOUT, FACTS, kept.made)
    assert found.folder == kept.folder == cache.root / key_of(1)[:2] / key_of(1)
    assert found.file("clip.mkv").read_bytes() == b"frames" * 1000 and found.file("second").read_bytes() == b"x"
    assert found.bytes == kept.bytes == sum(path.stat().st_size for path in found.folder.iterdir())
    assert abs(time.time() - found.used) < 60
    assert cache.find(key_of(2)) is None


def test_facts_are_the_same_fresh_and_found(cache):
    """What JSON makes of tuples shows at once, not only in the next run."""

    def write(folder):
        (folder / "a").write_bytes(b"")
        return {"size": (3, 4), "note": "ä\ud800"}

    assert cache.keep(key_of(1), write, {}).facts == cache.find(key_of(1)).facts == {"size": [3, 4], "note": "ä\ud800"}


def test_reading_makes_nothing_on_disk(cache):
    assert cache.find(key_of(1)) is None and cache.last(key_of(1)) is None and cache.generation() == ""
    cache.used([key_of(1)])
    assert (cache.entries(), cache.verify(), cache.locked_keys(), cache.clear()) == ([], [], set(), 0)
    assert ResultCache(cache.root, 0).trim() == 0
    assert not cache.root.exists()


@pytest.mark.parametrize("key", ["", "ab", "A" * 64, "g" * 64, "../" + "a" * 61, "a" * 64 + "\n", None, 3])
def test_keys_and_addresses_are_hexadecimal_digits(cache, key):
    for call in (cache.find, cache.last, lambda key: cache.keep(key, writing(b""), {}), lambda key: cache.used([key])):
        with pytest.raises(ValueError, match="64 lowercase hexadecimal digits"):
            call(key)
    with pytest.raises(ValueError):
        cache.remember(key, key_of(1), False)
    with pytest.raises(ValueError):
        cache.remember(key_of(1), key, False)
    assert not cache.root.exists()


def test_the_first_result_under_a_key_stays(cache):
    keep(cache, 1, b"first")
    result = cache.keep(key_of(1), writing(b"the second"), {"text": "other"})
    assert result.file("clip.mkv").read_bytes() == b"first" and result.about["text"] == "1"
    assert names(cache.root) == sorted(
        [key_of(1)[:2], *(f"{key_of(1)[:2]}/{key_of(1)}{end}" for end in ("", "/clip.mkv", "/entry.json"))]
    )


def test_an_error_of_the_writer_passes_and_leaves_nothing(cache, tmp_path):
    class Interrupt(BaseException):
        pass

    def write(folder, error):
        (folder / "clip.mkv").write_bytes(b"half")
        raise error

    for error in (
        Interrupt(),
        RuntimeError("no"),
        ValueError("no"),
        FileNotFoundError(2, "gone", str(tmp_path / "x.mp4")),
    ):
        with pytest.raises(type(error)) as raised:
            cache.keep(key_of(1), lambda folder, error=error: write(folder, error), ABOUT)
        assert raised.value is error
    assert cache.find(key_of(1)) is None and names(cache.root) == [key_of(1)[:2]]


def test_a_result_holds_plain_files(cache, tmp_path):
    (tmp_path / "else.mkv").write_bytes(b"x")
    for make in (
        lambda folder: (folder / "sub").mkdir(),
        lambda folder: (folder / "Entry.json").write_bytes(b""),
        lambda folder: (folder / ".hidden").write_bytes(b""),
        lambda folder: os.symlink(tmp_path / "else.mkv", folder / "clip.mkv"),
    ):
        with pytest.raises(ValueError, match="plain"):
            cache.keep(key_of(1), lambda folder, make=make: make(folder) or {}, ABOUT)
    with pytest.raises(ValueError, match="clip.mkv, not '../x'"):
        keep(cache, 2).file("../x")


def test_the_least_recently_used_go_first(cache):
    sizes = {name: keep(cache, name, os.urandom(1000)).bytes for name in "abcd"}
    for days, name in enumerate("badc", 2):
        age(cache, name, days * GRACE)
    cache.limit_bytes = sum(sizes.values()) - 1
    assert cache.trim() == sizes["c"]
    cache.find(key_of("d"))  # used again
    cache.limit_bytes = sizes["b"] + sizes["d"]
    assert cache.trim() == sizes["a"]
    assert {result.about["text"] for result in cache.entries()} == {"b", "d"}
    assert cache.trim() == 0


def test_needed_locked_and_recent_results_stay(cache):
    for name in ("needed", "locked", "grace", "marked", "old"):
        keep(cache, name)
        age(cache, name, 5 * GRACE)
    age(cache, "grace", GRACE - 100)
    cache.remember(key_of("step"), key_of("locked"), True)
    age(cache, "locked", 5 * GRACE)
    cache.used([key_of("marked"), key_of("never made")])
    other = ResultCache(cache.root, 0)
    other.trim([key_of("needed")])
    assert {result.about["text"] for result in cache.entries()} == {"needed", "locked", "grace", "marked"}
    cache.remember(key_of("step"), key_of("locked"), False)
    for name in ("needed", "locked", "grace", "marked"):
        age(cache, name, GRACE + 100)
    other.trim()
    assert cache.entries() == []


def test_without_a_limit_nothing_is_evicted(cache):
    keep(cache, 1)
    age(cache, 1, 1000 * GRACE)
    assert cache.trim() == 0 and cache.find(key_of(1))


def test_a_time_in_the_future_does_not_keep_a_result_for_ever(cache):
    keep(cache, 1)
    age(cache, 1, -400 * GRACE)
    cache.limit_bytes = 0
    assert cache.trim() > 0


def test_a_step_remembers_its_last_result(cache):
    address = key_of("step 1")
    assert cache.last(address) is None
    cache.remember(address, key_of(1), False)
    assert cache.last(address) == key_of(1) and cache.locked_keys() == set()
    cache.remember(address, key_of(2), True)
    assert ResultCache(cache.root).last(address) == key_of(2) and cache.locked_keys() == {key_of(2)}
    path = cache.root / "steps" / address[:2] / f"{address}.json"
    for broken in (b"", b"{", b"[]", b'{"kind": "other"}', path.read_bytes().replace(key_of(2).encode(), b"../../x")):
        path.write_bytes(broken)
        assert cache.last(address) is None and cache.locked_keys() == set()
    cache.remember(address, key_of(3), False)
    assert cache.last(address) == key_of(3)


def test_notes_of_results_that_are_gone_are_dropped(cache):
    for name in ("a", "b", "c"):
        keep(cache, name)
        cache.remember(key_of(f"step {name}"), key_of(name), name == "c")
    cache.clear([key_of("a")])
    assert [cache.last(key_of(f"step {name}")) for name in "abc"] == [None, key_of("b"), key_of("c")]
    shutil.rmtree(cache.root / key_of("b")[:2] / key_of("b"))
    cache.trim()
    assert cache.last(key_of("step b")) == key_of("b")
    path = cache.root / "steps" / key_of("step b")[:2] / f"{key_of('step b')}.json"
    os.utime(path, (0, 0))
    cache.trim()
    assert cache.last(key_of("step b")) is None and cache.last(key_of("step c")) == key_of("c")


def test_a_lock_that_no_run_has_met_for_long_spares_nothing(cache):
    cache.limit_bytes = 0
    for name in ("abandoned", "met"):
        keep(cache, name)
        cache.remember(key_of(f"step {name}"), key_of(name), True)
        age_note(cache, f"step {name}", LOCK_KEPT - 3600)
        age(cache, name, 5 * GRACE)
    assert cache.trim() == 0, "a quarter of a year is not over"
    for name in ("abandoned", "met"):
        age_note(cache, f"step {name}", LOCK_KEPT + 3600)
    cache.remember(key_of("step met"), key_of("met"), True)  # as every run does, though nothing is new
    age(cache, "met", 5 * GRACE)
    assert cache.clear([key_of("abandoned")]) == 0, "by hand a locked result only goes if that is asked for"
    assert cache.trim() > 0
    assert [result.about["text"] for result in cache.entries()] == ["met"]
    assert cache.last(key_of("step abandoned")) is None and cache.last(key_of("step met")) == key_of("met")


def test_a_result_that_any_lock_in_use_points_to_stays(cache):
    """Equal steps of two plans share it."""
    cache.limit_bytes = 0
    keep(cache, "shared")
    for name in ("old step", "new step"):
        cache.remember(key_of(name), key_of("shared"), True)
    age_note(cache, "old step", 2 * LOCK_KEPT)
    age(cache, "shared", 5 * GRACE)
    assert cache.trim() == 0 and cache.find(key_of("shared"))
    assert cache.last(key_of("old step")) == key_of("shared"), "the old lock would hold again if its plan came back"


def test_clearing_spares_locked_results_unless_asked(cache):
    for name in ("a", "b", "locked"):
        keep(cache, name)
    cache.remember(key_of("step"), key_of("locked"), True)
    assert cache.clear([key_of("a"), key_of("a"), key_of("locked"), key_of("never made")]) > 0
    assert {result.about["text"] for result in cache.entries()} == {"b", "locked"}
    cache.clear()
    assert {result.about["text"] for result in cache.entries()} == {"locked"}
    cache.clear(locked=True)
    assert cache.entries() == [] and cache.locked_keys() == set()


def test_the_generation_changes_with_every_removal_and_only_then(cache):
    seen = [cache.generation()]
    for name in "abc":
        keep(cache, name)
    cache.remember(key_of("step"), key_of("a"), False)
    cache.find(key_of("a"))
    cache.trim()
    assert cache.generation() == seen[0] == ""
    cache.clear([key_of("a")])
    seen.append(ResultCache(cache.root).generation())
    (cache.find(key_of("b")).folder / "clip.mkv").write_bytes(b"other")
    cache.find(key_of("b"))
    seen.append(cache.generation())
    age(cache, "c", 2 * GRACE)
    ResultCache(cache.root, 0).trim()
    seen.append(cache.generation())
    assert len(set(seen)) == 4


def test_leftovers_are_swept_after_a_day(cache):
    kept = keep(cache, 1)
    cache.remember(key_of("step"), key_of(1), True)
    fresh, old = [], []
    for place in (kept.folder.parent, cache.root, cache.root / "steps" / key_of("step")[:2]):
        for name in (".writing-a", ".removed-b"):
            (place / name).mkdir()
            (place / name / "half.mkv").write_bytes(b"x")
            fresh.append(place / name)
            (place / f"{name}.json").write_bytes(b"x")
            os.utime(place / f"{name}.json", (0, 0))
            old.append(place / f"{name}.json")
    cache.trim()
    assert all(path.exists() for path in fresh) and not any(path.exists() for path in old)
    for path in fresh:
        os.utime(path, (0, 0))
    cache.trim()
    assert not any(path.exists() for path in fresh)
    assert cache.find(key_of(1)) and cache.last(key_of("step")) == key_of(1)


def test_what_is_not_ours_is_left_alone(cache):
    cache.root.mkdir()
    (cache.root / "ab").mkdir()
    (cache.root / "ab" / "notes.txt").write_text("mine")
    (cache.root / "ab" / ("c" * 64)).mkdir()  # in the wrong place
    (cache.root / "photos").mkdir()
    before = names(cache.root)
    cache.limit_bytes = 0
    cache.trim()
    cache.clear(locked=True)
    assert names(cache.root) == before and cache.verify() == []


def test_where_results_lie(tmp_path, monkeypatch):
    monkeypatch.delenv("KSGEN_CACHE", raising=False)
    pack = tmp_path / "ComfyUI" / "custom_nodes" / "ks-gen"
    pack.parent.mkdir(parents=True)
    code = "from ksgen_core.cache import default_root; print(default_root())"
    for make in (
        lambda: os.symlink(ROOT, pack),
        lambda: shutil.copytree(
            ROOT / "ksgen_core", pack / "ksgen_core", ignore=shutil.ignore_patterns("mini", "__pycache__")
        ),
    ):
        if pack.is_symlink():
            pack.unlink()
        make()
        run = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[0] = {str(pack)!r}; {code}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.strip() == str(tmp_path / "ComfyUI" / "user" / "ksgen" / "results")
    if ROOT.parent.name != "custom_nodes":
        assert default_root() is None
    monkeypatch.setenv("KSGEN_CACHE", str(tmp_path / "elsewhere"))
    assert default_root() == tmp_path / "elsewhere"


def test_how_much_results_may_take(monkeypatch):
    monkeypatch.delenv("KSGEN_CACHE_GB", raising=False)
    assert default_limit() == 50 * 10**9
    monkeypatch.setenv("KSGEN_CACHE_GB", "0.5")
    assert default_limit() == 5 * 10**8
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("KSGEN_CACHE_GB", wrong)
        with pytest.raises(KSGenError, match=f"KSGEN_CACHE_GB.*{wrong}"):
            default_limit()


KEYS = st.integers(0, 5)


class Life(RuleBasedStateMachine):
    """Any order of calls, damages and ages, against what a dictionary says of them."""

    @initialize()
    def start(self):
        self.place = tempfile.TemporaryDirectory()
        self.cache = ResultCache(Path(self.place.name) / "results")
        self.whole: dict[int, bytes] = {}
        self.damaged: set[int] = set()
        self.old: set[int] = set()
        self.notes: dict[int, tuple[int, bool]] = {}

    def teardown(self):
        if hasattr(self, "place"):
            self.place.cleanup()

    def locked(self) -> set[int]:
        return {name for name, lock in self.notes.values() if lock}

    @rule(name=KEYS, payload=st.binary(max_size=40))
    def keep(self, name, payload):
        result = keep(self.cache, name, payload)
        self.whole.setdefault(name, payload)
        self.damaged.discard(name)
        self.old.discard(name)
        assert result.file("clip.mkv").read_bytes() == self.whole[name]

    @rule(name=KEYS)
    def find(self, name):
        result = self.cache.find(key_of(name))
        if name in self.whole:
            assert result.file("clip.mkv").read_bytes() == self.whole[name] and result.about["text"] == str(name)
        else:
            assert result is None
        self.damaged.discard(name)
        self.old.discard(name)

    @rule(name=KEYS, file=st.sampled_from(["clip.mkv", "entry.json"]))
    def damage(self, name, file):
        path = self.cache.root / key_of(name)[:2] / key_of(name) / file
        if name in self.whole:
            used = path.with_name("entry.json").stat().st_mtime
            path.write_bytes(path.read_bytes() + b"!")
            os.utime(path.with_name("entry.json"), (used, used))
            self.damaged.add(name)
            del self.whole[name]

    @rule(name=KEYS)
    def grow_old(self, name):
        if name in self.whole or name in self.damaged:
            age(self.cache, name, 10 * GRACE)
            self.old.add(name)

    @rule(address=st.integers(0, 2), name=KEYS, lock=st.booleans())
    def remember(self, address, name, lock):
        self.cache.remember(key_of(f"step {address}"), key_of(name), lock)
        self.notes[address] = (name, lock)
        self.old.discard(name)

    @rule(limit=st.integers(0, 3000), needed=st.sets(KEYS))
    def trim(self, limit, needed):
        self.cache.limit_bytes = limit
        before = {result.key: result.bytes for result in self.cache.entries()}
        freed = self.cache.trim(key_of(name) for name in needed)
        may_go = self.old - needed - self.locked()
        gone = {name for name in may_go if not (self.cache.root / key_of(name)[:2] / key_of(name)).exists()}
        assert freed >= sum(before.get(key_of(name), 0) for name in gone)
        for name in gone:
            self.whole.pop(name, None)
        self.damaged -= gone
        self.old -= gone
        total = sum(path.stat().st_size for path in self.cache.root.glob("??/*/*"))
        assert total <= limit or gone == may_go

    @rule(names=st.none() | st.sets(KEYS), lock=st.booleans())
    def clear(self, names, lock):
        self.cache.clear(None if names is None else map(key_of, names), lock)
        gone = set(range(6) if names is None else names) - (set() if lock else self.locked())
        gone &= self.whole.keys() | self.damaged
        self.notes = {address: note for address, note in self.notes.items() if note[0] not in gone}
        for name in gone:
            self.whole.pop(name, None)
        self.damaged -= gone
        self.old -= gone

    @invariant()
    def agrees(self):
        if hasattr(self, "cache"):
            assert {key for key, _ in self.cache.verify()} == {key_of(name) for name in self.damaged}
            assert {result.key for result in self.cache.entries()} >= {key_of(name) for name in self.whole}
            assert self.cache.locked_keys() == {key_of(name) for name in self.locked()}
            for address, (name, _) in self.notes.items():
                assert self.cache.last(key_of(f"step {address}")) == key_of(name)
            assert not [path for path in self.cache.root.rglob(".*")]


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=30, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_an_entry_says_what_it_is(cache):
    entry = json.loads((keep(cache, 1).folder / "entry.json").read_text())
    assert entry["kind"] == "ksgen.result/1" and entry["key"] == key_of(1)
    assert entry["files"] == {"clip.mkv": {"bytes": 6, "sha256": hashlib.sha256(b"frames").hexdigest()}}
