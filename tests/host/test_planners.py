"""Every planner and every planning node, in a real ComfyUI server."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from comfy_server import NodeFailed, Server
from conftest import GOAL, TEXTS
from openai_server import Server as OpenAiServer
from openai_server import echo_key, stall, stream
from test_run import Prompt, node

REPLY = '{"steps":[{"text":"boil water"},\n {"text": "pour it over the tea"}]}'
TEXTS_WRITTEN = ["boil water", "pour it over the tea"]
WRITING = {"planner.fewest": 2, "planner.most": 7, "planner.max_tokens": 400, "planner.temperature": 0.0}


def planning(planner: dict | None = None, **inputs) -> Prompt:
    """Picture -> plan, shown as JSON."""
    chosen = {} if planner is None else {"planner.seed": 1, **planner}
    return {
        "picture": node("EmptyImage", width=64, height=48, batch_size=1, color=0x336699),
        "models": node("KSGenLoadModels", folder="tiny"),
        "plan": node("KSGenPlanSkill", models=["models", 0], image=["picture", 0], goal=GOAL, **chosen, **inputs),
        "show": node("PreviewAny", source=["plan", 1]),
    }


def shown(server: Server, prompt: Prompt, name: str = "show") -> str:
    return server.run(prompt)[name]["text"][0]


def texts(plan: str) -> list[str]:
    return [step["text"] for step in json.loads(plan)["steps"]]


def test_a_graph_saved_before_there_were_planners_still_plans(server: Server):
    assert texts(shown(server, planning())) == TEXTS


def test_retrieval_keeps_to_the_limits(server: Server):
    prompt = planning({"planner": "retrieval", "planner.fewest": 1, "planner.most": 2})
    assert len(texts(shown(server, prompt))) == 2
    prompt = planning({"planner": "retrieval", "planner.fewest": 5, "planner.most": 3})
    with pytest.raises(NodeFailed, match="'fewest steps' is 5"):
        server.run(prompt)


def test_a_goal_that_the_models_do_not_know_is_looked_up_among_everyday_skills(server: Server):
    prompt = planning({"planner": "retrieval", "planner.fewest": 2, "planner.most": 7})
    prompt["plan"]["inputs"]["goal"] = "change a flat car tyre"
    plan = shown(server, prompt)
    assert "wheel" in plan and json.loads(plan)["planner"].startswith("retrieval")


def test_a_language_model_in_a_folder_writes_a_plan(server: Server):
    plan = json.loads(
        shown(server, planning({"planner": "mllm", "planner.model": "tiny", "planner.hub_id": "", **WRITING}))
    )
    assert 2 <= len(plan["steps"]) <= 7 and plan["planner"] == "mllm"


def test_the_embedded_language_model_plans_for_the_example_picture(server: Server):
    choice = {"planner": "mllm", "planner.model": "embedded", "planner.hub_id": "", **WRITING}
    prompt = planning(choice)
    prompt["models"]["inputs"]["folder"] = "embedded"
    prompt["picture"] = node("LoadImage", image="ksgen_example.png")
    plan = json.loads(shown(server, prompt))
    assert plan["planner"] == "mllm" and any("tea" in step["text"] for step in plan["steps"])


def test_a_language_model_is_freed_after_its_plan(server: Server):
    prompt = planning({"planner": "mllm", "planner.model": "tiny", "planner.hub_id": "", **WRITING, "planner.seed": 2})
    prompt["held"] = node("TestModelsHeld", after=["plan", 1])
    prompt["show_held"] = node("PreviewAny", source=["held", 0])
    assert "Gemma3" not in shown(server, prompt, "show_held")
    assert "Requested to load Gemma3ForConditionalGeneration" in server.log()


def test_writing_shows_progress_and_stops_when_cancelled(server: Server):
    """The untrained model would write to its last token; the host's progress comes for every token."""
    client = uuid.uuid4().hex
    choice = {"planner": "mllm", "planner.model": "tiny", "planner.hub_id": "", **WRITING}
    choice |= {"planner.max_tokens": 1500, "planner.fewest": 7, "planner.temperature": 1.0}
    with server.listen(client) as messages:
        number = server.queue(planning(choice), client)
        while True:
            message = messages.next()
            assert not isinstance(message, dict) or message["type"] != "execution_error", message
            if isinstance(message, dict) and message["type"] == "progress" and message["data"]["value"] >= 3:
                assert message["data"]["max"] == 1500
                break
        server.post("/interrupt", {})
        entry = server.wait(number, 60)
    kinds = [kind for kind, _ in entry["status"]["messages"]]
    assert "execution_interrupted" in kinds and "execution_error" not in kinds


def test_a_model_that_is_nowhere_is_named(server: Server):
    choice = {"planner": "mllm", "planner.model": "tiny", "planner.hub_id": "/nowhere", **WRITING}
    with pytest.raises(NodeFailed, match="/nowhere"):
        server.run(planning(choice))


def test_a_model_of_the_hosts_own_writes_a_plan(server: Server):
    prompt = planning({"planner": "native", "planner.clip": ["writer", 0], **WRITING})
    prompt["writer"] = node("TestWritingTextEncoder", text=REPLY)
    plan = json.loads(shown(server, prompt))
    assert [step["text"] for step in plan["steps"]] == TEXTS_WRITTEN
    assert plan["planner"] == "native" and plan["goal"] == GOAL


def test_a_native_reply_that_is_no_plan_is_refused_with_the_reply(server: Server):
    prompt = planning({"planner": "native", "planner.clip": ["writer", 0], **WRITING})
    prompt["writer"] = node("TestWritingTextEncoder", text="I cannot plan this today")
    with pytest.raises(NodeFailed, match="I cannot plan this today"):
        server.run(prompt)


def test_a_text_encoder_that_cannot_write_is_refused(server: Server):
    prompt = planning({"planner": "native", "planner.clip": ["mute", 0], **WRITING})
    prompt["mute"] = node("TestMuteTextEncoder")
    with pytest.raises(NodeFailed, match="cannot write text"):
        server.run(prompt)


def test_examples_are_retrieved_shown_and_left_out(server: Server):
    prompt = {
        "library": node("KSGenLoadLibrary", source="Tabletop", embedding="words only"),
        "both": node("KSGenLoadLibrary", source="everyday skills", embedding="words only", library=["library", 0]),
        "examples": node("KSGenRetrieveExamples", library=["both", 0], goal="fold a paper plane", count=3, without=""),
        "count": node("PreviewAny", source=["both", 1]),
    }
    outputs = server.run(prompt)
    preview = outputs["examples"]["text"][0]
    assert preview.startswith("found by words") and "fold the paper" in preview
    assert int(outputs["count"]["text"][0]) > 400
    prompt["examples"]["inputs"]["without"] = "tabletop:plane"
    assert "tabletop:plane" not in server.run(prompt)["examples"]["text"][0]


def test_examples_are_put_in_order_by_the_picture(server: Server):
    prompt = {
        "picture": node("EmptyImage", width=64, height=48, batch_size=1, color=0x336699),
        "library": node("KSGenLoadLibrary", source="Tabletop", embedding="words only"),
        "examples": node(
            "KSGenRetrieveExamples",
            library=["library", 0],
            goal="make a cup of tea",
            count=5,
            without="",
            image=["picture", 0],
            picture_embedding="tiny",
        ),
    }
    preview = server.run(prompt)["examples"]["text"][0]
    assert preview.startswith("found by words, ordered by the picture")
    scores = [float(line.split()[0]) for line in preview.splitlines()[2:] if line[:1].isdigit() or line[:1] == "-"]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True) and len(set(scores)) > 1
    del prompt["examples"]["inputs"]["image"]
    with pytest.raises(NodeFailed, match="Connect the image"):
        server.run(prompt)


def test_a_library_of_the_users_own_is_offered_and_read_again_when_it_changes(server: Server):
    skill = {"kind": "ksgen.skill/1", "goal": "polish a trumpet", "source": "mine"}
    steps = [{"text": "wipe the trumpet with a cloth"}, {"text": "rub polish on the trumpet"}]
    file = server.base / "user" / "ksgen" / "library" / "mine.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**skill, "steps": steps}) + "\n")
    assert "mine.jsonl" in server.get("/object_info")["KSGenLoadLibrary"]["input"]["required"]["source"][1]["options"]
    prompt = {
        "library": node("KSGenLoadLibrary", source="mine.jsonl", embedding="words only"),
        "examples": node("KSGenRetrieveExamples", library=["library", 0], goal="polish a trumpet", count=3, without=""),
        "plan": planning(examples=["examples", 0])["plan"],
        "models": node("KSGenLoadModels", folder="tiny"),
        "picture": node("EmptyImage", width=64, height=48, batch_size=1, color=0),
        "show": node("PreviewAny", source=["plan", 1]),
    }
    assert texts(shown(server, prompt)) == [step["text"] for step in steps]
    file.write_text(json.dumps({**skill, "steps": [*steps, {"text": "hang the trumpet up"}]}) + "\n")
    assert len(texts(shown(server, prompt))) == 3


def test_any_language_model_node_can_plan_through_text(server: Server):
    prompt = {
        "prompt": node("KSGenPlanPrompt", goal=GOAL, fewest=2, most=7, picture=False),
        "show": node("PreviewAny", source=["prompt", 0]),
        "writer": node("TestWritingTextEncoder", text=REPLY),
        "write": node(
            "TextGenerate",
            clip=["writer", 0],
            prompt=["prompt", 0],
            max_length=100,
            sampling_mode="off",
            thinking=False,
        ),
        "plan": node("KSGenPlanFromReply", reply=["write", 0], goal=GOAL, fewest=2, most=7),
        "show_plan": node("PreviewAny", source=["plan", 1]),
    }
    outputs = server.run(prompt)
    assert f'Goal: "{GOAL}"' in outputs["show"]["text"][0]
    assert texts(outputs["show_plan"]["text"][0]) == TEXTS_WRITTEN
    prompt["plan"]["inputs"]["fewest"] = 3
    with pytest.raises(NodeFailed, match=r"it has 2 step\(s\)") as refused:
        server.run(prompt)
    assert "pour it over the tea" in refused.value.message


def test_a_plan_is_edited_by_its_lines(server: Server):
    prompt = planning()
    prompt["edit"] = node("KSGenEditPlan", plan=["plan", 0], text="")
    prompt["show"] = node("PreviewAny", source=["edit", 1])
    outputs = server.run(prompt)
    assert outputs["edit"]["text"][0].splitlines() == [f"{n}. {text}" for n, text in enumerate(TEXTS, 1)]
    prompt["edit"]["inputs"]["text"] = f"{TEXTS[1]} | seed 5\nsip the tea"
    plan = json.loads(shown(server, prompt))
    assert plan["steps"] == [{"text": TEXTS[1], "seed": 5}, {"text": "sip the tea"}]


def test_a_plan_is_made_anew_from_a_step_on(server: Server):
    prompt = planning()
    mine = f"{TEXTS[0]} | seed 9\nwait for a while"
    prompt["edit"] = node("KSGenEditPlan", plan=["plan", 0], text=mine)
    prompt["again"] = node(
        "KSGenReplan", models=["models", 0], plan=["edit", 0], number=2, image=["picture", 0], planner="retrieval",
        **{"planner.fewest": 2, "planner.most": 7},
    )  # fmt: skip
    prompt["show"] = node("PreviewAny", source=["again", 1])
    plan = json.loads(shown(server, prompt))
    assert [step["text"] for step in plan["steps"]] == TEXTS and plan["steps"][0]["seed"] == 9
    prompt["again"]["inputs"]["number"] = 7
    with pytest.raises(NodeFailed, match="the plan has 2"):
        server.run(prompt)


KEY = "sk-secret-7f3a9b5c1d"


def files_with(folder: Path, secret: bytes) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if secret in path.read_bytes()]


def asked_server(server: Server, *answers):
    """A server that speaks OpenAI's protocol, and the choice of it as planner."""
    asked = OpenAiServer(*answers)
    choice = {"planner": "endpoint", "planner.url": asked.url, "planner.model_name": "small", **WRITING}
    return asked, choice | {"planner.send_picture": True, "planner.timeout": 20, "planner.max_tokens": 500}


def test_a_server_writes_a_plan_and_the_key_is_found_nowhere(server: Server):
    """Not in the graph, the pictures and films with it, the logs, the history, whether the plan succeeds or fails."""
    asked, choice = asked_server(server, stream(REPLY), echo_key())
    keys = server.base / "user" / "ksgen" / "keys.json"
    keys.parent.mkdir(parents=True, exist_ok=True)
    keys.write_text(json.dumps({asked.place: KEY}))
    before = set(server.base.rglob("*"))
    with asked:
        prompt = planning(choice)
        prompt["picture_file"] = node("SaveImage", images=["picture", 0], filename_prefix="keys/picture")
        prompt["film"] = node("CreateVideo", images=["picture", 0], fps=8.0)
        prompt["film_file"] = node(
            "SaveVideo", video=["film", 0], filename_prefix="keys/film", format="mp4", codec="h264"
        )
        graph = {"extra_pnginfo": {"workflow": {"nodes": [prompt["plan"]]}}}
        number = server.post("/prompt", {"prompt": prompt, "client_id": "keys", "extra_data": graph})["prompt_id"]
        entry = server.wait(number)
        assert entry["status"]["completed"], entry["status"]
        plan = json.loads(entry["outputs"]["show"]["text"][0])
        assert [step["text"] for step in plan["steps"]] == TEXTS_WRITTEN
        failing = planning(choice | {"planner.seed": 2})
        failed = server.wait(server.queue(failing))
    assert [headers["Authorization"] for _, headers, _ in asked.requests] == [f"Bearer {KEY}"] * 2
    assert "execution_error" in [kind for kind, _ in failed["status"]["messages"]]
    written = [path for path in server.base.rglob("*") if path not in before and path.is_file()]
    assert {path.suffix for path in written} >= {".png", ".mp4"}
    assert any(b"KSGenPlanSkill" in path.read_bytes() for path in written if path.suffix == ".png")
    assert files_with(server.base, KEY.encode()) == [keys]
    assert KEY not in json.dumps([entry, failed, server.get("/history"), server.get("/object_info")])
    assert KEY not in server.log()


def test_waiting_for_a_server_is_cancelled(server: Server):
    asked, choice = asked_server(server, stall)
    client = uuid.uuid4().hex
    with asked, server.listen(client) as messages:
        number = server.queue(planning(choice | {"planner.seed": 3}), client)
        while not asked.requests:
            message = messages.next()
            assert not isinstance(message, dict) or message["type"] != "execution_error", message
            if isinstance(message, dict) and message["type"] == "executing" and message["data"]["node"] == "plan":
                break
        assert asked.came.wait(120)
        server.post("/interrupt", {})
        entry = server.wait(number, 60)
    assert "execution_interrupted" in [kind for kind, _ in entry["status"]["messages"]]
