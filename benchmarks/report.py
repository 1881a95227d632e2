"""Writes `benchmarks/reports/NAME.json` and `.md`: the figures and all that is needed to get them again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPORTS = Path(__file__).resolve().parent / "reports"


def circumstances(seeds: str) -> dict[str, Any]:
    """Command, seeds, commit and machine."""
    import torch

    root = REPORTS.parent.parent
    commit = subprocess.run(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run(["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True).stdout
    return {
        "command": " ".join(["ksgen", *sys.argv[1:]]),
        "seeds": seeds,
        "commit": commit.stdout.strip() + ("+changes" if changed.strip() else "") or "no git",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write_report(name: str, figures: Mapping[str, Any], table: str, seeds: str, folder: Path = REPORTS) -> None:
    """`table` is Markdown; the JSON holds `figures` at its top level and the circumstances under "run"."""
    folder.mkdir(parents=True, exist_ok=True)
    run = circumstances(seeds)
    (folder / f"{name}.json").write_text(json.dumps({**figures, "run": run}, indent=1) + "\n")
    lines = "\n".join(f"- {key}: `{value}`" for key, value in run.items())
    (folder / f"{name}.md").write_text(f"# {name}\n\n{table}\n\n{lines}\n")


def markdown(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; numbers with three digits behind the point."""

    def cell(value: Any) -> str:
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell(v) for v in line) + " |" for line in lines)
