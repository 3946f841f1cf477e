"""Write a bundle's graphs in other number formats than float32, with what these change: `precisions.json`.

int8 (`export/int8.py`) is for CPUs and has `predict` alone: the maps' graphs stay in float32. fp16 (`export/half.py`)
is for GPUs and has all graphs. Both are run on this machine's CPU: its ONNX Runtime computes fp16 in float32, rounded
at every step of the graph, which checks the numbers and says nothing of the speed on a GPU.
"""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speakerlens.export import baseline
from speakerlens.export.half import in_half
from speakerlens.export.int8 import OPERATORS, in_int8
from speakerlens.export.onnx_graphs import EXPLAIN, PREDICT, VERIFY, check_graph_file, graph_names
from speakerlens.export.precision_figures import Decider, Scores, Trials, deletion_entries, map_entries
from speakerlens.export.probes import expected
from speakerlens.export.runtimes import Runtime, load_graph
from speakerlens.measures.precision import FLOOR, FP16, FP32, INT8, PRECISIONS, misses
from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.data.manifest import Clip, Corpus, Split, spread
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.conditions import CLEAN, MixtureBatch, batches, mixtures, supplied_grid
from speakerlens.training.evaluation.predictions import choose_clips

FILE = "precisions.json"
UTTERANCES = 200
"""Most utterances in each condition: with fewer, not one may be lost for half a point."""

_CALIBRATION = 64  # utterances, in every condition in turn
_STRANGERS = 40
_MAPPED = 3  # utterances in each condition whose maps are compared
_BATCH = 8
_SECONDS, _ROUNDS = 3.0, 9  # of the measurement of speed
_SNR_DB = 10.0

METHODS = {
    INT8: "static, per channel, 7-bit weights and 8-bit activations of convolutions, calibrated by the range on "
    "utterances of the train split, clean and under each kind of interference at 10 dB in turn; front end, pooling and "
    "head in float32",
    FP16: "convolutions and what lies between them in float16; front end, pooling and head in float32",
}


class Subject(NamedTuple):
    """The bundle that is written, as far as it is finished.

    Attributes:
        folder: with its float32 graphs and probes.
        corpus: to calibrate and measure on.
        speakers: the labels, or the enrolled voices' names without a classifier.
        classes: of the network.
        manifest: content of `bundle.json`, except for the digests.
        decider: how it decides.
        evaluated: utterances and conditions of the baseline.
        probes: results of the float32 graphs on the probes.
    """

    folder: Path
    corpus: Corpus
    speakers: Sequence[str]
    classes: int
    manifest: Mapping[str, Any]
    decider: Decider
    evaluated: baseline.EvaluationSet
    probes: Sequence[Mapping[str, Any]]

    @property
    def clips(self) -> list[Clip]:
        """The utterances that are measured."""
        return spread([clip for clip in self.evaluated.clean if clip.split == "test"], UTTERANCES)


def parse_precisions(text: str) -> tuple[str, ...]:
    """Return the precisions beside float32 in a list such as `fp32,int8`, each once, in the order of PRECISIONS.

    Raises:
        ValueError: one is unknown; names those that there are.
    """
    words = [word.strip() for word in text.split(",")]
    unknown = [word for word in words if word not in PRECISIONS]
    if unknown:
        raise ValueError(
            f"must be some of {', '.join(PRECISIONS)} with commas between them, not {unknown[0] or text!r}"
        )
    return tuple(name for name in PRECISIONS if name in words and name != FP32)


def written_precisions(folder: Path) -> tuple[str, ...]:
    """Return the precisions that a bundle has beside float32, by its files."""
    return tuple(name for name in PRECISIONS if (folder / precision_file(PREDICT, name)).is_file() and name != FP32)


def precision_file(graph: str, precision: str) -> str:
    """Return the file of a graph in another precision: `predict.onnx` in int8 is `predict.int8.onnx`."""
    return f"{graph.removesuffix('.onnx')}.{precision}.onnx"


def check_measurable(wanted: Sequence[str], corpus: Corpus | None, evaluated: baseline.EvaluationSet | None) -> None:
    """Check that the wanted precisions of a network, if any, can be calibrated and measured.

    Raises:
        UserError: there is no corpus, or no test utterance of the network's speakers.
    """
    if wanted and (corpus is None or evaluated is None or not any(each.split == "test" for each in evaluated.clean)):
        raise UserError(
            "--precision: other number formats are calibrated on a corpus and measured on its test utterances, and "
            "there are none for this network; leave it out, for float32"
        )


def steps(evaluated: baseline.EvaluationSet, wanted: Sequence[str]) -> int:
    """Return the number of steps in `write_precisions`."""
    clips = [clip for clip in evaluated.clean if clip.split == "test"]
    measured = len(batches(spread(clips, UTTERANCES), _BATCH)) * (1 + len(evaluated.conditions))
    return len(wanted) + measured if wanted else 0


def write_precisions(
    subject: Subject, wanted: Sequence[str], advance: Callable[[], None], workers: int
) -> dict[str, Any]:
    """Write the graphs of some precisions, and measure them.

    Args:
        subject: the bundle.
        wanted: precisions beside float32.
        advance: called after each of `steps` steps.
        workers: threads.

    Returns:
        Content of `precisions.json`.

    Raises:
        GraphError: a graph is not fit for a bundle.
    """
    graphs = {}
    for name in wanted:
        graphs[name] = _write_graphs(subject, name)
        advance()
    trials = _run_trials(subject, graphs, advance, workers)
    entries = {}
    for name in wanted:
        entry: dict[str, Any] = {
            "graphs": graphs[name],
            "conditions": trials[name].conditions(subject.decider),
            "outputs": [*trials[name].errors(), *_compare_maps(subject, graphs[name])],
            "deletion_index": _deletion_index(subject, graphs[name]),
            "speed": _speed(subject, graphs[name][PREDICT]),
            "method": METHODS[name],
        }
        missed = misses(entry, FLOOR)
        entries[name] = {**entry, "meets_floor": not missed, "misses": missed}
    return {"floor": dict(FLOOR), "utterances": len(subject.clips), "precisions": entries}


def _write_graphs(subject: Subject, name: str) -> dict[str, str]:
    """Write the graphs of a precision; return their files by those of float32."""
    folder = subject.folder
    if name == INT8:
        content = in_int8((folder / PREDICT).read_bytes(), _calibration(subject))
        written = {PREDICT: content}
    else:
        written = {graph: in_half((folder / graph).read_bytes(), FP16) for graph in graph_names(subject.classes)}
    files = {graph: precision_file(graph, name) for graph in written}
    for graph, content in written.items():
        (folder / files[graph]).write_bytes(content)
        check_graph_file(folder, files[graph], OPERATORS if name == INT8 else frozenset())
    return files


def _calibration(subject: Subject) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield inputs of `predict`, each of one utterance, of the train split, or of dev where there is none."""
    corpus = subject.corpus
    split: Split = "train" if corpus.utterances("train") else "dev"
    clips = [baseline.cut(clip) for clip in spread(corpus.utterances(split), _CALIBRATION)]
    supplied, _ = supplied_grid(corpus, split)
    conditions = [CLEAN, *(each for each in supplied if each.snr_db == _SNR_DB)]
    names = sorted({str(clip.speaker) for clip in clips})
    for turn, condition in enumerate(conditions):
        chosen = clips[turn :: len(conditions)]
        for batch in mixtures(corpus, split, names, (condition,), 1, chosen) if chosen else ():
            yield {"audio": batch.mixture.audio.numpy(), "lengths": batch.lengths.numpy()}


def _run_trials(
    subject: Subject, graphs: Mapping[str, Mapping[str, str]], advance: Callable[[], None], workers: int
) -> dict[str, Trials]:
    """Run `predict` in every precision on the same batches."""
    files = {FP32: PREDICT, **{name: of[PREDICT] for name, of in graphs.items()}}
    runtimes = {name: load_graph(subject.folder / file, PREDICT, subject.classes) for name, file in files.items()}
    trials = {name: Trials() for name in graphs}
    corpus, conditions = subject.corpus, (CLEAN, *subject.evaluated.conditions)
    out_of_set = _strangers(corpus, subject.speakers)
    others = sorted({str(clip.speaker) for clip in out_of_set[1]})
    known = mixtures(corpus, "test", subject.speakers, conditions, _BATCH, subject.clips)
    unknown = mixtures(corpus, out_of_set[0], others, _supplied(corpus, *out_of_set, conditions), _BATCH, out_of_set[1])

    with ThreadPoolExecutor(workers) as pool:

        def scores(batch: MixtureBatch) -> dict[str, Scores]:
            found = pool.map(lambda runtime: _scores(runtime, batch.mixture.audio, batch.lengths), runtimes.values())
            return dict(zip(runtimes, found, strict=True))

        for batch in known:
            found = scores(batch)
            for name, each in trials.items():
                each.fp32[batch.condition].append(found[FP32])
                each.changed[batch.condition].append(found[name])
                each.labels[batch.condition].append(batch.labels.numpy())
            advance()
        for batch in unknown if out_of_set[1] else ():
            found = scores(batch)
            for name, each in trials.items():
                each.strangers.append((found[FP32], found[name]))
    return trials


def _strangers(corpus: Corpus, speakers: Sequence[str]) -> tuple[Split, list[Clip]]:
    """Return out-of-set clips of the test split, or of dev where that has too few speakers, and the split."""
    for split in ("test", "dev"):
        clips = choose_clips(corpus, split, speakers)[1]
        if clips:
            return split, [baseline.cut(clip) for clip in spread(list(clips), _STRANGERS)]
    return "test", []


def _supplied(corpus: Corpus, split: Split, clips: Sequence[Clip], conditions: Sequence[Any]) -> list[Any]:
    supplied = supplied_grid(corpus, split)[0] if clips else ()
    return [each for each in conditions if each in supplied]


def _scores(runtime: Runtime, audio: Tensor, lengths: Tensor) -> Scores:
    outputs = runtime(audio, lengths, lengths)
    embeddings = outputs["embedding"]
    return Scores(outputs.get("logits", np.empty((len(embeddings), 0), np.float32)), embeddings)


def _compare_maps(subject: Subject, graphs: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the errors of the maps, of a few utterances in every condition, each alone."""
    found: list[dict[str, Any]] = []
    clips = spread(subject.clips, _MAPPED)
    conditions = (CLEAN, *subject.evaluated.conditions)
    for graph in (EXPLAIN, VERIFY):
        if graph not in graphs:
            continue
        old, new = (load_graph(subject.folder / file, graph, subject.classes) for file in (graph, graphs[graph]))
        reference = torch.ones(1, int(subject.manifest["network"]["embedding"]))
        pairs = []
        for batch in mixtures(subject.corpus, "test", subject.speakers, conditions, 1, clips):
            audio, lengths = batch.mixture.audio, batch.lengths
            # The same class in both; two utterances in a row are compared.
            other = batch.labels if graph == EXPLAIN and subject.classes else reference
            pairs.append((old(audio, lengths, other), new(audio, lengths, other)))
            reference = torch.from_numpy(pairs[-1][0]["embedding"])
        found += map_entries(graph, pairs)
    return found


def _deletion_index(subject: Subject, graphs: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the deletion indices of the probes beside those of float32; none without graphs for the maps."""
    voices = subject.decider.voices
    if VERIFY not in graphs or not subject.probes:
        return []
    answer = (
        baseline.answerer(subject.folder, graphs)
        if voices is None
        else baseline.comparer(subject.folder, voices, graphs)
    )
    return deletion_entries(subject.probes, expected(subject.folder, subject.manifest, answer))


def _speed(subject: Subject, file: str) -> dict[str, Any]:
    """Return the processor time of a file of `predict` over that in float32."""
    runtimes = [load_graph(subject.folder / each, PREDICT, subject.classes) for each in (PREDICT, file)]
    samples = round(_SECONDS * SAMPLE_RATE)
    audio = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([samples])
    ratios = []
    for turn in range(_ROUNDS + 1):
        taken = {}
        for place in (0, 1) if turn % 2 else (1, 0):
            started = time.process_time()
            runtimes[place](audio, lengths, lengths)
            taken[place] = time.process_time() - started
        ratios.append(taken[1] / max(taken[0], 1e-9))
    # The first run of a graph also takes memory.
    return {"of_fp32": float(np.median(ratios[1:])), "seconds": _SECONDS, "processor": _processor()}


def _processor() -> str:
    """Return the name of this machine's processor, as far as it is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{named or platform.processor() or 'unknown'} ({platform.machine()})"
