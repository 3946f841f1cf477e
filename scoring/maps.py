"""Saliency maps of a recording as arrays on disk."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.pipeline.answers import Answer, Identification
from speakerlens.serving.pipeline.explain import Plane


def write_maps(folder: Path, name: str, result: Identification) -> dict[str, str]:
    """Write one `.npz` for each model that explained, and return the files by variant.

    Each has `target` (the speaker), `log_mel` and one array per stage, such as `fused`, float32 [mel, frames], with
    `frequencies_hz` [mel] and `times_s` [frames]. The name of the file is made of the recording's, so that a second run
    writes the same files.

    Raises:
        OSError: a file cannot be written.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    files = {}
    for answer in result.answers:
        if not isinstance(answer, Answer) or answer.explanation is None:
            continue
        parent = folder / answer.variant / digest[:2]
        parent.mkdir(parents=True, exist_ok=True)
        file = parent / f"{digest[2:34]}.npz"
        plane = answer.explanation.log_mel
        arrays: dict[str, NDArray[Any]] = {
            "target": np.array(answer.explanation.target_speaker),
            "log_mel": _values(plane),
            "frequencies_hz": plane.frequencies_hz,
            "times_s": plane.times_s,
            **{str(each.stage): _values(each) for each in answer.explanation.saliency},
        }
        partial = file.with_suffix(f".{os.getpid()}.part")
        with partial.open("wb") as content:
            np.savez(content, allow_pickle=False, **arrays)
        partial.replace(file)
        files[answer.variant] = str(file)
    return files


def _values(plane: Plane) -> NDArray[np.float32]:
    return np.frombuffer(plane.values, np.float32).reshape(len(plane.frequencies_hz), len(plane.times_s))
