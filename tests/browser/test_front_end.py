"""The real front end in headless Chromium loads the template, queues it and shows no error of ours.

Needs the development extras (playwright), a Chromium or Chrome, and a ComfyUI as the host tests do.
"""

from __future__ import annotations

import os
import shutil

import pytest

pytest.importorskip(
    "playwright.sync_api", reason="NO PLAYWRIGHT, so the front end was not tested: pip install -e .[dev]"
)

from comfy_server import HOW_TO_GET_A_HOST, PACK, Server, find_host, new_base_folder  # noqa: E402
from graph import prompt_of  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def browser_path() -> str | None:
    """The browser to drive: CHROMIUM, else the first one found."""
    return os.environ.get("CHROMIUM") or next((path for name in BROWSERS if (path := shutil.which(name))), None)


if find_host() is None:
    pytest.skip(f"NO COMFYUI FOUND, so the front end was not tested. {HOW_TO_GET_A_HOST}", allow_module_level=True)
if browser_path() is None:
    pytest.skip(
        "NO CHROMIUM FOUND, so the front end was not tested. Install one (Debian: apt-get install chromium) or set "
        "CHROMIUM to its path.",
        allow_module_level=True,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    server = Server(new_base_folder(tmp_path_factory.mktemp("browser") / "base"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def page(server: Server):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(server.url)
        page.wait_for_function("() => window.app?.extensionManager && window.app.rootGraph", timeout=120_000)
        yield page
        browser.close()


def load_template(page: Page, name: str) -> list[str]:
    """Load a template as the template dialog does; what the console said against us meanwhile."""
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.evaluate(
        """async ([pack, name]) => {
            const graph = await (await fetch(`/api/workflow_templates/${pack}/${name}.json`)).json()
            await window.app.loadGraphData(graph, true, true, name)
        }""",
        [PACK, name],
    )
    page.wait_for_timeout(1000)
    return [line for line in complaints if "KSGen" in line or PACK in line or "ks-gen" in line.lower()]


@pytest.mark.parametrize("name", ["quickstart", "native-clips", "plan-only", "plan-native-llm"])
def test_the_front_end_loads_a_template_and_makes_the_prompt_that_the_host_tests_run(
    page: Page, server: Server, name: str
):
    assert load_template(page, name) == []
    made = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert all(node["class_type"] != "MarkdownNote" for node in made.values())
    ours = prompt_of(server.get(f"/api/workflow_templates/{PACK}/{name}.json"), server.get("/object_info"))
    assert {number: node["class_type"] for number, node in made.items()} == {
        number: node["class_type"] for number, node in ours.items()
    }
    for number, node in ours.items():
        if node["class_type"].startswith("KSGen"):
            assert made[number]["inputs"] == node["inputs"]


def test_names_and_help_are_shown(page: Page):
    load_template(page, "quickstart")
    titles = page.evaluate("() => window.app.rootGraph.nodes.map(node => node.title)")
    assert {"Plan a Skill", "Draw Key Steps", "Render Clips", "Join Clips", "Storyboard Sheet"} <= set(titles)
    missing = page.evaluate("() => window.app.rootGraph.nodes.filter(node => node.has_errors).map(node => node.type)")
    assert missing == []


def test_the_front_end_queues_the_quickstart(page: Page, server: Server):
    load_template(page, "quickstart")
    page.evaluate("async () => { await window.app.queuePrompt(0) }")
    for _ in range(100):
        history = server.get("/history")
        queue = server.get("/queue")
        if history or queue["queue_running"]:
            break
        page.wait_for_timeout(200)
    assert history or queue["queue_running"], "the front end queued nothing"
    prompt_id = next(iter(history), None) or queue["queue_running"][0][1]
    entry = server.wait(prompt_id, seconds=900)
    assert entry["status"]["completed"], entry["status"]


def test_a_plan_is_shown_taken_over_and_edited_on_its_node(page: Page, server: Server):
    load_template(page, "plan-only")
    saved = page.evaluate("() => JSON.stringify(window.app.rootGraph.serialize())")
    page.evaluate("async () => { await window.app.queuePrompt(0) }")
    nodes = """type => window.app.rootGraph.nodes.find(node => node.type === type).widgets"""
    shown = f"""type => ({nodes})(type).find(widget => widget.name === 'shown').element.value"""
    page.wait_for_function(f"() => ({shown})('KSGenEditPlan').startsWith('1. ')", timeout=120_000)
    assert page.evaluate(shown, "KSGenRetrieveExamples").startswith("found by words")
    # What is only shown is no part of the graph.
    assert page.evaluate("() => JSON.stringify(window.app.rootGraph.serialize())") == saved
    page.evaluate(f"() => ({nodes})('KSGenEditPlan').find(widget => widget.type === 'button').callback()")
    made = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    edit = next(node for node in made.values() if node["class_type"] == "KSGenEditPlan")
    # Of another graph run before in this page the front end may add a preview to a node of the same number.
    assert {"plan", "text"} <= set(edit["inputs"]) and not {"shown", "edit these lines"} & set(edit["inputs"])
    assert edit["inputs"]["text"] == page.evaluate(shown, "KSGenEditPlan")
