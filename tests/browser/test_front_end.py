"""The real front end in headless Chromium loads the templates, queues two and shows no error.

Needs the development extras (playwright), a Chromium or Chrome, and a ComfyUI as the host tests do.
"""

from __future__ import annotations

import re

import pytest

pytest.importorskip(
    "playwright.sync_api", reason="NO PLAYWRIGHT, so the front end was not tested: pip install -e .[dev]"
)

from chromium import HOW_TO_GET_CHROMIUM, browser_path  # noqa: E402
from comfy_server import HOW_TO_GET_A_HOST, PACK, REPO, Server, find_host, new_base_folder  # noqa: E402
from graph import prompt_of  # noqa: E402
from playwright.sync_api import ConsoleMessage, Error, Page, sync_playwright  # noqa: E402

if find_host() is None:
    pytest.skip(f"NO COMFYUI FOUND, so the front end was not tested. {HOW_TO_GET_A_HOST}", allow_module_level=True)
if browser_path() is None:
    pytest.skip(f"NO CHROMIUM FOUND, so the front end was not tested. {HOW_TO_GET_CHROMIUM}", allow_module_level=True)

TEMPLATES = sorted(path.stem for path in (REPO / "workflows").glob("*.json"))


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
        # Of files that are not there yet the front end asks their site for the size; here it hears nothing of it.
        page.route(
            lambda url: not url.startswith(server.url),
            lambda route: route.fulfill(headers={"Access-Control-Allow-Origin": "*"}),
        )
        page.goto(server.url)
        page.wait_for_function("() => window.app?.extensionManager && window.app.rootGraph", timeout=120_000)
        yield page
        browser.close()


def load_template(page: Page, name: str) -> list[str]:
    """Load a template as the template dialog does; the errors that the console told of meanwhile."""
    errors: list[str] = []

    def on_message(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    def on_error(error: Error) -> None:
        errors.append(str(error))

    page.on("console", on_message)
    page.on("pageerror", on_error)
    page.evaluate(
        """async ([pack, name]) => {
            const graph = await (await fetch(`/api/workflow_templates/${pack}/${name}.json`)).json()
            await window.app.loadGraphData(graph, true, true, name)
        }""",
        [PACK, name],
    )
    page.wait_for_timeout(1000)
    page.remove_listener("console", on_message)
    page.remove_listener("pageerror", on_error)
    return errors


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_front_end_loads_a_template_and_makes_the_prompt_that_the_host_tests_run(
    page: Page, server: Server, name: str
):
    assert load_template(page, name) == []
    made = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    ours = prompt_of(server.get(f"/api/workflow_templates/{PACK}/{name}.json"), server.get("/object_info"))
    assert {
        number: {"class_type": node["class_type"], "inputs": node["inputs"]} for number, node in made.items()
    } == ours


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


def test_what_a_loop_did_is_shown_on_its_end_and_stays_there(page: Page, server: Server):
    load_template(page, "quickstart-loop")
    page.evaluate(
        """() => {
            const few = { KSGenDrawKeySteps: "updates", KSampler: "steps" }
            for (const node of window.app.rootGraph.nodes)
                if (few[node.type]) node.widgets.find(widget => widget.name === few[node.type]).value = 2
        }"""
    )
    page.evaluate("async () => { await window.app.queuePrompt(0) }")
    end = "window.app.rootGraph.nodes.find(node => node.type === 'KSGenStepLoopEnd')"
    shown = f"{end}.widgets.find(widget => widget.name === 'shown').element"
    page.wait_for_function(f"() => {shown}.value", timeout=300_000)
    report = page.evaluate(f"() => {shown}.value")
    found = re.fullmatch(r"(\d+) steps: 0 remembered, (\d+) made\.", report)
    assert found and found[1] == found[2], report
    page.evaluate(f"() => {{ window.app.canvas.ds.scale = 1; window.app.canvas.centerOnNode({end}) }}")
    page.wait_for_function(f"() => {shown}.checkVisibility() && {shown}.offsetHeight > 20")

    # Queued again, the host runs nothing and sends the node a message without a text.
    page.evaluate(
        f"""() => {{
            const node = {end}, before = node.onExecuted
            node.onExecuted = function () {{ before.apply(this, arguments); window.told = true }}
            window.app.queuePrompt(0)
        }}"""
    )
    page.wait_for_function("() => window.told", timeout=300_000)
    assert page.evaluate(f"() => {shown}.value") == report
