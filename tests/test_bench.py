"""`ksgen bench tabletop` on tiny untrained models and judges: the road is whole, the report has its promised form."""

from __future__ import annotations

import json

import pytest
from PIL import Image

pytest.importorskip("skia", reason="Tabletop is drawn with skia-python: pip install -e .[tabletop]")
pytest.importorskip("cv2", reason="motion distance needs opencv-python-headless")

from ksgen_core.cli import main
from ksgen_core.metrics.tabletop_judge import CLIP_FRAMES, Judge, JudgeConfig
from ksgen_core.tabletop.skills import all_texts
from ksgen_core.training import sdxl_folder, wan_folder
from ksgen_core.training.judges import JUDGE_OUTPUTS
from ksgen_core.training.pool import STEPS


def test_the_report_names_every_split_policy_and_figure(tmp_path):
    models, judges = (tmp_path / name for name in ("models", "judges"))
    sdxl_folder.new_sdxl_folder(models, all_texts(), sdxl_folder.TINY)
    wan_folder.new_wan_folder(models, all_texts(), wan_folder.TINY)
    judges.mkdir()
    Judge(JudgeConfig(1, JUDGE_OUTPUTS, 8)).save(judges / "state_judge.safetensors")
    Judge(JudgeConfig(len(CLIP_FRAMES), (len(STEPS),), 8)).save(judges / "action_judge.safetensors")
    places = ["--models", str(models), "--judges", str(judges)]
    found = []
    for workers in ("1", "2"):
        reports = tmp_path / workers
        few = ["--instances", "2", "--clips", "1", "--workers", workers, "--reports", str(reports)]
        assert main(["bench", "tabletop", *few, *places]) == 0
        found.append(json.loads((reports / "tabletop.json").read_text()))
    report = found[0]
    assert report["judge"].keys() >= {"state", "action"}
    for split in ("seen", "unseen"):
        assert report[split].keys() == {"skill_transformer", "reference", "text_only", "last_frame", "initial"}
        # Every policy is judged on the same steps.
        assert len({figures["key_images"] for figures in report[split].values()}) == 1
        for policy, figures in report[split].items():
            assert figures.keys() >= {"state_accuracy", "scene_consistency", "action_accuracy", "motion_distance"}
            assert figures["motion_distance"] > 0 and figures["clips"] == 1 and figures["seconds_per_clip"] > 0
            assert (figures["seconds_per_key_image"] > 0) == (policy not in ("initial", "last_frame"))
            again = found[1][split][policy]
            assert {k: v for k, v in again.items() if "seconds" not in k} == {
                k: v for k, v in figures.items() if "seconds" not in k
            }
    with Image.open(reports / "tabletop.jpg") as picture:
        assert picture.height > 4 * 4 * 32
    assert {"command", "seeds", "commit", "machine"} <= report["run"].keys()
    assert "| seen | skill_transformer |" in (reports / "tabletop.md").read_text()


def test_a_count_that_is_none_is_refused_before_anything_is_measured(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "tabletop", "--clips", "0"])
    assert "from 1" in capsys.readouterr().err
