"""The browser of the tests: Debian's chromium, and npm, which fetches what pages run."""

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or shutil.which("npm") is None, reason="chromium or npm is not installed"
)
