"""A server with enrolled speakers, whose exemplars have cosines with one query that are known."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.evidence import Evidence
from speakerlens.measures.search import SearchCalibration
from speakerlens.serving.gallery.exemplar import Exemplar, unit
from speakerlens.serving.gallery.store import open_store
from tests.measures.search_section import section
from tests.serving import toy
from tests.serving.harness import ServerProcess, talk

SECTION = section(limits={"speech_s": 0.5, "snr_db": 15.0, "bandwidth_hz": 7000.0})
CALIBRATION = SearchCalibration.from_section(SECTION)
# `da` is calibrated for searches, `clean` is not.
SEEDS = {"da": 2, "clean": 0}
QUERY = talk(2.5, seed=1)
ENROLLED_IN = Evidence(3.0, 20.0, 8000.0, 0.0, -26.0)
# Cosines with QUERY of the exemplars of each speaker.
COSINES = {"anna": (0.2, 0.95, 0.4), "bo": (0.3,), "cleo": (0.1, -0.1), "zo\u00eb": (0.0,)}


def embedding(audio: NDArray[np.float32], variant: str = "da") -> NDArray[np.float64]:
    return np.asarray(toy.expected(toy.weights(SEEDS[variant]), audio)["embedding"])


def at(cosine: float, direction: NDArray[np.floating], seed: int) -> NDArray[np.float32]:
    """A vector of length one with that cosine to a direction of length one."""
    other = np.random.default_rng(seed).normal(size=len(direction))
    other -= (other @ direction) * direction
    other /= np.linalg.norm(other)
    return unit(cosine * direction + np.sqrt(1 - cosine**2) * other)


class Store:
    """The server's store, written by another process."""

    def __init__(self, path: Path, bundles: Path) -> None:
        self.path = path
        self._bundles = bundles
        self._store = open_store(str(path))

    def enroll(self, speaker: str, embeddings: Sequence[NDArray[np.float32]], variant: str = "da") -> None:
        digest = hashlib.sha256((self._bundles / variant / "1" / "bundle.json").read_bytes()).hexdigest()
        now = "2026-11-29T00:00:00+00:00"
        exemplars = [Exemplar(speaker, variant, 1, digest, 1, now, each, ENROLLED_IN) for each in embeddings]
        self._store.enroll(exemplars, replace=False)

    def remove(self, speaker: str) -> None:
        assert self._store.remove(speaker)


def write_bundles(root: Path) -> Path:
    toy.write_bundle(root, "da", 1, SEEDS["da"], search=SECTION)
    toy.write_bundle(root, "clean", 1, SEEDS["clean"])
    return root


def filled_store(path: Path, bundles: Path) -> Store:
    made = Store(path, bundles)
    for variant in SEEDS:
        direction = unit(embedding(QUERY, variant))
        for number, (name, cosines) in enumerate(COSINES.items()):
            made.enroll(name, [at(each, direction, 10 * number + i) for i, each in enumerate(cosines)], variant)
    return made


@contextmanager
def search_server(folder: Path) -> Iterator[tuple[ServerProcess, Store]]:
    bundles = write_bundles(folder / "bundles")
    store = filled_store(folder / "speakers.db", bundles)
    with ServerProcess(bundles, f"--speakers={store.path}", "--window-seconds=3") as server:
        yield server, store
