"""Marks tests that need the programs of Debian's package `prometheus`: they are skipped where these are not installed.

Unless REQUIRE_PROMETHEUS is set, as continuous integration has it: then they fail.
"""

import os

import pytest

from deploy.programs import find

MISSING = [program for program in ("prometheus", "promtool") if find(program) is None]
needs_prometheus = pytest.mark.skipif(
    bool(MISSING) and not os.environ.get("REQUIRE_PROMETHEUS"),
    reason=f"not installed: {', '.join(MISSING)} (`make prometheus` fetches them on Debian)",
)
