"""The tables of `ksgen bench core` in Markdown."""

from __future__ import annotations

from typing import Any

from report import markdown


def table(figures: dict[str, Any]) -> str:
    parts = {name: TABLES[name](figures[name]) for name in TABLES if name in figures}
    return f"On {figures['device']}.\n\n" + "\n\n".join(parts.values())


def overhead(found: dict[str, Any]) -> str:
    rows = [
        [
            *(name, f"{one['parameters'] / 1e6:.0f} M", one["updates"], one["bare_seconds"], one["seconds"]),
            *(one["ratio"], one["processor_ratio"], f"{one['difference']:.2g}"),
        ]
        for name, one in found.items()
    ]
    header = ["what", "backbone", "updates", "bare, s", "here, s", "ratio", "processor ratio", "largest difference"]
    return (
        "## Over the bare pipelines of diffusers\n\n"
        f"{markdown(header, rows)}\n\n"
        "Both make the same pictures from the same conditions and noise; the difference is of 8-bit values. Ratios are "
        "medians of pairs in turns. What is here beside the pipeline: previews after every update, and, for clips, "
        "layers of the VAE that are faster on processors (the last row has diffusers' own in the bare pipeline)."
    )


def batches(found: dict[str, Any]) -> str:
    rows = [
        ["one by one", found["seconds"], found["processor_seconds"]],
        ["in one batch", found["bare_seconds"], found["bare_processor_seconds"]],
        ["ratio (median of the pairs)", found["ratio"], found["processor_ratio"]],
    ]
    return (
        "## Key images in one batch\n\n"
        f"{markdown(['a key image of the embedded model', 'seconds', 'processor seconds'], rows)}\n\n"
        f"{found['key_images']} key images. The largest difference between the two is {found['difference']:.2g} of 255."
    )


def memory(found: dict[str, Any]) -> str:
    rows = [
        ["key images alone", found["key images"]["peak_mb"], found["weights_mb"]["key images"]],
        ["clips alone", found["clips"]["peak_mb"], found["weights_mb"]["clips"]],
        ["plan, key images and clips", found["whole"]["peak_mb"], "one stage's at a time"],
        ["the same, both models held", found["both"]["peak_mb"], sum(found["weights_mb"].values())],
    ]
    rows = [[f"{cell:.0f}" if isinstance(cell, float) else cell for cell in row] for row in rows]
    return (
        "## Memory of a whole run\n\n"
        f"{markdown(['what', 'peak memory of the process, MB', 'weights, MB'], rows)}\n\n"
        f"The whole run takes {found['ratio']:.3f} times the memory of its largest stage."
    )


def options(found: dict[str, Any]) -> str:
    header = ["stage", "option", "seconds an update", "ratio", "processor ratio", "peak, MB", "largest", "mean"]
    rows, refused = [], []
    for stage, by_name in found.items():
        for name, one in by_name.items():
            if "refused" in one:
                refused.append(f"- {stage}, {name}: {one['refused']}")
                continue
            rows.append(
                [
                    *(stage, name, one["update_seconds"], one["ratio"], one["processor_ratio"]),
                    *(f"{one['peak_mb']:.0f}", f"{one['largest_difference']:.3g}", f"{one['mean_difference']:.3g}"),
                ]
            )
    lines = "\n".join(refused)
    return (
        "## Memory options on the embedded models\n\n"
        f"{markdown(header, rows)}\n\n"
        "`largest` and `mean` are the difference from `none` in 8-bit values. On a processor the weights are in main "
        "memory wherever they are said to be, so that offload saves nothing there: it costs the time of its hooks and "
        "copies; 8-bit weights save what the backbone takes, but not while it is read. The embedded models are small "
        "beside the libraries, and their pictures too small for tiles.\n\n"
        f"Not for these models or this machine:\n\n{lines or '- nothing'}"
    )


def full(found: dict[str, Any]) -> str:
    title = "## Models of full size" + (", scaled down" if found.get("scaled_down") else "") + "\n\n"
    if "not_measured" in found:
        return f"{title}These were not measured: {found['not_measured']}."
    header = ["model", "option", "backbone", "work", "seconds an update", "seconds a clip or image", "peak, GB"]
    rows, refused = [], []
    for model, by_name in found["models"].items():
        for name, one in by_name.items():
            if "refused" in one:
                refused.append(f"- {model}, {name}: {one['refused']}")
                continue
            peak = f"{one['peak_mb'] / 1000:.1f}"
            rows.append([model, name, f"{one['parameters'] / 1e9:.2f} B", one["work"], one["update_seconds"]])
            rows[-1] += [one["made_seconds"], peak]
    lines = "\n".join(refused)
    return (
        f"{title}{markdown(header, rows)}\n\nRandom weights in bfloat16, the texts' embeds random too: no text encoder "
        "but SDXL's. Seconds an update: the mean of a few; seconds a clip: what was spent beside them and as many "
        f"updates as the family has by default.\n\nNot for these models or this machine:\n\n{lines or '- nothing'}"
    )


TABLES = {"overhead": overhead, "batches": batches, "memory": memory, "options": options, "full": full}
