"""Who may import whom: the rooms of the house keep to themselves, and importing costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOUNS = {"types", "errors", "orders", "pixels", "checkpoints", "checkpoints_diffusers"}
NOUNS |= {"memory", "sampling_diffusers", "residence_diffusers", "ladder_diffusers", "lora_diffusers"}
STAGES = {"retrieval", "planning", "keysteps", "clips"}
FOLDER = {"storyboard", "sheet", "video", "film"}
HOST = {"folder_paths", "server", "nodes", "execution"}

MAY_IMPORT = {
    "errors": set(),
    "orders": {"errors"},
    "types": {"errors"},
    "pixels": {"errors"},
    "checkpoints": {"errors"},
    "checkpoints_diffusers": {"errors", "checkpoints"},
    "memory": {"errors"},
    "sampling_diffusers": set(),
    "residence_diffusers": {"errors", "memory", "checkpoints_diffusers"},
    "ladder_diffusers": {"errors", "memory", "residence_diffusers"},
    "lora_diffusers": {"errors", "checkpoints", "checkpoints_diffusers"},
    "cache_entry": {"errors"},
    "cache": NOUNS | {"cache_entry"},
    "pipeline": NOUNS,
    "sheet": NOUNS | {"video"},
    "video": NOUNS,
    "film": NOUNS | {"sheet", "video"},
    "export": NOUNS | {"film", "video"},
    "storyboard": NOUNS | {"pipeline", "sheet", "video", "film"},
    "loop": NOUNS | {"cache", "video"},
    "presets": NOUNS,
    **{stage: NOUNS | {"cache", "pipeline"} for stage in STAGES},
    "metrics": NOUNS | {"cache"},
    "tabletop": NOUNS,
    "build": NOUNS | STAGES | {"presets", "pipeline", "cache"},
    "curation": NOUNS | STAGES | FOLDER | {"pipeline", "build", "metrics", "tabletop", "cache"},
    "training": NOUNS | STAGES | FOLDER | {"pipeline", "build", "metrics", "tabletop", "cache"},
    "cli_cache": NOUNS | {"cache"},
    "cli_models": NOUNS | {"build"},
    "cli_show": {"pipeline"},
    "cli_run": NOUNS
    | {"cli_models", "cli_show", "cli_planner", "build", "pipeline", "storyboard"}
    | {"keysteps", "clips"},
    "cli_export": NOUNS | FOLDER | {"export"},
    "cli_library": NOUNS | {"retrieval"},
    "cli_score": NOUNS | {"retrieval", "planning", "metrics", "storyboard"},
    "cli_planner": NOUNS | {"build", "pipeline", "planning", "retrieval"},
    "cli": NOUNS
    | {"cli_cache", "cli_export", "cli_library", "cli_planner", "cli_run", "cli_score"}
    | {"training", "curation"},
}
"""Room of ksgen_core -> the other rooms it may import. A stage knows of `pipeline` the events that it yields."""


def python_files(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path) -> list[tuple[str, int]]:
    """The full name, from the pack's root, of everything a file imports, and the line."""
    package = list(path.relative_to(ROOT).parent.parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                assert node.level <= len(package) + 1, f"{path}:{node.lineno} leaves the pack"
                base = ".".join(package[: len(package) - node.level + 1])
                module = f".{base}.{node.module or ''}".rstrip(".").replace("..", ".")
            else:
                module = node.module or ""
            found += [(f"{module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def room(name: str) -> str:
    """`.ksgen_core.keysteps.policies.X` -> `keysteps`."""
    parts = name.lstrip(".").split(".")
    return parts[1] if len(parts) > 1 else ""


def place(path: Path) -> str:
    """`ksgen_core/keysteps/policies.py` -> `keysteps`."""
    return path.relative_to(ROOT / "ksgen_core").with_suffix("").parts[0]


@pytest.mark.parametrize("path", python_files("ksgen_core"), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_of_the_core_imports_only_what_it_may(path):
    here = place(path)
    if here == "__init__":
        assert not imports(path) or all(name.startswith("__future__") for name, _ in imports(path))
        return
    assert here in MAY_IMPORT, f"{path}: say in MAY_IMPORT what the new room {here!r} may import"
    for name, line in imports(path):
        where = f"{path}:{line} imports {name}"
        if name.startswith(".ksgen_core"):
            there = room(name)
            assert there in MAY_IMPORT[here] | {here, "__version__"}, f"{where}: {here} may not import {there}"
        else:
            assert not name.startswith("."), f"{where}: the core imports nothing outside itself"
            top = name.split(".")[0]
            assert top != "ksgen_core", f"{where}: inside the pack imports are relative"
            assert top not in HOST and not top.startswith("comfy"), f"{where}: the core does not know the host"


@pytest.mark.parametrize("path", python_files("nodes"), ids=lambda path: str(path.relative_to(ROOT)))
def test_nodes_import_the_core_without_cli_and_training(path):
    for name, line in imports(path):
        if name.startswith(".ksgen_core"):
            forbidden = {"training", "curation"} | {there for there in MAY_IMPORT if there.split("_")[0] == "cli"}
            assert room(name) not in forbidden, f"{path}:{line} imports {name}"
        assert not name.startswith("ksgen_core"), f"{path}:{line}: inside the pack imports are relative"


@pytest.mark.parametrize("path", python_files("ksgen_core") + python_files("nodes"), ids=lambda path: path.stem)
def test_diffusers_and_transformers_stay_behind_the_files_named_after_them(path):
    """Outside `training` only `*_diffusers.py` and `mllm_*.py` may import them, and only inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        if not any(name.split(".")[0] in {"diffusers", "transformers"} for name in names) or id(node) in for_types:
            continue
        assert id(node) in inside, f"{path}:{node.lineno}: import it inside the function that needs it"
        if "training" not in path.parts:
            named = path.stem.endswith("_diffusers") or path.stem.startswith("mllm_")
            assert named, f"{path}:{node.lineno}: move this into a *_diffusers.py or mllm_*.py"


@pytest.mark.parametrize("path", python_files("ksgen_core") + python_files("nodes"), ids=lambda path: path.stem)
def test_files_stay_readable(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 400, f"{path} has {lines} lines; about 300 are wanted: a file is one idea"
    assert path.stem not in {"utils", "helpers"}


def loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after `code`."""
    heavy = ("torch", "diffusers", "transformers", "skia", "safetensors", "av", "PIL")
    script = f"import sys\n{code}\nprint(*[name for name in {heavy!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


def test_importing_the_core_loads_nothing_heavy():
    modules = "types pipeline errors pixels checkpoints cache storyboard sheet video build cli keysteps.policies "
    modules += "film.join export.page export.animation loop.graph loop.keys loop.run loop.results"
    code = "import ksgen_core\n" + "\n".join(f"import ksgen_core.{name}" for name in modules.split())
    assert loaded_by(code) == set()


def test_the_hosts_door_loads_nothing_heavy():
    code = (
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('a.b c', {str(ROOT / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(ROOT)!r}])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert callable(module.comfy_entrypoint) and not hasattr(module, 'NODE_CLASS_MAPPINGS')"
    )
    assert loaded_by(code) == set()


def test_help_loads_nothing_heavy():
    code = "from ksgen_core.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert loaded_by(code) == set()
