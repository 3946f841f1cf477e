"""Rules that cut audio into windows: what they cost by the audio's length, and how often they name the speaker.

    python -m benchmarks.window_rules build/demo/bundles build/demo/corpus --out RESULT.json
    python -m benchmarks.window_rules build/demo/bundles build/demo/corpus --time --out RESULT.json

For audio of a few lengths, test utterances of a speaker in a row, with noise of the test split: the answer for the
whole, with the server's speech detector and its way to join windows. The out-of-set speakers are the corpus' voices for
babble. The cost is the samples of all windows, which is what a graph takes. With `--time`, the processor time of the
graph and of whole answers for 1 to 12 s in steps of 7 %, with the engine's padding; rules and lengths take turns.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.environment import environment
from speakerlens.measures.windows import WINDOW_SECONDS, Windowing
from speakerlens.scoring.local import LocalPipeline, find_bundles
from speakerlens.serving.bundle import Bundle
from speakerlens.serving.config import Config
from speakerlens.serving.engine import buckets
from speakerlens.serving.engine.buckets import Buckets
from speakerlens.serving.engine.graphs import Job, Prediction
from speakerlens.serving.engine.placement import Placement
from speakerlens.serving.engine.session import BatchInputs, Engine, GraphSession
from speakerlens.serving.models.reader import read_bundle
from speakerlens.serving.pipeline.aggregate import WindowAggregator
from speakerlens.serving.pipeline.decode import RawAudio
from speakerlens.serving.pipeline.observer import MonitoringScope
from speakerlens.serving.pipeline.query import Query
from speakerlens.serving.pipeline.vad import holds_speech
from speakerlens.serving.pipeline.windows import Window, windowing

RATE = 16_000
VARIANTS = ("clean", "da", "act-da")
EXPONENT = 1.9  # of the smooth rule: 7 % more audio costs 13.7 % more
STEP = 1.07
Rule = Callable[[int, Windowing], list[tuple[int, int]]]


def before(samples: int, shape: Windowing) -> list[tuple[int, int]]:
    """Return the windows of before, (start, stop) in samples: all of them full, the last ends with the audio."""
    return now(samples, shape.with_full_last)


def now(samples: int, shape: Windowing) -> list[tuple[int, int]]:
    """Return the windows of the server."""
    return [(start, min(start + shape.length, samples)) for start in shape.starts(samples)]


def smooth(samples: int, shape: Windowing) -> list[tuple[int, int]]:
    """Return windows of one length, of which the whole grows with the audio by a power, up to that of full ones."""
    if samples <= shape.length:
        return [(0, samples)]
    total = min(shape.length * (samples / shape.length) ** EXPONENT, shape.length / shape.hop * samples)
    count = max(2, math.ceil(total / shape.length - 1e-9))
    length = min(max(total, samples) / count, shape.length)
    hop = (samples - length) / (count - 1)
    return [(round(index * hop), min(round(index * hop + length), samples)) for index in range(count)]


def whole(samples: int, shape: Windowing) -> list[tuple[int, int]]:
    """Return a single window."""
    return [(0, samples)]


RULES: dict[str, Rule] = {"before": before, "now": now, "smooth": smooth, "whole": whole}


@dataclass(frozen=True)
class Scored:
    """The answer for one recording: whether the best speaker is the right one, and the score of the best."""

    right: bool
    score: float


class Answerer:
    """Answers recordings by windows of any rule."""

    def __init__(self, bundle: Bundle, shape: Windowing, rules: Sequence[str]) -> None:
        self.bundle = bundle
        self.shape = shape
        self._rules = {name: rule for name, rule in {**RULES, "equal": now}.items() if name in rules}
        self._graph = Engine(bundle, Placement("cpu", 1)).predict

    def answers(self, samples: NDArray[np.float32], label: int) -> Iterator[tuple[str, Scored]]:
        """Yield the answer for a recording by each rule; `equal` is that of now where all windows count the same."""

        @functools.cache
        def compute(start: int, stop: int) -> tuple[Prediction, bool]:
            piece = samples[start:stop]
            return self._graph.compute(self._graph.prepare([Job(piece)]))[0], holds_speech(piece)

        for name, rule in self._rules.items():
            aggregator = WindowAggregator(self.bundle)
            windows = rule(len(samples), self.shape)
            for start, stop in windows:
                weight = self.shape.weight(stop - start) if name == "now" and len(windows) > 1 else 1.0
                aggregator.add(Window(start, samples[start:stop], weight), *compute(start, stop))
            found = aggregator.result()
            best = int(found.logits.argmax())
            score = float(self.bundle.open_set_scores(found.logits, found.embedding)[best])
            yield name, Scored(best == label, score)


def recordings(
    corpus: Path, kind: str, speakers: Sequence[str], seconds: float, snr_db: float, draw: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the label of each speaker and float32 samples of test utterances in a row, with noise of the test split."""
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text("utf-8").splitlines()]
    test = [row for row in rows if row.get("split") == "test"]
    noises = [row for row in test if row["kind"] == "noise"]
    rng = np.random.default_rng(draw)
    for label, speaker in enumerate(speakers):
        # Of the out-of-set speakers the network has heard the others' babble only, in any split.
        clips = [
            row
            for row in (test if kind == "utterance" else rows)
            if (row["kind"], row.get("speaker")) == (kind, speaker)
        ]
        order = rng.permutation(len(clips))
        speech = np.concatenate([read(corpus, clips[index]) for index in order])
        speech = np.resize(speech, max(len(speech), int(seconds * RATE)))[: int(seconds * RATE)]
        noise = np.resize(read(corpus, noises[rng.integers(len(noises))]), len(speech))
        gain = math.sqrt(float(np.mean(speech**2)) / max(float(np.mean(noise**2)), 1e-12) / 10 ** (snr_db / 10))
        mixed = speech + np.float32(gain) * noise
        yield label, (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)


def read(corpus: Path, row: Any) -> NDArray[np.float32]:
    """Return the samples of a row of the manifest, float32 [n]."""
    start, frames = round(row["start"] * RATE), round(row["duration"] * RATE)
    samples: NDArray[np.float32] = soundfile.read(corpus / row["path"], frames, start, dtype="float32")[0]
    return samples


def steps(shape: Windowing) -> dict[str, float]:
    """Return for each rule the largest ratio of the costs of audio of 0.5 to 30 s and of that of 7 % more."""
    lengths = np.arange(RATE // 2, 33 * RATE, 40)
    until = np.searchsorted(lengths, lengths * STEP + 1e-9, side="right") - 1
    most = {}
    for name, rule in RULES.items():
        costs = np.array([sum(stop - start for start, stop in rule(int(each), shape)) for each in lengths])
        ratios = np.maximum.accumulate(costs)[until] / costs
        most[name] = round(float(ratios[lengths <= 30 * RATE].max()), 3)
    return most


def accuracy(arguments: argparse.Namespace, shape: Windowing) -> dict[str, Any]:
    """Return by variant, SNR and length the share of right answers, and how many of them pass the threshold."""
    others = sorted({path.name for path in (arguments.corpus / "background").iterdir()})
    figures: dict[str, Any] = {}
    for variant in arguments.variants:
        answerer = Answerer(read_bundle(next(arguments.bundles.glob(f"{variant}/*"))), shape, arguments.rules)
        for snr_db in arguments.snr_db:
            for seconds in arguments.seconds:
                found: dict[str, dict[str, list[Scored]]] = {}
                for kind, speakers in (("utterance", answerer.bundle.speakers), ("speech", others)):
                    for draw in range(arguments.draws):
                        for label, samples in recordings(arguments.corpus, kind, speakers, seconds, snr_db, draw):
                            for name, scored in answerer.answers(samples, label if kind == "utterance" else -1):
                                found.setdefault(name, {}).setdefault(kind, []).append(scored)
                name = f"{variant}, {snr_db:g} dB, {seconds:g} s"
                figures[name] = {rule: _shares(answerer.bundle, each) for rule, each in found.items()}
                print(name, figures[name], flush=True)
    return figures


def _shares(bundle: Bundle, found: dict[str, list[Scored]]) -> dict[str, float]:
    own, others = found["utterance"], found["speech"]
    assert bundle.calibration is not None
    threshold = bundle.calibration.threshold

    def percent(values: list[bool]) -> float:
        return round(100 * sum(values) / max(1, len(values)), 1)

    return {
        "recordings": len(own),
        "top1_percent": percent([each.right for each in own]),
        "right_and_known_percent": percent([each.right and each.score >= threshold for each in own]),
        "out_of_set_known_percent": percent([each.score >= threshold for each in others]),
    }


def timed(arguments: argparse.Namespace, shape: Windowing) -> dict[str, Any]:
    """Return processor time in ms for 1 to 12 s in steps of 7 %: of the graph alone, and of whole answers."""
    folder = next(arguments.bundles.glob("act-da/*"))
    lengths = [round(RATE * each) for each in arguments.time_seconds]
    speaker = read_bundle(folder).speakers[0]
    [(_, samples)] = recordings(arguments.corpus, "utterance", [speaker], 14.0, 20.0, 0)
    graph = Engine(read_bundle(folder), Placement("cpu", 1)).predict
    waves = {step: _padded(graph, step) for step in (buckets.CPU_STEP, RATE // 2)}
    local = LocalPipeline(find_bundles(folder), Config(bundles=folder, device="cpu", threads=1))
    model = local.models[0]
    session = cast("GraphSession[Job, Prediction]", model.predict.work)

    def computed(length: int, rule: Rule, step: int) -> float:
        batches = [waves[step](samples[start:stop]) for start, stop in rule(length, shape)]
        begun = time.thread_time()
        for batch in batches:
            graph.compute(batch)
        return time.thread_time() - begun

    def answered(length: int, rule: Rule, step: int) -> float:
        cut = shape.with_full_last if rule is before else shape
        session.buckets = _steps(session.buckets, step)
        audio = RawAudio(samples[:length].tobytes(), "float32", RATE, 1, None)
        query = Query(audio=audio, monitoring=MonitoringScope.SOUND)
        with mock.patch.object(local.pipeline, "windowing", lambda _: cut):
            begun = time.process_time()
            local.submit(local.pipeline.identify(query, [model])).result()
            return time.process_time() - begun

    ways: dict[str, Callable[[int], float]] = {
        "graph, before": lambda length: computed(length, before, RATE // 2),
        "graph, now, padded to 0.5 s": lambda length: computed(length, now, RATE // 2),
        "graph, now": lambda length: computed(length, now, buckets.CPU_STEP),
        "answer, before": lambda length: answered(length, before, RATE // 2),
        "answer, now": lambda length: answered(length, now, buckets.CPU_STEP),
    }
    spent: dict[str, list[list[float]]] = {name: [[] for _ in lengths] for name in ways}
    for number in range(arguments.rounds + 1):  # the first warms up
        for index, length in list(enumerate(lengths))[:: 1 if number % 2 else -1]:
            for name, way in ways.items():
                took = way(length)
                if number:
                    spent[name][index].append(1000 * took)
    local.close()
    result: dict[str, Any] = {"seconds": [round(each / RATE, 3) for each in lengths]}
    for name, values in spent.items():
        medians = [statistics.median(each) for each in values]
        ratios = [later / earlier for earlier, later in itertools.pairwise(medians)]
        result[name] = {"ms": [round(each, 2) for each in medians], "most_for_7_percent": round(max(ratios), 3)}
        print(name, result[name], flush=True)
    return result


def _steps(shapes: Buckets, step: int) -> Buckets:
    return dataclasses.replace(shapes, lengths=tuple(range(step, 10 * RATE + step, step)), step=step)


def _padded(graph: GraphSession[Job, Prediction], step: int) -> Callable[[NDArray[np.float32]], BatchInputs[Job]]:
    """Return a function that prepares a batch of one window, padded to a multiple of `step` samples."""

    def prepare(samples: NDArray[np.float32]) -> BatchInputs[Job]:
        graph.buckets = _steps(graph.buckets, step)
        return graph.prepare([Job(samples)])

    return prepare


def main() -> None:
    """Print the costs, then a line for each length; write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--seconds", type=float, nargs="+", default=[3.2, 3.6, 4.4, 6.0, 8.0])
    parser.add_argument("--rules", nargs="+", default=[*RULES, "equal"])
    parser.add_argument("--snr-db", type=float, nargs="+", default=[0.0])
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--time", action="store_true", help="measure processor time instead of accuracy")
    steps_of_7 = [round(STEP**index, 3) for index in range(1 + math.floor(math.log(12) / math.log(STEP)))]
    parser.add_argument("--time-seconds", type=float, nargs="+", default=steps_of_7)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    shape = windowing(WINDOW_SECONDS, [read_bundle(next(arguments.bundles.glob("*/*")))])
    figures: dict[str, Any] = {"steps": steps(shape)}
    print(figures["steps"], flush=True)
    if arguments.time:
        figures["time"] = timed(arguments, shape)
    else:
        figures["recordings"] = accuracy(arguments, shape)
    if arguments.out is not None:
        earlier = json.loads(arguments.out.read_text("utf-8")) if arguments.out.exists() else {}
        text = json.dumps({**earlier, **environment(), **figures}, indent=1)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
