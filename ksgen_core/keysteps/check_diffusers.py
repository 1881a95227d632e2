"""A key image model's folder, of any family, is looked at before it is loaded."""

from __future__ import annotations

from pathlib import Path

from ..checkpoints import read_metadata
from . import edit_files_diffusers, sdxl_files_diffusers
from .families import Family, defaults_of, family_of
from .policies import read_defaults
from .sdxl_files_diffusers import ADAPTER_FILE, SKILL_TRANSFORMER_FILE


def check_key_folder(
    folder: Path,
    *,
    adapter: Path | None = None,
    image_encoder: Path | None = None,
    skill_transformer: Path | None = None,
) -> Family:
    """The family of a folder that holds all that its model reads, as far as headers and small files tell.

    The other parts are those of `KeyStepModel.load`, and win over the folder's own. Loads nothing. Raises
    `KSGenError` for the first file that is missing, not whole or of a class that is not known.
    """
    family = family_of(folder)
    if family.edits:
        edit_files_diffusers.check(folder)
        defaults_of(folder, family)
        return family
    sdxl_files_diffusers.check(folder)
    read_defaults(folder)
    if image_encoder is not None:
        sdxl_files_diffusers.check_image_encoder(image_encoder)
    for given, own in ((adapter, ADAPTER_FILE), (skill_transformer, SKILL_TRANSFORMER_FILE)):
        if given is not None or (folder / own).exists():
            read_metadata(given or folder / own)
    return family
