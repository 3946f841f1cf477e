"""Which recordings the gate of Enroll accepts: real speech and noise, sent to a real server.

    python -m benchmarks.enrolment BUNDLES --speech FOLDER --noise FOLDER

BUNDLES holds a model of real speakers, FOLDER of speech a folder per speaker with short recordings, FOLDER of noise
recordings without speech. Each enrolment is of three utterances. A good one is of one speaker; a bad one has a bad
utterance among them: silence, noise, 0.3 s of speech, or another speaker, as a whole utterance or as half of one.
"""

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import soundfile
from numpy.typing import NDArray

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.training.evaluation.intervals import wilson
from tests.serving.harness import ServerProcess, raw

Samples = NDArray[np.float32]
RATE = 16_000
# Of an utterance, joined from short recordings.
UTTERANCE_SECONDS = 8.0
UTTERANCES = 3
CALL_SECONDS = 120
# Of refusals of each kind, in the results.
EXAMPLES = 2
GOOD, ALL_BAD = "good", "all bad ones"


class Corpus:
    """Recordings of speakers and of noise, at 16 kHz; `chance` chooses among them."""

    def __init__(self, speech: Path, noise: Path, chance: random.Random) -> None:
        self._chance = chance
        folders = sorted(folder for folder in speech.iterdir() if folder.is_dir())
        self.speakers = {folder.name: sorted(folder.iterdir()) for folder in folders}
        self._noise = sorted(path for path in noise.rglob("*") if path.is_file())

    def utterances(self, speaker: str, seconds: float = UTTERANCE_SECONDS) -> Iterator[Samples]:
        """Yield utterances of a speaker, of which no two share a recording."""
        paths = self._chance.sample(self.speakers[speaker], len(self.speakers[speaker]))
        joined: list[Samples] = []
        for path in paths:
            joined.append(_read(path))
            if sum(map(len, joined)) >= seconds * RATE:
                yield np.concatenate(joined)
                joined = []

    def noise(self) -> Samples:
        """Return a recording without speech."""
        return _read(self._chance.choice(self._noise))


def _read(path: Path) -> Samples:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if rate != RATE:
        raise SystemExit(f"{path}: {rate} Hz; {RATE} Hz is expected")
    mono: Samples = samples.mean(axis=1)
    return mono


def cases(corpus: Corpus, chance: random.Random, names: list[str], count: int) -> Iterator[tuple[str, list[Samples]]]:
    """Yield `count` good enrolments, and as many bad ones of each kind in turn, of speakers with these names."""
    kinds = ("silence", "noise", "0.3 s", "another speaker", "two speakers in one")
    for number in range(count):
        name, other = chance.sample(names, 2)
        utterances = corpus.utterances(name)
        good = [next(utterances) for _ in range(UTTERANCES)]
        yield GOOD, good
        kind = kinds[number % len(kinds)]
        place = chance.randrange(UTTERANCES)
        yield kind, [*good[:place], _bad(kind, good[place], corpus, other), *good[place + 1 :]]


def _bad(kind: str, good: Samples, corpus: Corpus, other: str) -> Samples:
    if kind == "silence":
        hiss: Samples = np.random.default_rng(len(good)).normal(0, 1e-3, len(good)).astype(np.float32)
        return hiss
    if kind == "noise":
        return corpus.noise()
    if kind == "0.3 s":
        loudest = int(np.convolve(good**2, np.ones(4800, np.float32), "valid").argmax())
        return np.concatenate([np.zeros(3200, np.float32), good[loudest : loudest + 4800], np.zeros(3200, np.float32)])
    foreign = next(corpus.utterances(other))
    if kind == "another speaker":
        return foreign
    half = len(good) // 2
    return np.concatenate([good[:half], foreign[:half]])


def measure(server: ServerProcess, variant: str, enrolments: Iterator[tuple[str, list[Samples]]]) -> dict[str, Any]:
    """Return by kind how many enrolments were sent and how many stored, with a 95 % interval, and some refusals."""
    sent, stored, said = Counter[str](), Counter[str](), dict[str, list[str]]()
    for kind, utterances in enrolments:
        request = pb.EnrollRequest(
            speaker="someone",
            utterances=[raw(each) for each in utterances],
            models=[pb.ModelSelector(variant=variant)],
        )
        sent[kind] += 1
        try:
            server.stub.Enroll(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            said.setdefault(kind, []).append(str(error.details()))
        else:
            stored[kind] += 1
    bad = [kind for kind in sent if kind != GOOD]
    sent[ALL_BAD], stored[ALL_BAD] = (sum(counts[kind] for kind in bad) for counts in (sent, stored))
    return {
        kind: {
            "sent": count,
            "stored": stored[kind],
            "share_stored": [round(end, 4) for end in wilson(stored[kind], count)],
            "refused": said.get(kind, [])[:EXAMPLES],
        }
        for kind, count in sent.items()
    }


def main() -> None:
    """Print the counts as JSON: of the speakers whom the model was trained with, and of others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--noise", type=Path, required=True)
    parser.add_argument("--variant", default="act-da")
    parser.add_argument("--count", type=int, default=100, help="good enrolments, and bad ones, of each group")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)  # noqa: S311 - a choice of recordings
    corpus = Corpus(arguments.speech, arguments.noise, chance)
    with tempfile.TemporaryDirectory() as folder:
        flags = (f"--speakers={folder}/speakers.db", "--enroll-speech-seconds=1", "--window-seconds=3")
        with ServerProcess(arguments.bundles, *flags) as server:
            selector = pb.ModelSelector(variant=arguments.variant)
            known = set(server.stub.GetModel(pb.GetModelRequest(model=selector)).model.speakers)
            groups = {
                "speakers of the training": [name for name in corpus.speakers if name in known],
                "other speakers": [name for name in corpus.speakers if name not in known],
            }
            results = {
                group: measure(server, arguments.variant, cases(corpus, chance, names, arguments.count))
                for group, names in groups.items()
                if len(names) > 1
            }
    print(json.dumps({"count": arguments.count, "seed": arguments.seed, **results}, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
