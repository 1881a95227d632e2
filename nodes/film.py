"""The node that saves the film of a skill with all that players can show of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import InputImpl, io, ui

from . import host, sockets
from .clips import film_inputs, join_clips

if TYPE_CHECKING:
    from ..ksgen_core.types import Clip, Plan


class KSGenSaveFilm(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSGenSaveFilm",
            display_name="Save Film",
            category=sockets.CATEGORY,
            description="Joins the clips of all steps and saves the film with a chapter per step. With a plan it also "
            "has subtitles: in the film, and as SRT and WebVTT files beside it.",
            search_aliases=["save video", "chapters", "subtitles", "srt", "vtt", "export film", "mp4"],
            is_output_node=True,
            inputs=[
                sockets.Clips.Input("clips", tooltip="From 'Render Clips', 'Collect Clips' or 'Step Loop End'."),
                *film_inputs(),
                sockets.file_name_input("ksgen/film"),
            ],
            outputs=[
                io.Video.Output("video", display_name="video", tooltip="The film that was saved."),
                io.String.Output("path", display_name="path", tooltip="The path of the MP4 file."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clips: tuple[Clip, ...],
        *,
        plan: Plan | None = None,
        cross_fade: float = 0.0,
        titles: bool = False,
        subtitles: bool = True,
        overlap: int = 0,
        filename_prefix: str,
    ) -> io.NodeOutput:
        from ..ksgen_core.film.join import FilmSettings
        from ..ksgen_core.film.subtitles import write_subtitles

        path = host.output_file(filename_prefix, ".mp4", ".srt", ".vtt")
        spans = join_clips(path, clips, plan, FilmSettings(cross_fade, titles, subtitles, overlap))
        if plan is not None and subtitles:
            write_subtitles(path, spans, [step.text for step in plan.steps])
        shown = ui.PreviewVideo([host.saved_file(path)])
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), str(path), ui=shown)
