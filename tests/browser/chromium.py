"""Where the browser is that the tests drive."""

from __future__ import annotations

import os
import shutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOW_TO_GET_CHROMIUM = "Install one (Debian: apt-get install chromium) or set CHROMIUM to its path."


def browser_path() -> str | None:
    """The browser to drive: CHROMIUM, else the first one found."""
    return os.environ.get("CHROMIUM") or next((path for name in BROWSERS if (path := shutil.which(name))), None)
