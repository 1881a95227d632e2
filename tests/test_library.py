"""The skill library: its format, what may be in the built-in one, and what other people's data become."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace

import pytest

from ksgen_core.cli import main
from ksgen_core.errors import KSGenError
from ksgen_core.retrieval.check import faults
from ksgen_core.retrieval.importers import (
    import_coin,
    import_crosstask,
    import_egoexo,
    import_htstep,
    import_lists,
    import_wikihow,
)
from ksgen_core.retrieval.library import BUILT_IN, Skill, SkillStep, read_library, write_library
from ksgen_core.types import KeyStep, Plan

TEA = Skill(
    "make tea",
    (
        SkillStep("put a tea bag into the mug", "An empty white mug stands there.", "A tea bag hangs in the mug.", 3.0),
        SkillStep("stir the tea with a spoon", optional=True),
    ),
    ("brew a cuppa",),
    "drinks",
    "ours",
    "Apache-2.0",
)


def test_a_skill_survives_json_and_a_file(tmp_path):
    assert Skill.from_json(json.loads(json.dumps(TEA.to_json()))) == TEA
    least = Skill("wave", (SkillStep("raise the hand"),))
    assert least.to_json().keys() == {"kind", "goal", "steps"}
    assert write_library([TEA, least], tmp_path / "a.jsonl") == 2
    write_library([least], tmp_path / "b.jsonl")
    assert read_library(tmp_path) == (TEA, least, least)
    assert read_library(tmp_path / "b.jsonl", tmp_path / "a.jsonl") == (least, TEA, least)


def test_a_plan_file_is_a_library_too():
    plan = Plan("make tea", (KeyStep("boil water", seconds=2.0, seed=4),), ("somewhere",))
    assert Skill.from_json(plan.to_json()) == Skill(
        "make tea", (SkillStep("boil water", seconds=2.0),), source="somewhere"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"goal": " "}, "goal is empty"),
        ({"steps": []}, "no steps"),
        ({"steps": [{"text": ""}]}, "text that is not empty"),
        ({"steps": [{"text": "x", "optional": 1}]}, "optional must be of type bool"),
        ({"steps": [{"text": "x", "seconds": 0}]}, "more than 0"),
        ({"aliases": [""]}, "aliases"),
        ({"kind": "ksgen.skill/2"}, "wanted 'ksgen.skill/1'"),
        ({"author": "me"}, "unknown field"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path, change, says):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(TEA.to_json()) + "\n\n" + json.dumps(TEA.to_json() | change) + "\n", encoding="utf-8")
    with pytest.raises(KSGenError, match=f"Line 3 of .*mine.jsonl is no skill: .*{says}"):
        read_library(path)


def test_places_without_a_library_are_named(tmp_path):
    for place in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(KSGenError, match="holds no skill library"):
            read_library(place)


def test_the_built_in_library_is_large_and_keeps_the_rules():
    skills = read_library(BUILT_IN)
    assert len(skills) >= 300 and len({skill.domain for skill in skills}) >= 14
    assert [(skills[n].goal, fault) for n, fault in faults(skills)] == []
    assert {skill.licence for skill in skills} == {"Apache-2.0"}
    assert all(skill.source.startswith(f"ksgen:{skill.domain.replace(' ', '-')}/") for skill in skills)
    assert len({skill.source for skill in skills}) == len(skills)
    assert all(step.before and step.after and step.seconds for skill in skills for step in skill.steps)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"goal": "tea"}, "goal has 1 word"),
        ({"steps": TEA.steps[:1]}, "has 1 step"),
        ({"steps": (TEA.steps[0], replace(TEA.steps[0], text="wait for the tea to brew"))}, "says 'wait'"),
        ({"steps": (TEA.steps[0], replace(TEA.steps[0], text="stir it"))}, "wanted 3 to 16"),
        ({"steps": (TEA.steps[0], replace(TEA.steps[0], before="A mug"))}, "before is no sentence"),
        ({"steps": (TEA.steps[0], TEA.steps[0])}, "one step twice"),
        ({"domain": ""}, "no domain"),
        ({"licence": ""}, "source and licence"),
    ],
)
def test_the_linter_finds(change, says):
    good = replace(TEA, steps=(TEA.steps[0], replace(TEA.steps[0], text="stir the tea with a spoon")))
    assert list(faults([good])) == []
    assert any(says in fault for _, fault in faults([replace(good, **change)]))


def test_the_linter_finds_near_duplicates():
    again = replace(TEA, goal="make the tea")
    assert any("says the same" in fault for n, fault in faults([TEA, again]) if n == 1)
    other_words = replace(TEA, goal="prepare tea quickly")
    assert any("nearly those of" in fault for n, fault in faults([TEA, other_words]) if n == 1)


COIN = {
    "VID1": {"class": "MakeTea", "annotation": [
        {"id": "2", "segment": [9.0, 12.5], "label": "pour water"},
        {"id": "1", "segment": [1.0, 3.0], "label": "put tea bag"},
    ]},
    "VID2": {"class": "MakeTea", "annotation": []},
}  # fmt: skip


def test_coin_in_both_shapes_with_states(tmp_path):
    official, listed, states = (tmp_path / name for name in ("official.json", "listed.json", "states.json"))
    official.write_text(json.dumps({"database": COIN}))
    listed.write_text(json.dumps([{video: item} for video, item in COIN.items()]))
    said = {"description": "d", "before": ["The cup is empty.", "It is dry."], "after": ["It is full."]}
    states.write_text(json.dumps({"Make Tea": {"pour water": said}}))
    assert list(import_coin(official)) == list(import_coin(listed))
    (skill,) = import_coin(official, states)
    assert (skill.goal, skill.source, skill.licence) == ("make tea", "coin:VID1", "CC BY-NC 4.0")
    assert skill.steps == (
        SkillStep("put tea bag", seconds=2.0),
        SkillStep("pour water", "The cup is empty. It is dry.", "It is full.", 3.5),
    )
    official.write_text(json.dumps({"database": {"VID1": {"class": "MakeTea"}}}))
    with pytest.raises(KSGenError, match="Video VID1"):
        list(import_coin(official))


def test_crosstask_with_and_without_annotations(tmp_path):
    tasks = tmp_path / "tasks.txt"
    tasks.write_text("77\nMake Tea\nhttp://x\n2\nboil water,pour water\n\n78\nToast Bread\nhttp://y\n1\ntoast bread\n")
    assert [s.goal for s in import_crosstask(tasks)] == ["make tea", "toast bread"]
    notes = tmp_path / "annotations"
    notes.mkdir()
    (notes / "77_ab_c.csv").write_text("2,5.0,9.0\n1,1.0,2.0\n2,9.0,10.0\n1,11.0,12.0\n")
    (notes / "99_zz.csv").write_text("1,5.0,9.0\n")
    (skill,) = import_crosstask(tasks, notes)
    assert [s.text for s in skill.steps] == ["boil water", "pour water", "boil water"]
    assert skill.source == "crosstask:ab_c"
    with tarfile.open(tmp_path / "notes.tar.gz", "w:gz") as archive:
        archive.add(notes, "annotations")
    assert list(import_crosstask(tasks, tmp_path / "notes.tar.gz")) == [skill]
    (notes / "77_ab_c.csv").write_text("3,5.0,9.0\n")
    with pytest.raises(KSGenError, match="77_ab_c.csv"):
        list(import_crosstask(tasks, notes))


def test_htstep_gives_one_skill_a_variation(tmp_path):
    path = tmp_path / "taxonomy.csv"
    path.write_text(
        "global_step_index,activity,step_index,variation,variation_index,headline,paragraph\n"
        "0,Make Soup,0,none,1,Chop the onion.,x\n2,Make Soup,2,B,B1,Fry it.,x\n"
        '1,Make Soup,1,A,A1,"Boil, then salt it.",\n'
        "3,Make Ice,0,none,1,Freeze water.,\n"
    )
    assert [(s.goal, [t.text for t in s.steps], s.source) for s in import_htstep(path)] == [
        ("make soup", ["Chop the onion", "Boil, then salt it"], "htstep:Make Soup/A"),
        ("make soup", ["Chop the onion", "Fry it"], "htstep:Make Soup/B"),
        ("make ice", ["Freeze water"], "htstep:Make Ice"),
    ]


def test_egoexo_keeps_what_is_not_essential_as_optional(tmp_path):
    path = tmp_path / "keystep_train.json"
    segment = {
        "start_time": 4.0,
        "end_time": 6.5,
        "step_name": "Stir",
        "step_description": "Stir the pot",
        "is_essential": False,
    }
    first = {"start_time": 1.0, "end_time": 2.0, "step_name": "Fill the pot", "is_essential": True}
    path.write_text(json.dumps({"annotations": {"take": {"scenario": "Cooking Soup", "segments": [segment, first]}}}))
    (skill,) = import_egoexo(path)
    assert skill.goal == "cooking soup"
    assert skill.steps == (
        SkillStep("Fill the pot", seconds=1.0),
        SkillStep("Stir the pot", seconds=2.5, optional=True),
    )


def test_wikihow_takes_goals_whose_order_matters(tmp_path):
    path = tmp_path / "goals.csv"
    path.write_text('goal,steps,ordered?\nHow to Boil Eggs,"Fill a pot. Add eggs.",1\nHow to Dream,"Sleep. Rest.",0\n')
    assert [(s.goal, [t.text for t in s.steps]) for s in import_wikihow(path)] == [
        ("boil eggs", ["Fill a pot", "Add eggs"])
    ]
    path.write_text("aim,steps\n")
    with pytest.raises(KSGenError, match="lacks the column"):
        list(import_wikihow(path))


def test_numbered_lists_of_markdown_and_plain_text(tmp_path):
    path = tmp_path / "mine.md"
    path.write_text("# Boil an egg\n\n1. fill a **pot**\n2) add the egg.\n\nFold a boat:\n 1. fold a sheet\n")
    assert [(s.goal, [t.text for t in s.steps]) for s in import_lists(path)] == [
        ("Boil an egg", ["fill a pot", "add the egg"]),
        ("Fold a boat", ["fold a sheet"]),
    ]
    path.write_text("1. fold a sheet\n")
    with pytest.raises(KSGenError, match="has no goal"):
        list(import_lists(path))


def test_the_command_imports_lists_checks_and_searches(tmp_path, capsys):
    path, out = tmp_path / "mine.md", tmp_path / "mine.jsonl"
    path.write_text("# Boil an egg\n1. fill a pot\n2. add the egg\n")
    assert main(["library", "import", "lists", str(path), "--out", str(out)]) == 0
    assert main(["library", "list", str(out)]) == 0
    assert "1 skills in" in capsys.readouterr().out
    assert main(["library", "check", str(out)]) == 1
    assert "no domain" in capsys.readouterr().err
    assert main(["library", "search", "cook eggs", str(out)]) == 0
    assert "Boil an egg" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["library", "search", "cook eggs", str(out), "--count", "0"])
    assert "a whole number from 1 is wanted, got '0'" in capsys.readouterr().err
    assert main(["library", "import", "coin", str(path), "--out", str(out)]) == 1
    assert "not JSON" in capsys.readouterr().err
