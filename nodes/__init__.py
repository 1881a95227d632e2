"""The ComfyUI nodes of KS-Gen: one visible list of node classes.

Only this folder may import the host (`comfy*`, `folder_paths`, `server`); everything else is in `ksgen_core`.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import diffusers_models, host, language_models, libraries, loop_host, skill_transformer
from .clip_frames import KSGenClipFrames
from .clips import KSGenCollectClips, KSGenJoinClips, KSGenRenderClips
from .contact_sheet import KSGenContactSheet
from .diffusers_models import KSGenLoadDiffusers, KSGenLoadLora
from .export import KSGenExportPage, KSGenSaveWebP
from .film import KSGenSaveFilm
from .keysteps import KSGenDrawKeySteps
from .library import KSGenLoadLibrary, KSGenRetrieveExamples
from .loop import KSGenStepLoopEnd, KSGenStepLoopStart
from .loop_steps import KSGenLoopKeep, KSGenLoopNext, KSGenLoopStep
from .models import KSGenLoadModels, KSGenNativeText
from .plan import KSGenPlanSkill, KSGenReplan
from .plan_steps import KSGenSelectStep, KSGenStepLists
from .plan_text import KSGenEditPlan, KSGenLoadPlan, KSGenPlanFromReply, KSGenPlanFromText, KSGenPlanPrompt
from .skill_transformer import (
    KSGenApplyImageTokens,
    KSGenForeseeTokens,
    KSGenLoadSkillTransformer,
    KSGenTokensToConditioning,
)
from .storyboard import KSGenSaveStoryboard, KSGenStoryboard

NODES: list[type[io.ComfyNode]] = [
    KSGenLoadModels,
    KSGenPlanSkill,
    KSGenPlanFromText,
    KSGenLoadPlan,
    KSGenDrawKeySteps,
    KSGenRenderClips,
    KSGenStoryboard,
    KSGenJoinClips,
    KSGenSaveStoryboard,
    KSGenStepLists,
    KSGenSelectStep,
    KSGenNativeText,
    KSGenCollectClips,
    KSGenLoadLibrary,
    KSGenRetrieveExamples,
    KSGenReplan,
    KSGenEditPlan,
    KSGenPlanPrompt,
    KSGenPlanFromReply,
    KSGenSaveFilm,
    KSGenStepLoopStart,
    KSGenStepLoopEnd,
    KSGenClipFrames,
    KSGenLoopStep,
    KSGenLoopKeep,
    KSGenLoopNext,
    KSGenExportPage,
    KSGenSaveWebP,
    KSGenContactSheet,
    KSGenLoadSkillTransformer,
    KSGenForeseeTokens,
    KSGenApplyImageTokens,
    KSGenTokensToConditioning,
    KSGenLoadDiffusers,
    KSGenLoadLora,
]


class KSGenExtension(ComfyExtension):
    """What the host's loader asks for."""

    async def on_load(self) -> None:
        host.register_model_folders()
        language_models.register_folder()
        libraries.register_folder()
        skill_transformer.register_folder()
        diffusers_models.register_folder()
        host.offer_example_picture()
        loop_host.watch_queue()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
