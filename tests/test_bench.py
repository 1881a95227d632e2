"""`ksgen bench tabletop` on tiny untrained models and judges: the road is whole, the report has its promised form."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("skia", reason="Tabletop is drawn with skia-python: pip install -e .[tabletop]")
pytest.importorskip("cv2", reason="motion distance needs opencv-python-headless")

from ksgen_core.cli import main
from ksgen_core.keysteps.policies import POLICIES
from ksgen_core.metrics.tabletop_judge import CLIP_FRAMES, Judge, JudgeConfig
from ksgen_core.tabletop.skills import all_texts
from ksgen_core.training import sdxl_folder, wan_folder
from ksgen_core.training.judges import JUDGE_OUTPUTS
from ksgen_core.training.pool import STEPS


def test_the_report_names_every_split_policy_and_figure(tmp_path):
    models, judges, reports = (tmp_path / name for name in ("models", "judges", "reports"))
    sdxl_folder.new_sdxl_folder(models, all_texts(), sdxl_folder.TINY)
    wan_folder.new_wan_folder(models, all_texts(), wan_folder.TINY)
    judges.mkdir()
    Judge(JudgeConfig(1, JUDGE_OUTPUTS, 8)).save(judges / "state_judge.safetensors")
    Judge(JudgeConfig(len(CLIP_FRAMES), (len(STEPS),), 8)).save(judges / "action_judge.safetensors")
    places = ["--models", str(models), "--judges", str(judges), "--reports", str(reports)]
    assert main(["bench", "tabletop", "--instances", "2", "--clips", "1", *places]) == 0
    report = json.loads((reports / "tabletop.json").read_text())
    assert report["judge"].keys() >= {"state", "action"}
    for split in ("seen", "unseen"):
        assert report[split].keys() == set(POLICIES)
        for figures in report[split].values():
            wanted = {"state_accuracy", "scene_consistency", "action_accuracy", "motion_distance", "seconds"}
            assert figures.keys() >= wanted
            assert 0 <= figures["state_accuracy"] <= 1 and figures["motion_distance"] > 0
            assert figures["clips"] == 1
    assert {"command", "seeds", "commit", "machine"} <= report["run"].keys()
    assert "| seen | skill_transformer |" in (reports / "tabletop.md").read_text()
