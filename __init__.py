"""The host's door: ComfyUI imports this package and awaits `comfy_entrypoint`; nothing of the host is needed before."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The extension with the pack's nodes (ComfyUI's V3 interface).

    The host prints one line of a failure only, so the whole traceback goes to the logger "ksgen" first.
    """
    import logging

    try:
        from .nodes import KSGenExtension
    except Exception:
        logging.getLogger("ksgen").exception("The nodes of KS-Gen could not be loaded")
        raise
    return KSGenExtension()
