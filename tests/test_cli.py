"""The command line on tiny untrained models: a whole run, Ctrl-C and --resume, and every kind of bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from ksgen_core import build, storyboard
from ksgen_core.cli import main
from ksgen_core.errors import KSGenError
from ksgen_core.training import sdxl_folder, wan_folder

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["boil water", "put the tea bag into the mug", "pour hot water from the kettle"]
PLAN = {"kind": "ksgen.plan/1", "goal": "make a mug of tea", "steps": [{"text": text} for text in TEXTS]}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    sdxl_folder.new_sdxl_folder(folder, TEXTS, sdxl_folder.TINY, seed=0)
    wan_folder.new_wan_folder(folder, TEXTS, wan_folder.TINY, seed=0)
    (folder / "library.jsonl").write_text(json.dumps(PLAN) + "\n\n", encoding="utf-8")
    return folder


@pytest.fixture
def picture(tmp_path) -> Path:
    Image.radial_gradient("L").convert("RGBA").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def words(models, picture, out, *more, goal="make a cup of tea"):
    # One at a time, so that what is made again alone is equal bit for bit.
    few = ("--updates", "2", "--clip-updates", "2", "--frames", "5", "--device", "cpu", "--batch", "1")
    return ["run", "--image", str(picture), "--goal", goal, "--out", str(out), "--models", str(models), *few, *more]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_is_whole_and_a_run_with_gaps_is_filled_with_the_same(models, picture, tmp_path, capsys):
    assert main(words(models, picture, tmp_path / "a")) == 0
    told = capsys.readouterr().out
    assert all(text in told for text in TEXTS) and "skill.mp4" in told
    board = storyboard.load(tmp_path / "a")
    assert [step.text for step in board.plan.steps] == TEXTS and board.plan.goal == "make a cup of tea"
    assert board.key_images[1].shape == (*build.open_folder(models).picture_size(board.key_images[0]), 3)

    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name in ("key_images/03.png", "clips/02.mp4", "clips/03.mp4", "skill.mp4", "storyboard.png"):
        (tmp_path / "b" / name).unlink()
    assert main(words(models, picture, tmp_path / "b", "--resume")) == 0
    assert files(tmp_path / "b") == files(tmp_path / "a")

    before = files(tmp_path / "a")
    for more in ((), ("--resume", "--seed", "5"), ("--resume", "--policy", "initial")):
        assert main(words(models, picture, tmp_path / "a", *more)) == 1
        assert "another run" in capsys.readouterr().err
    assert files(tmp_path / "a") == before


def test_a_run_that_has_no_clips_yet_may_go_on_with_other_clips(models, picture, tmp_path, capsys):
    out = tmp_path / "a"
    assert main(words(models, picture, out)) == 0
    before = files(out)
    for name in ("clips/01.mp4", "clips/02.mp4", "clips/03.mp4", "skill.mp4", "storyboard.png"):
        (out / name).unlink(missing_ok=True)
    capsys.readouterr()
    assert main(words(models, picture, out, "--resume", "--clip-updates", "1", "--fps", "5", "--offload", "parts")) == 0
    assert json.loads((out / "run.json").read_text())["render"] == {"updates": 1, "frames": 5, "fps": 5.0}
    after = files(out)
    assert all(after[name] == before[name] for name in before if name.startswith("key_images"))
    assert after["clips/01.mp4"] != before["clips/01.mp4"]
    # Now that there are clips it is another run.
    assert main(words(models, picture, out, "--resume", "--clip-updates", "3")) == 1
    assert "another run" in capsys.readouterr().err


def test_at_most_so_many_steps_and_steps_of_a_file(models, picture, tmp_path, capsys):
    assert main(words(models, picture, tmp_path / "a", "--steps", "1", "--policy", "initial")) == 0
    assert len(storyboard.load(tmp_path / "a").plan.steps) == 1
    assert not list((tmp_path / "a").rglob("02.*"))
    plan = {**PLAN, "goal": "my own", "steps": [{"text": "anything at all", "seed": 4}, {"text": "and so on"}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    out = tmp_path / "b"
    with_file = words(models, picture, out, "--steps", str(tmp_path / "plan.json"), "--policy", "last_frame")
    assert main(with_file) == 1
    assert "Leave --goal out" in capsys.readouterr().err
    at = with_file.index("--goal")
    assert main(with_file[:at] + with_file[at + 2 :]) == 0
    assert [step.seed for step in storyboard.load(out).plan.steps] == [4, 1]
    assert main(["run", "--image", str(picture), "--out", str(tmp_path / "c")]) == 1
    assert "--goal" in capsys.readouterr().err


@pytest.fixture
def demo(models, picture, tmp_path, monkeypatch) -> list[str]:
    """The command of a short demo in `tmp_path / "demo"`, whose picture and models are the tests' own."""
    shutil.copytree(models, tmp_path / "mini")
    shutil.copy(picture, tmp_path / "mini" / "demo.png")
    (tmp_path / "mini" / "demo.json").write_text(json.dumps({"goal": "make tea"}), encoding="utf-8")
    monkeypatch.setattr(build, "MINI", tmp_path / "mini")
    few = ("--policy", "initial", "--clip-updates", "1", "--frames", "5", "--device", "cpu")
    return ["demo", "--out", str(tmp_path / "demo"), *few]


def test_the_demo_replaces_a_former_demo_and_nothing_else(demo, tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(demo) == 0
    before = files(out)
    assert main(demo) == 0 and files(out) == before, "the same again"
    assert main([*demo, "--resume"]) == 0 and files(out) == before, "nothing left to do"
    assert main([*demo, "--seed", "7"]) == 0 and files(out) != before and files(out).keys() == before.keys()
    (out / "run.json").unlink()
    assert main(demo) == 1 and "another run" in capsys.readouterr().err


def test_a_demo_that_cannot_be_made_leaves_the_former_one(demo, models, tmp_path, capsys):
    assert main(demo) == 0
    before = files(tmp_path / "demo")
    broken = []
    for stage in ("keysteps", "clips"):
        name = next((models / stage).rglob("*.safetensors")).relative_to(models)
        broken.append(str(damaged(models, tmp_path / stage, str(name), b"")))
    for change in (
        ("--frames", "16"),
        ("--updates", "0"),
        ("--seed", "-1"),
        ("--device", "cuda:99"),
        *(("--models", folder) for folder in ("nowhere", *broken)),
    ):
        capsys.readouterr()
        assert main([*demo, *change]) == 1
        assert capsys.readouterr().err.startswith("ksgen: ")
        assert files(tmp_path / "demo") == before, change


@pytest.mark.parametrize(
    "lost",
    [
        ("skill.mp4",),
        ("*.*", "key_images/*", "clips/0*"),
        ("plan.json", "skill.mp4", "storyboard.png", "key_images/*", "clips/*"),
    ],
    ids=("while it wrote a clip", "all but that is cleared", "before its plan"),
)
def test_a_demo_that_was_killed_is_made_again(lost, demo, tmp_path):
    out = tmp_path / "demo"
    assert main(demo) == 0
    before = files(out)
    (out / "clips" / "02.mp4").rename(out / "clips" / ".writing-x1.mp4")
    for path in [path for pattern in lost for path in out.glob(pattern)]:
        path.unlink()
    assert main(demo) == 0 and before.items() <= files(out).items()


def test_a_run_that_made_nothing_is_tried_again_in_its_folder(models, picture, tmp_path, capsys):
    long = {**PLAN, "steps": [{"text": f"put tea bag {n} into the mug"} for n in range(40)]}
    (tmp_path / "long.json").write_text(json.dumps(long), encoding="utf-8")
    out = tmp_path / "out"
    assert main(words(models, picture, out, "--steps", str(tmp_path / "long.json"), goal=PLAN["goal"])) == 1
    assert "Split the plan" in capsys.readouterr().err
    assert sorted(files(out)) == ["key_images/01.png", "plan.json", "run.json"]
    Image.new("RGB", (32, 32), "red").save(picture)
    assert main(words(models, picture, out)) == 0
    assert main(words(models, picture, tmp_path / "fresh")) == 0
    assert files(out) == files(tmp_path / "fresh")


@pytest.mark.skipif(os.name != "posix", reason="sends the signal of Ctrl-C")
def test_ctrl_c_keeps_what_is_made_and_resume_goes_on(models, picture, tmp_path):
    out = tmp_path / "out"
    # So many updates that the run would not end by itself before the signal.
    command = words(models, picture, out, "--policy", "initial")
    command[command.index("--clip-updates") + 1] = "1000"
    going = subprocess.Popen([sys.executable, "-m", "ksgen_core.cli", *command], cwd=ROOT, stderr=subprocess.PIPE)
    limit = time.monotonic() + 120
    while not (out / "key_images" / "03.png").exists() and going.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    going.send_signal(signal.SIGINT)
    _, told = going.communicate(timeout=120)
    assert going.returncode == 130, told.decode()
    assert b"go on with --resume" in told and b"Traceback" not in told
    made = files(out)
    assert {"plan.json", "run.json", "key_images/01.png", "key_images/03.png"} <= made.keys()
    assert "skill.mp4" not in made and not any(".writing-" in name for name in made)

    place = storyboard.resume(out, storyboard.run_settings(out) or {})
    assert sorted(place.made().key_images) == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--goal": ""}, "goal is empty"),
        ({"--goal": "launch a rocket to Mars"}, "No step found"),
        ({"--image": "missing.png"}, "not there"),
        ({"--image": "dot.png"}, "1x1"),
        ({"--image": "text.png"}, "cannot be read"),
        ({"--steps": "0"}, "at least 1"),
        ({"--steps": "missing.json"}, "missing.json"),
        ({"--steps": "extra.json"}, "unknown field(s) title"),
        ({"--models": "nowhere"}, "not there"),
        ({"--models": "."}, "neither a keysteps nor a clips folder"),
        ({"--out": "text.png"}, "is a file"),
        ({"--out": "text.png/out"}, "text.png"),
        ({"--seed": "-1"}, "--seed"),
        ({"--updates": "0"}, "updates"),
        ({"--clip-updates": "0"}, "updates"),
        ({"--frames": "16"}, "13 and 17"),
        ({"--gpus": "2"}, "torchrun --nproc-per-node 2"),
        ({"--offload": "layers", "--first-block-cache": "1.5"}, "threshold of FirstBlockCache"),
        ({"--attention": "flash"}, "flash_attn"),
        ({"--clip-size": "100x100"}, "multiples of 16"),
        ({"--key-model": "nowhere"}, "nowhere is not there"),
        ({"--clip-lora": "nowhere.safetensors:0.5"}, "nowhere.safetensors is not there"),
        ({"--clip-lora": "dot.png:50"}, "strength of a LoRA"),
        ({"--device": "cuda:99"}, "'cuda:99' cannot be used"),
        ({"--device": "warp"}, "'warp' cannot be used"),
        ({"--device": "meta"}, "'meta' cannot be used"),
    ],
)
def test_bad_input_is_told_in_one_line_and_writes_nothing(change, says, models, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    (tmp_path / "extra.json").write_text(json.dumps({**PLAN, "title": "x"}), encoding="utf-8")
    before = files(tmp_path)
    command = words(models, picture, "out", "--steps", "2", "--seed", "0")
    for option, value in change.items():
        if option not in command:
            command += [option, ""]
        command[command.index(option) + 1] = value
    assert main(command) == 1
    told = capsys.readouterr().err
    assert told.startswith("ksgen: ") and told.count("\n") == 1 and says in told
    assert files(tmp_path) == before


def damaged(models: Path, folder: Path, name: str, content: bytes | None) -> Path:
    """A copy of the models folder with one file cut, replaced or taken away."""
    shutil.copytree(models, folder)
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    return folder


PICKLE = b"\x80\x04cposix\nsystem\n" * 9


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("keysteps/skill_transformer.safetensors", b""),
        ("keysteps/skill_transformer.safetensors", PICKLE),
        ("keysteps/unet", None),
        ("keysteps/unet", PICKLE),
        ("clips/transformer", None),
        ("clips/transformer", b""),
    ],
    ids=lambda value: (
        value.replace("/", " ") if isinstance(value, str) else "missing" if value is None else f"{len(value)} bytes"
    ),
)
def test_bad_weights_files_are_named_before_anything_is_made(name, content, models, picture, tmp_path, capsys):
    if not name.endswith(".safetensors"):
        name = str(next((models / name).glob("*.safetensors")).relative_to(models))
    folder = damaged(models, tmp_path / "models", name, content)
    assert main(words(folder, picture, tmp_path / "out")) == 1
    told = capsys.readouterr().err
    assert (Path(name).parent.name if content is None else Path(name).name) in told and "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_a_weights_file_of_another_kind_is_refused(models, picture, tmp_path, capsys):
    other = next((models / "keysteps" / "vae").glob("*.safetensors")).read_bytes()
    folder = damaged(models, tmp_path / "models", "keysteps/skill_transformer.safetensors", other)
    assert main(words(folder, picture, tmp_path / "out")) == 1
    assert "wanted ksgen.skill_transformer/1" in capsys.readouterr().err


def test_a_models_folder_says_what_it_lacks(models, tmp_path):
    folder = damaged(models, tmp_path / "models", "clips/transformer/config.json", None)
    with pytest.raises(KSGenError, match="clips/transformer/config.json"):
        build.open_folder(folder).clips()
    (folder / "library.jsonl").write_text(json.dumps(PLAN) + "\n{}\n", encoding="utf-8")
    with pytest.raises(KSGenError, match="library.jsonl, line 2"):
        build.open_folder(folder).library()


def test_help_names_every_command_and_option(capsys):
    for command, wanted in {
        "--help": ("run", "demo", "train", "bench"),
        "run": ("--image", "--goal", "--out", "--steps", "--seed", "--policy", "--resume"),
    }.items():
        with pytest.raises(SystemExit) as leaving:
            main([command] if command == "--help" else [command, "--help"])
        assert leaving.value.code == 0
        told = capsys.readouterr().out
        assert all(word in told for word in wanted)
    with pytest.raises(SystemExit):
        main(["bench", "unknown"])
    assert "tabletop" in capsys.readouterr().err
