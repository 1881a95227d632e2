"""Nodes that open libraries of skills and look examples up in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from . import libraries, sockets

if TYPE_CHECKING:
    import torch

    from ..ksgen_core.retrieval.search import SkillSearch
    from ..ksgen_core.types import Example


class KSGenLoadLibrary(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        embeddings = libraries.embedding_names()
        return io.Schema(
            node_id="KSGenLoadLibrary",
            display_name="Load Skill Library",
            category=f"{sockets.CATEGORY}/planning",
            description="Opens a library of skills to retrieve examples from. One can be joined behind another.",
            search_aliases=["skill library", "knowledge base", "rag", "procedures", "how to library"],
            inputs=[
                io.Combo.Input(
                    "source",
                    options=libraries.names(),
                    default=libraries.EVERYDAY,
                    tooltip="'everyday skills' and 'Tabletop' ship with the pack. Other names are your "
                    "ksgen.skill/1 files in ComfyUI's user/ksgen/library folder; 'ksgen library import' makes them.",
                ),
                io.Combo.Input(
                    "embedding",
                    options=embeddings,
                    default=embeddings[0],
                    tooltip="What finds skills said in other words: a sentence-transformers folder in ComfyUI's "
                    "models/sentence_transformers, or the installed one. 'words only' compares words alone.",
                ),
                sockets.Library.Input(
                    "library", optional=True, tooltip="Another library, to search both together. May be left out."
                ),
            ],
            outputs=[
                sockets.Library.Output("library", display_name="library", tooltip="For 'Retrieve Examples'."),
                io.Int.Output("count", display_name="number of skills", tooltip="How many skills the library holds."),
            ],
        )

    @classmethod
    def execute(cls, source: str, embedding: str, library: SkillSearch | None = None) -> io.NodeOutput:
        opened = libraries.open_library(source, embedding, library)
        return io.NodeOutput(opened, len(opened.skills))

    @classmethod
    def fingerprint_inputs(cls, source: str | None = None, **_: object) -> str:
        # A source that comes over a wire is not known yet; then only the user's own files are looked at.
        return libraries.state(source)


class KSGenRetrieveExamples(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenRetrieveExamples",
            display_name="Retrieve Examples",
            category=f"{sockets.CATEGORY}/planning",
            description="Finds the plans of a library that fit a goal best, no two of the same steps, and shows them.",
            search_aliases=["rag", "search skills", "find plans", "similar skills", "examples"],
            is_output_node=True,
            inputs=[
                sockets.Library.Input("library", tooltip="From 'Load Skill Library'."),
                sockets.goal_input(),
                io.Int.Input("count", default=8, min=1, max=64, tooltip="At most so many examples."),
                io.String.Input(
                    "without",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    tooltip="Sources to leave out, one a line, as the preview names them.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The initial picture, to put those examples first that begin as it looks. May be left out.",
                ),
                io.Combo.Input(
                    "picture_embedding",
                    display_name="picture embedding",
                    options=libraries.picture_embedding_names(),
                    default=libraries.OFF,
                    optional=True,
                    tooltip="What compares the picture with the examples: a CLIP folder of transformers in ComfyUI's "
                    "models/sentence_transformers. 'off' leaves the examples in the order of their words and meaning.",
                ),
            ],
            outputs=[
                sockets.Examples.Output(
                    "examples", display_name="examples", tooltip="For the planner and for 'Plan Prompt'."
                ),
                io.String.Output(
                    "preview", display_name="preview", tooltip="The examples to read: score, goal, source, steps."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        library: SkillSearch,
        goal: str,
        count: int,
        without: str,
        image: torch.Tensor | None = None,
        picture_embedding: str = libraries.OFF,
    ) -> io.NodeOutput:
        from ..ksgen_core.errors import KSGenError
        from ..ksgen_core.pixels import one_picture

        left_out = {line.strip() for line in without.splitlines() if line.strip()}
        examples = library.find(goal, count, left_out)
        by = library.by
        if picture_embedding != libraries.OFF:
            if image is None:
                raise KSGenError("The examples are to be ordered by a picture, but none came in. Connect the image.")
            examples = libraries.ordered_by_picture(examples, one_picture(image), picture_embedding)
            by = f"{by}, ordered by the picture"
        preview = "\n\n".join(map(_readable, examples))
        return io.NodeOutput(examples, preview, ui=ui.PreviewText(f"found by {by}\n\n{preview}"))


def _readable(example: Example) -> str:
    often = f", {example.count} plans with these steps" if example.count > 1 else ""
    steps = "\n".join(f"  {number}. {step.text}" for number, step in enumerate(example.plan.steps, 1))
    return f"{example.score:.2f}  {example.plan.goal}  ({example.source}{often})\n{steps}"
