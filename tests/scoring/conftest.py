"""Toy bundles, recordings good and bad, and the command line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.serving import toy
from tests.serving.harness import talk

GOOD = 24


@pytest.fixture(scope="package")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants."""
    root = tmp_path_factory.mktemp("scored")
    for seed, variant in enumerate(("clean", "da")):
        toy.write_bundle(root, variant, 1, seed)
    return root


@pytest.fixture(scope="package")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings in subfolders, of different lengths and formats; GOOD can be scored, four cannot."""
    root = tmp_path_factory.mktemp("archive")
    for number in range(GOOD):
        folder = root / f"day-{number % 3}"
        folder.mkdir(exist_ok=True)
        suffix = ("wav", "flac")[number % 8 == 0]
        soundfile.write(folder / f"{number:03d}.{suffix}", talk(0.6 + 0.1 * (number % 7), seed=number), 16_000)
    (root / "day-0" / "empty.wav").write_bytes(b"")
    (root / "day-1" / "text.flac").write_text("no audio\n" * 50)
    soundfile.write(root / "day-1" / "short.wav", talk(0.1), 16_000)
    soundfile.write(root / "day-2" / "silent.wav", np.zeros(16_000), 16_000)
    (root / "notes.txt").write_text("not scored")
    return root


@pytest.fixture
def listed(tmp_path: Path) -> Callable[[list[Path | str]], Path]:
    """Write a list of recordings."""

    def write(paths: list[Path | str]) -> Path:
        file = tmp_path / "list.txt"
        file.write_text("".join(f"{path}\n" for path in paths))
        return file

    return write
