"""`ksgen cache`: what it lists, what it removes, and what it finds damaged."""

from __future__ import annotations

import json
import os
import time

import pytest
from cache_process import key_of, writing

from ksgen_core.cache import ResultCache, default_root
from ksgen_core.cli import main
from ksgen_core.cli_cache import _size

DAY = 24 * 3600
TEXTS = ("Fill the kettle", "Boil the water", "Pour it on the leaves")


@pytest.fixture
def cache(tmp_path):
    """Three steps of a loop, made 0, 1 and 2 weeks ago; the last is locked."""
    cache = ResultCache(tmp_path / "results")
    for number, text in enumerate(TEXTS):
        about = {"loop": "clips", "goal": f"Make tea {number}", "step": number + 1, "text": text}
        result = cache.keep(key_of(text), writing(b"x" * 5000), about)
        os.utime(result.folder / "entry.json", (time.time() - (7 * number * DAY + 60),) * 2)
    cache.remember(key_of("step 3"), key_of(TEXTS[2]), True)
    os.utime(result.folder / "entry.json", (time.time() - (14 * DAY + 60),) * 2)
    return cache


def ksgen(cache: ResultCache, *words: str) -> int:
    return main(["cache", *words, "--folder", str(cache.root)])


def left(cache: ResultCache) -> set[str]:
    return {result.about["text"] for result in cache.entries()}


def test_the_list_shows_each_step_and_what_all_take(cache, capsys):
    assert ksgen(cache, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {text: next(line for line in lines if line.endswith(text)) for text in TEXTS}
    for number, (text, row) in enumerate(rows.items(), 1):
        key, day, _clock, size, unit, loop, step, *rest = row.split()
        assert key_of(text).startswith(key) and len(key) == 12
        assert day.startswith("20") and (float(size) > 5, unit, loop, step) == (True, "kB", "clips", str(number))
        assert (rest[0] == "*") == (number == 3)
    assert lines[0].split() == ["key", "made", "size", "loop", "step", "text"]
    assert lines[-1].startswith("3 results, ") and str(cache.root) in lines[-1]


def test_the_list_as_json_tells_all(cache, capsys):
    assert ksgen(cache, "list", "--json") == 0
    listed = {item["key"]: item for item in json.loads(capsys.readouterr().out)}
    for result in cache.entries():
        item = listed.pop(result.key)
        assert (item["about"], item["facts"], item["bytes"]) == (result.about, result.facts, result.bytes)
        assert item["locked"] == (result.about["step"] == 3) and item["made"] == result.made
    assert listed == {}


def test_nothing_made_yet_is_no_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KSGEN_CACHE", str(tmp_path / "none"))
    for words in (["list"], ["clear"], ["verify"]):
        assert main(["cache", *words]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"0 results, 0 bytes in {tmp_path / 'none'}"
    assert main(["cache", "list", "--json"]) == 0 and json.loads(capsys.readouterr().out) == []
    assert not (tmp_path / "none").exists()


def test_the_folder_must_be_known_and_there(cache, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("KSGEN_CACHE", raising=False)
    if default_root() is None:  # the pack may be tested where it is installed
        assert main(["cache", "list"]) == 1
        told = capsys.readouterr().err
        assert "--folder" in told and "KSGEN_CACHE" in told
    assert main(["cache", "clear", "--folder", str(tmp_path / "typo")]) == 1
    assert str(tmp_path / "typo") in capsys.readouterr().err
    assert len(left(cache)) == 3


@pytest.mark.parametrize(
    ("words", "stay"),
    [
        ([], {2}),
        (["--locked"], set()),
        (["--older-than", "7"], {0, 2}),
        (["--older-than", "7", "--locked"], {0}),
        (["--older-than", "100"], {0, 1, 2}),
        (["--older-than", "0"], {2}),
        (["--goal", "TEA 0"], {1, 2}),
        (["--goal", "coffee", "--locked"], {0, 1, 2}),
        (["--key", key_of(TEXTS[0])[:6]], {1, 2}),
        (["--key", key_of(TEXTS[0])[:6].upper(), "--key", key_of(TEXTS[1])], {2}),
        (["--key", key_of(TEXTS[2])[:6]], {0, 1, 2}),
        (["--key", key_of(TEXTS[0])[:6], "--older-than", "3"], {0, 1, 2}),
    ],
)
def test_clear_removes_what_fits_all_options(cache, capsys, words, stay):
    before = sum(result.bytes for result in cache.entries())
    assert ksgen(cache, "clear", *words) == 0
    assert left(cache) == {TEXTS[number] for number in stay}
    freed = before - sum(result.bytes for result in cache.entries())
    gone = 3 - len(stay)
    told = capsys.readouterr().out
    assert told.startswith(f"removed {gone} result{'' if gone == 1 else 's'}, {_size(freed)} freed\n")
    spared = 2 in stay and words in ([], ["--older-than", "7"], ["--older-than", "0"], ["--key", key_of(TEXTS[2])[:6]])
    assert ("--locked" in told) == spared


def test_clear_knows_the_keys_it_is_given(cache, capsys):
    assert ksgen(cache, "clear", "--key", "zz", "--key", key_of(TEXTS[0])[:6]) == 1
    assert "'zz'" in capsys.readouterr().err and len(left(cache)) == 3


@pytest.mark.parametrize("days", ["-1", "soon", "nan"])
def test_days_are_a_number(cache, capsys, days):
    with pytest.raises(SystemExit):
        ksgen(cache, "clear", "--older-than", days)
    assert days in capsys.readouterr().err and len(left(cache)) == 3


def test_clear_takes_damaged_results_too(cache):
    folder = cache.find(key_of(TEXTS[0])).folder
    (folder / "entry.json").write_text("{")
    assert ksgen(cache, "clear", "--goal", "tea") == 0 and folder.exists()
    assert ksgen(cache, "clear") == 0 and not folder.exists()


def test_verify_names_what_is_damaged_and_removes_it_when_asked(cache, capsys):
    assert ksgen(cache, "verify") == 0
    assert capsys.readouterr().out == "0 damaged\n"
    cache.find(key_of(TEXTS[1])).file("clip.mkv").write_bytes(b"y" * 5000)
    (cache.find(key_of(TEXTS[2])).folder / "entry.json").write_text("{")
    assert ksgen(cache, "verify") == 1
    told = capsys.readouterr()
    assert told.out == "2 damaged\n"
    assert f"{key_of(TEXTS[1])[:12]} (clips step 2: {TEXTS[1]}): clip.mkv has another checksum" in told.err
    assert f"{key_of(TEXTS[2])[:12]}: entry.json" in told.err
    assert ksgen(cache, "verify", "--remove") == 0
    assert capsys.readouterr().out == "2 damaged, 2 removed\n"
    assert left(cache) == {TEXTS[0]} and ksgen(cache, "verify") == 0


def test_texts_cannot_steer_the_terminal(cache, capsys):
    cache.keep(key_of("x"), writing(b""), {"loop": "a\x1b[2Jb", "step": 1, "text": "one\ntwo\r" + "long " * 40})
    assert ksgen(cache, "list") == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told and "one two long" in told and max(map(len, told.splitlines())) < 160


def test_sizes_are_said_as_on_disks():
    assert [_size(count) for count in (0, 999, 1000, 12_345_678, 5 * 10**10, 2 * 10**13)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "12.3 MB",
        "50.0 GB",
        "20000.0 GB",
    ]


def test_help_is_the_commands_own(capsys):
    for words, part in ((["--help"], "verify"), (["clear", "--help"], "--older-than")):
        with pytest.raises(SystemExit):
            main(["cache", *words])
        assert part in capsys.readouterr().out
