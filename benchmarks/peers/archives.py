"""Table 5: scoring recordings of the demo: the scorer, the bare graph, a plain loop, and batch calls of a server."""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import archive
from benchmarks.peers.measuring import Others

COUNTS, ROUNDS = {"small": 100, "resnet34": 10}, 3


def cells(bundles: dict[str, Path], corpus: Path, quick: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of the cell of each network and the function that measures it; nothing without recordings."""
    if next(corpus.rglob("*.flac"), None) is None:
        return
    for network, bundle in bundles.items():
        count = 8 if quick else COUNTS[network]
        yield f"archive/{network}", partial(_cell, bundle, corpus, count, 1 if quick else ROUNDS)


def _cell(bundle: Path, corpus: Path, count: int, rounds: int) -> dict[str, Any]:
    asked = argparse.Namespace(bundle=bundle, recordings=corpus, rounds=rounds, count=count)
    with tempfile.TemporaryDirectory() as folder, Others(time.monotonic) as others:
        found = archive.cost(asked, Path(folder))
    ways = {
        name: {"per_cpu_s": found["recordings_per_cpu_s"][name], "ratio": found["share_of_graph"][name]}
        for name in found["share_of_graph"]
    }
    return {"ways": ways, "recordings": found["recordings"], "audio_s": found["audio_s"], **others.marks()}
