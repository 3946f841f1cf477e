"""The networks that are measured: the audio, the eager network and the parts of a bundle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16_000
SECONDS = 3
SALIENCY = ("saliency_s1", "saliency_s2", "saliency_s3", "saliency_s4")


def speech(bundle: Path, seconds: float = SECONDS, start: float = 0.0) -> NDArray[np.float32]:
    """Return speech, float32 [samples]: the bundle's utterances in a row, from `start` seconds on."""
    files = sorted((bundle / "utterances").glob("*.flac"))
    joined = np.concatenate([soundfile.read(file, dtype="float32")[0] for file in files])
    whole = np.resize(joined, round((start + seconds) * RATE)).astype(np.float32)
    return whole[round(start * RATE) :]


def batch_of(bundle: Path, rows: int) -> NDArray[np.float32]:
    """Return different stretches of speech, float32 [rows, samples]."""
    return np.stack([speech(bundle, start=0.37 * row) for row in range(rows)])


def manifest_of(bundle: Path) -> dict[str, Any]:
    """Return the content of bundle.json."""
    found: dict[str, Any] = json.loads((bundle / "bundle.json").read_text("utf-8"))
    return found


def newest(bundles: Path, variant: str) -> Path:
    """Return the folder of a variant's newest version.

    Raises:
        FileNotFoundError: there is none.
    """
    versions = [file.parent for file in (bundles / variant).glob("*/bundle.json")]
    if not versions:
        raise FileNotFoundError(f"{bundles / variant}: no bundle there; run `make demo` first")
    return max(versions, key=lambda folder: int(folder.name))
