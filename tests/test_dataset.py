"""Data sets of records: what is written comes back, in both forms; what is broken is named before any work."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ksgen_core import pixels, video
from ksgen_core.errors import KSGenError
from ksgen_core.training.dataset import (
    Record,
    RecordStep,
    expand_braces,
    read_records,
    write_manifest,
    write_shards,
)


def png(seed, side=16):
    picture = torch.rand(side, side + 8, 3, generator=torch.Generator().manual_seed(seed))
    file = io.BytesIO()
    pixels.to_pil(picture).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "a.mkv"
    video.write_lossless(path, torch.rand(3, 16, 16, 3), 8)
    return path.read_bytes()


def records(film, count=3):
    made = []
    for n in range(count):
        files = {f"{n}/start.png": png(n), "x.y.mkv": film, "next.PNG": png(50 + n)}
        steps = (
            RecordStep("put the tea bag in", f"{n}/start.png", "x.y.mkv", "the mug is empty"),
            RecordStep("gieß heißes Wasser auf", "next.PNG", None, None, "the mug is full"),
        )
        split = "validation" if n == 1 else "train"
        made.append(Record(f"tee-{n}_ü", "make tea", steps, split, files.__getitem__))
    return made


def told(record):
    """Everything but the names of the files."""
    words = [(s.text, s.before, s.after, record.read(s.image), s.clip and record.read(s.clip)) for s in record.steps]
    return record.id, record.goal, record.split, words


def test_a_document_comes_back_equal(film):
    for record in records(film):
        assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize("per_shard", [1, 2, 10])
def test_both_forms_give_back_what_was_written(film, tmp_path, per_shard):
    given = records(film)
    write_shards(tmp_path / "shards", given, per_shard)
    write_manifest(tmp_path / "folder", read_records(tmp_path / "shards"))
    write_shards(tmp_path / "again", read_records(tmp_path / "folder"), per_shard)
    for source in ("shards", "folder", "again"):
        assert [told(r) for r in read_records(tmp_path / source)] == [told(r) for r in given]
    files = [{p.name: p.read_bytes() for p in (tmp_path / s).iterdir()} for s in ("shards", "again")]
    assert files[0] == files[1] and len(files[0]) == -(-3 // per_shard)


def test_a_record_is_a_plan_with_pictures_and_clips(film, tmp_path):
    write_shards(tmp_path / "shards", records(film))
    record = read_records(tmp_path / "shards")[1]
    assert record.plan.goal == "make tea" and record.plan.steps[0].before == "the mug is empty"
    assert record.image(0).shape == (16, 24, 3) and record.image(0).max() <= 1
    (tmp_path / "a.mkv").write_bytes(film)
    with record.clip(0) as clip, record.clip(1) as none:
        assert clip == video.open_clip(tmp_path / "a.mkv") and none is None


def test_shards_are_named_by_folder_file_or_braces(film, tmp_path):
    write_shards(tmp_path, records(film), 1)
    ids = [r.id for r in read_records(tmp_path)]
    assert [r.id for r in read_records(tmp_path / "skills-{00000..00002}.tar")] == ids
    assert [r.id for r in read_records(tmp_path / "skills-0000{2,0}.tar")] == [ids[2], ids[0]]
    assert [r.id for r in read_records(tmp_path / "skills-00001.tar")] == [ids[1]]
    assert expand_braces("{a,b}-{08..10}") == [f"{c}-{n}" for c in "ab" for n in ("08", "09", "10")]
    with pytest.raises(KSGenError, match="skills-00003.tar is not there"):
        read_records(tmp_path / "skills-{00002..00003}.tar")


def test_the_order_of_members_and_their_folder_say_nothing(film, tmp_path):
    write_shards(tmp_path / "a", records(film))
    with tarfile.open(tmp_path / "a/skills-00000.tar") as file:
        members = [(m.name, file.extractfile(m).read()) for m in file]
    with tarfile.open(tmp_path / "turned.tar", "w") as file:
        for name, content in [("./._x.json", b"macOS"), *reversed(members)]:
            member = tarfile.TarInfo("./" + name.removeprefix("./"))
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    assert [told(r) for r in read_records(tmp_path / "turned.tar")] == [told(r) for r in reversed(records(film))]


def test_a_stamp_changes_with_the_files_alone(film, tmp_path):
    write_manifest(tmp_path / "set", records(film))
    before, again = read_records(tmp_path / "set"), read_records(tmp_path / "set")
    (tmp_path / "set" / before[1].steps[0].image).write_bytes(png(99, 32))
    after = read_records(tmp_path / "set")
    assert [r.stamp for r in before] == [r.stamp for r in again]
    assert [a.stamp == b.stamp for a, b in zip(before, after, strict=True)] == [True, False, True]


GOOD = {
    "kind": "ksgen.record/1",
    "id": "a",
    "goal": "make tea",
    "steps": [{"text": "pour", "image": "a.png"}, {"text": "stir", "image": "a.png", "clip": "a.mkv"}],
}
STEP = {"text": "pour", "image": "a.png"}
BROKEN = {
    "no object": [1],
    "no kind": {k: v for k, v in GOOD.items() if k != "kind"},
    "of another kind": GOOD | {"kind": "ksgen.plan/1"},
    "unknown entry": GOOD | {"seed": 1},
    "id with a full stop": GOOD | {"id": "a.b"},
    "id with a path": GOOD | {"id": "../a"},
    "id no text": GOOD | {"id": 3},
    "no goal": GOOD | {"goal": " "},
    "split": GOOD | {"split": "test"},
    "split no text": GOOD | {"split": ["train"]},
    "no steps": GOOD | {"steps": []},
    "steps no list": GOOD | {"steps": {"0": STEP}},
    "step no object": GOOD | {"steps": ["pour"]},
    "step without image": GOOD | {"steps": [{"text": "pour"}]},
    "image null": GOOD | {"steps": [STEP | {"image": None}]},
    "image outside": GOOD | {"steps": [STEP | {"image": "b/../../a.png"}]},
    "image absolute": GOOD | {"steps": [STEP | {"image": "/a.png"}]},
    "image on a Windows drive": GOOD | {"steps": [STEP | {"image": "C:/a.png"}]},
    "image of a name too long": GOOD | {"steps": [STEP | {"image": "a" * 300}]},
    "empty text": GOOD | {"steps": [STEP | {"text": ""}]},
    "before no text": GOOD | {"steps": [STEP | {"before": 3}]},
    "unknown in step": GOOD | {"steps": [STEP | {"video": "a.mkv"}]},
    "image missing": GOOD | {"steps": [STEP | {"image": "c.png"}]},
    "clip missing": GOOD | {"steps": [STEP | {"clip": "c.mkv"}]},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_record_is_named_in_both_forms(name, tmp_path):
    for file in ("a.png", "a.mkv"):
        (tmp_path / file).write_bytes(b"not looked at")
    line = json.dumps(BROKEN[name])
    (tmp_path / "manifest.jsonl").write_text(f"{json.dumps(GOOD | {'id': 'first'})}\n{line}\n")
    with pytest.raises(KSGenError, match=r"manifest\.jsonl, line 2, is not a record: \S") as error:
        read_records(tmp_path)
    if "missing" in name:
        assert "c." in str(error.value)
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for member, content in (("a.json", line.encode()), ("a.a.png", b""), ("a.a.mkv", b"")):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    with pytest.raises(KSGenError, match=r"a\.json of .*a\.tar is not a record: \S"):
        read_records(tmp_path / "a.tar")


def test_ids_are_unique_over_all_shards(film, tmp_path):
    one, two, _ = records(film)
    write_shards(tmp_path / "set", [one, replace(two, id=one.id)], 1)
    with pytest.raises(KSGenError, match=r"skills-00001\.tar has the id of .*skills-00000\.tar"):
        read_records(tmp_path / "set")


def test_a_shard_that_is_no_whole_tar_is_named(film, tmp_path):
    write_shards(tmp_path / "set", records(film))
    path = tmp_path / "set/skills-00000.tar"
    whole = path.read_bytes()
    for part in (whole[:700], whole[: len(whole) // 2], b"", b"\x1f\x8b" + whole):
        path.write_bytes(part)
        with pytest.raises(KSGenError, match="skills-00000.tar|holds no record"):
            read_records(path)


def test_files_without_a_document_and_members_twice_are_refused(film, tmp_path):
    for name, members in (("orphan", ["b.0.png"]), ("twice", ["tee-0_ü.json"])):
        write_shards(tmp_path / name, records(film))
        with tarfile.open(tmp_path / name / "skills-00000.tar", "a") as file:
            for member in members:
                file.addfile(tarfile.TarInfo(member), io.BytesIO())
        with pytest.raises(KSGenError, match=r"no b\.json" if name == "orphan" else "twice"):
            read_records(tmp_path / name)


def test_a_folder_that_is_no_data_set_or_both_is_refused(film, tmp_path):
    with pytest.raises(KSGenError, match="neither manifest.jsonl nor"):
        read_records(tmp_path)
    write_manifest(tmp_path / "set", records(film))
    (tmp_path / "set/a.tar").touch()
    with pytest.raises(KSGenError, match="both"):
        read_records(tmp_path / "set")
    with pytest.raises(KSGenError, match="not empty"):
        write_shards(tmp_path / "set", records(film))


def test_a_picture_or_clip_that_cannot_be_used_is_named_when_it_is_read(film, tmp_path):
    one = records(film)[0]
    for broken in (b"", b"GIF89a", png(0)[:-30], png(0, 8)):
        spoilt = replace(one, read=lambda _, broken=broken: broken, where="record 1 of here")
        with pytest.raises(KSGenError, match="start.png' of record 1 of here cannot be used"):
            spoilt.image(0)
    spoilt = replace(one, read=lambda _: b"no film", where="record 1 of here")
    with pytest.raises(KSGenError, match="x.y.mkv' of record 1 of here cannot be used"), spoilt.clip(0):
        pass


def test_a_killed_writer_leaves_no_data_set(film, tmp_path):
    def one_and_a_half():
        yield records(film)[0]
        raise KeyboardInterrupt

    for write in (write_manifest, write_shards):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "set", one_and_a_half())
        assert not (tmp_path / "set").exists()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["kind", "id", "goal", "split", "steps", "text", "image", "clip", "before", "after"]), json_values
)
def test_any_value_in_any_place_is_taken_or_refused_in_words(place, value):
    step = {"text": "pour", "image": "a.png"}
    document = GOOD | {place: value} if place in (*GOOD, "split") else GOOD | {"steps": [step | {place: value}]}
    try:
        record = Record.from_json(document)
    except KSGenError as error:
        assert str(error)
    else:
        assert Record.from_json(record.to_json()) == record


def test_tabletop_is_a_data_set_of_what_is_trained_on_and_what_is_not(tmp_path):
    pytest.importorskip("skia", reason="Tabletop is drawn with skia-python: pip install -e .[tabletop]")
    from ksgen_core.tabletop.instances import make
    from ksgen_core.training import dataset_tabletop as tabletop

    assert tabletop.main(["--out", str(tmp_path / "set"), "--instances", "2", "--shards", "2", "--workers", "1"]) == 0
    assert tabletop.main(["--out", str(tmp_path / "folder"), "--instances", "2", "--workers", "2"]) == 0
    found = read_records(tmp_path / "set")
    assert [told(r) for r in found] == [told(r) for r in read_records(tmp_path / "folder")]
    assert [(r.id, r.split) for r in found] == [
        *((f"{split}-{seed:06d}", "train") for split in ("train", "mixed") for seed in (0, 1)),
        *((f"{split}-{seed:06d}", "validation") for split in ("train", "mixed") for seed in (6000, 6001)),
    ]
    assert len(list((tmp_path / "set").iterdir())) == 2
    instance = make("mixed", 1)
    record = next(r for r in found if r.id == "mixed-000001")
    assert [s.text for s in record.steps] == list(instance.run.texts)
    assert pixels.to_uint8(record.image(1)).tolist() == instance.first_frame(1).tolist()
    with pytest.raises(KSGenError, match="1 to 6000"):
        tabletop.main(["--out", str(tmp_path / "more"), "--instances", "6001"])
