"""Mark tests that need the programs of Debian's package `prometheus`.

Without these programs the tests are skipped, or fail if REQUIRE_PROMETHEUS is set, as in continuous integration.
"""

import os

import pytest

from deploy.programs import find

MISSING = [program for program in ("prometheus", "promtool") if find(program) is None]
needs_prometheus = pytest.mark.skipif(
    bool(MISSING) and not os.environ.get("REQUIRE_PROMETHEUS"),
    reason=f"not installed: {', '.join(MISSING)} (`make prometheus` fetches them on Debian)",
)
