"""The unit tests notice changes of the code: mutation runs of a sample, by area."""

import sys
from pathlib import Path

import pytest

from benchmarks.mutation import AREAS
from tests.conftest import run

SAMPLE = "40"  # mutants per file, always the same ones


@pytest.mark.slow
@pytest.mark.parametrize("area", AREAS)
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_most_mutants_are_killed(area: str, tmp_path: Path) -> None:
    flags = ("--sample", SAMPLE, "--seconds", "1500", "--at-least", "0.8", "--state", tmp_path / "mutation.json")
    run("benchmarks.mutation", area, *flags)
