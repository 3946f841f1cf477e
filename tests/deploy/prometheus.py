"""Marks tests that need Debian's package `prometheus`, with the server and promtool."""

import shutil

import pytest

MISSING = [program for program in ("prometheus", "promtool") if shutil.which(program) is None]
needs_prometheus = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
