"""Verify exported graphs against the eager network and autograd.

The eager network runs on every utterance alone and unpadded, the exported graphs run on batches of different lengths:
one comparison covers the operators, the gradients, dynamic shapes, and the masking of padding.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speakerlens.export.boundary import BoundaryReferences
from speakerlens.export.graph import Explanation, Prediction, Verification
from speakerlens.export.onnx_graphs import EXPLAIN, PREDICT, VERIFY
from speakerlens.export.torchscript import FILE as SCRIPT
from speakerlens.export.torchscript import read_torchscript
from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.model.network import SpeakerNetwork
from speakerlens.training.model.saliency import cosine_layercam, layercam

UTTERANCES = 20
BATCH_SIZES = (1, 3, 8)
SECONDS = (1.0, 1.6, 2.3, 3.0)  # nominal lengths; each utterance's own differs a little, so that batches hold padding
SCRIPT_VERIFY = f"{SCRIPT} verify"
RUNTIMES = (PREDICT, EXPLAIN, SCRIPT, VERIFY, SCRIPT_VERIFY)
MAPS = ("saliency_s1", "saliency_s2", "saliency_s3", "saliency_s4")

# Relative L2 error of each output (for `score`, a cosine, the absolute error): the most for any utterance, and for the
# median over utterances.
TOLERANCES: Mapping[str, tuple[float, float]] = {
    "logits": (1e-4, 1e-5),
    "embedding": (1e-4, 1e-5),
    "score": (1e-4, 1e-5),
    "features": (1e-3, 1e-4),
    **dict.fromkeys(MAPS, (1e-3, 1e-5)),
}
# For maps of a cosine: its gradient vanishes where the two embeddings agree, rounding errors do not.
VERIFY_MAPS = (1e-3, 1e-4)

Outputs = dict[str, NDArray[Any]]
"""Outputs of one utterance by name, without the batch dimension."""
Runtime = Callable[[Tensor, Tensor, Tensor], Mapping[str, NDArray[Any]]]
"""Run a batch: audio [batch, samples], lengths [batch], and target [batch] or reference [batch, size]."""


class Case(NamedTuple):
    """One utterance, 16 kHz [samples], and the score to explain.

    The score is the logit of the class `target` (-1: the predicted one), or the cosine to `reference` [size] if given.
    """

    audio: Tensor
    target: int
    reference: Tensor | None = None


def verify(
    network: SpeakerNetwork,
    folder: Path,
    utterances: Sequence[NDArray[np.float32]],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Compare a bundle's graphs with the eager network.

    Args:
        network: the reference, in evaluation mode.
        folder: holds `predict.onnx`, `explain.onnx`, `verify.onnx` and `model.ts`.
        utterances: at least one, 16 kHz, each float32 [samples].
        advance: called after each of `steps()` steps.

    Returns:
        Content of `parity.json`: `holds`, `tolerances`, `utterances`, and `figures`, one for each runtime, output,
        batch size and length, with the worst and the median relative L2 error; for maps against the nearest
        ReLU-boundary reference (`export/boundary.py`), and as `raw_…` against the eager map.
    """
    runtimes, verifiers = load_runtimes(folder), load_verifiers(folder)
    boundary = BoundaryReferences(network)
    figures: list[dict[str, Any]] = []
    for seconds in SECONDS:
        cases = make_cases(utterances, seconds, network.classes)
        references = [eager(network, case) for case in cases]
        pairs = make_pairs(cases, references)
        pair_references = [eager(network, pair) for pair in pairs]
        advance()
        for batch_size in BATCH_SIZES:
            for name, runtime in (*runtimes.items(), *verifiers.items()):
                tested, expected = (pairs, pair_references) if name in verifiers else (cases, references)
                answers = run_in_batches(runtime, tested, batch_size)
                where = {"runtime": name, "batch": batch_size, "seconds": seconds}
                figures += _compare(tested, expected, answers, boundary, where)
                advance()
    return {
        "holds": all(figure["holds"] for figure in figures),
        "utterances": len(utterances),
        "tolerances": {
            name: {"worst": worst, "median": median}
            for name, (worst, median) in {**TOLERANCES, f"maps of {VERIFY}": VERIFY_MAPS}.items()
        },
        "figures": figures,
    }


def steps() -> int:
    """Return the number of steps in `verify`."""
    return len(SECONDS) * (1 + len(BATCH_SIZES) * len(RUNTIMES))


def make_cases(utterances: Sequence[NDArray[np.float32]], seconds: float, classes: int) -> list[Case]:
    """Cut or repeat each utterance [samples] to about `seconds`; every second case has a target class."""
    cases = []
    for index, samples in enumerate(utterances):
        length = int(seconds * SAMPLE_RATE) - 331 * (index % 7)
        audio = torch.from_numpy(np.resize(samples, length))
        cases.append(Case(audio, target=(5 * index) % classes if index % 2 else -1))
    return cases


def make_pairs(cases: Sequence[Case], references: Sequence[Outputs]) -> list[Case]:
    """Return cases of the same utterances, each compared with the next one's embedding in `references`."""
    others = [*references[1:], references[0]]
    return [
        Case(case.audio, case.target, torch.from_numpy(other["embedding"]))
        for case, other in zip(cases, others, strict=True)
    ]


def eager(network: SpeakerNetwork, case: Case) -> Outputs:
    """Return the outputs of one utterance alone, by autograd; shapes as in `export.graph`, without the batch."""
    if case.reference is None:
        explained = layercam(network, case.audio[None], target=torch.tensor([case.target]))
        named = {"logits": explained.logits, "embedding": explained.embedding, "features": explained.features}
        maps = explained.maps
    else:
        compared = cosine_layercam(network, case.audio[None], case.reference[None])
        named = {"score": compared.score, "embedding": compared.embedding, "features": compared.features}
        maps = compared.maps
    named |= dict(zip(MAPS, maps, strict=True))
    return {name: tensor[0].numpy() for name, tensor in named.items()}


def load_runtimes(folder: Path) -> dict[str, Runtime]:
    """Return the runtimes that take a target class, by the name of their file."""
    script = read_torchscript(folder)
    return {
        PREDICT: _graph(folder / PREDICT, Prediction._fields, None),
        EXPLAIN: _graph(folder / EXPLAIN, Explanation._fields, "target"),
        SCRIPT: _scripted(script, Explanation._fields),
    }


def load_verifiers(folder: Path) -> dict[str, Runtime]:
    """Return the runtimes that take a reference embedding, by their name in `parity.json`."""
    return {
        VERIFY: _graph(folder / VERIFY, Verification._fields, "reference"),
        SCRIPT_VERIFY: _scripted(read_torchscript(folder).verify, Verification._fields),
    }


def _graph(path: Path, outputs: Sequence[str], third_input: str | None) -> Runtime:
    """Return the runtime of an ONNX graph; `third_input` is its input in addition to audio and lengths."""
    session = _session(path)

    def run(audio: Tensor, lengths: Tensor, other: Tensor) -> Mapping[str, NDArray[Any]]:
        feeds = {"audio": audio.numpy(), "lengths": lengths.numpy()}
        if third_input:
            feeds[third_input] = other.numpy()
        return dict(zip(outputs, session.run(list(outputs), feeds), strict=True))

    return run


def _scripted(function: Callable[..., Sequence[Tensor]], outputs: Sequence[str]) -> Runtime:
    """Return the runtime of a method of the TorchScript module."""

    def run(audio: Tensor, lengths: Tensor, other: Tensor) -> Mapping[str, NDArray[Any]]:
        with torch.inference_mode():
            answers = function(audio, lengths, other)
        return {name: tensor.numpy() for name, tensor in zip(outputs, answers, strict=True)}

    return run


def run_in_batches(runtime: Runtime, cases: Sequence[Case], batch_size: int) -> list[Outputs]:
    """Run all cases, padded to the longest of each batch; return each one's outputs, padding included."""
    answers: list[Outputs] = []
    for start in range(0, len(cases), batch_size):
        batch = cases[start : start + batch_size]
        lengths = torch.tensor([len(case.audio) for case in batch])
        audio = pad_sequence([case.audio for case in batch], batch_first=True)
        references = [case.reference for case in batch if case.reference is not None]
        other = torch.stack(references) if references else torch.tensor([case.target for case in batch])
        outputs = runtime(audio, lengths, other)
        answers += [{name: values[row] for name, values in outputs.items()} for row in range(len(batch))]
    return answers


def relative_error(answer: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the L2 norm of the difference over that of the reference.

    `answer` may be larger than `reference` in any dimension: the rest is padding, which must be zero.
    """
    padded = np.zeros_like(answer)
    padded[tuple(slice(size) for size in reference.shape)] = reference
    norm = float(np.linalg.norm(reference))
    error = float(np.linalg.norm(answer - padded))
    return error / norm if norm > 0 else error


def _error(name: str, answer: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the error that the tolerance of an output limits."""
    return float(abs(answer - reference)) if name == "score" else relative_error(answer, reference)


def _compare(
    cases: Sequence[Case],
    references: Sequence[Outputs],
    answers: Sequence[Outputs],
    boundary: BoundaryReferences,
    where: Mapping[str, Any],
) -> list[dict[str, Any]]:
    names = [name for name in TOLERANCES if name in answers[0]]
    raw = [{n: _error(n, a[n], r[n]) for n in names} for a, r in zip(answers, references, strict=True)]
    nearest = [nearest_errors(*row, boundary) for row in zip(cases, answers, raw, strict=True)]
    figures = []
    for name in names:
        allowed, allowed_median = _tolerance(name, where["runtime"])
        errors, raw_errors = [row[name] for row in nearest], [row[name] for row in raw]
        worst, median = max(errors), float(np.median(errors))
        figures.append(
            {
                **where,
                "output": name,
                "worst": worst,
                "median": median,
                "raw_worst": max(raw_errors),
                "raw_median": float(np.median(raw_errors)),
                "holds": worst <= allowed and median <= allowed_median,  # false for NaN too
            }
        )
    return figures


def nearest_errors(
    case: Case, answer: Outputs, raw: Mapping[str, float], boundary: BoundaryReferences
) -> dict[str, float]:
    """Return the errors of an answer; those of its maps against the nearest ReLU-boundary reference.

    Args:
        case: the utterance and the explained score.
        answer: has `features`, and maps or none.
        raw: relative L2 error of each output against one reference; returned as it is if scores or features are wrong.
        boundary: references of the network under test.
    """
    nearest = dict(raw)
    maps = [name for name in MAPS if name in answer]
    # A ReLU boundary changes neither scores nor features.
    if not maps or any(not raw[name] <= TOLERANCES[name][0] for name in ("logits", "score", "features") if name in raw):
        return nearest
    candidates = boundary.maps(answer["features"], len(case.audio), case.target, case.reference)
    while any(nearest[name] > TOLERANCES[name][1] for name in maps):
        candidate = next(candidates, None)
        if candidate is None:
            break
        for name, reference in zip(MAPS, candidate, strict=True):
            nearest[name] = min(nearest[name], relative_error(answer[name], reference))
    return nearest


def failures(verified: Mapping[str, Any]) -> str:
    """Return a sentence about the comparisons that fail."""
    failed = [figure for figure in verified["figures"] if not figure["holds"]]
    first = max(failed, key=lambda figure: float(figure["worst"]))
    return (
        f"{len(failed)} of {len(verified['figures'])} comparisons with the eager network do not hold; the worst is "
        f"{first['output']} of {first['runtime']}, batch {first['batch']}, {first['seconds']} s: relative error "
        f"{first['worst']:.1e} at most and {first['median']:.1e} in the median; "
        f"allowed are {_limits(first['output'], first['runtime'])}"
    )


def table(verified: Mapping[str, Any]) -> Table:
    """Return the worst figures of each output by runtime, for the terminal."""
    shown = Table("output", "runtime", "worst", "median", "allowed", title="relative L2 error against eager autograd")
    for output in TOLERANCES:
        for runtime in RUNTIMES:
            figures = [f for f in verified["figures"] if f["output"] == output and f["runtime"] == runtime]
            if figures:
                worst, median = max(f["worst"] for f in figures), max(f["median"] for f in figures)
                shown.add_row(output, runtime, f"{worst:.1e}", f"{median:.1e}", _limits(output, runtime))
    return shown


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # small graphs, several processes at a time
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _tolerance(output: str, runtime: str) -> tuple[float, float]:
    return VERIFY_MAPS if output in MAPS and runtime in (VERIFY, SCRIPT_VERIFY) else TOLERANCES[output]


def _limits(output: str, runtime: str) -> str:
    worst, median = _tolerance(output, runtime)
    return f"{worst:.0e} and {median:.0e}"
