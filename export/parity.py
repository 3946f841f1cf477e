"""Verification of exported graphs against the eager network and autograd.

Every utterance is answered by the eager network alone and unpadded, and by the exported graphs in batches with others
of different lengths: so one comparison covers the operators, the gradients, dynamic shapes, and the masking of padding.
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

from speakerlens.export.graph import Explanation, Prediction, Verification
from speakerlens.export.kinks import Kinks
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

# Relative L2 error of each output (of `score`, a cosine, the absolute one): at most for every utterance, and in the
# median over utterances.
TOLERANCES: Mapping[str, tuple[float, float]] = {
    "logits": (1e-4, 1e-5),
    "embedding": (1e-4, 1e-5),
    "score": (1e-4, 1e-5),
    "features": (1e-3, 1e-4),
    **dict.fromkeys(MAPS, (1e-3, 1e-5)),
}
# Of the maps of a cosine: its gradient vanishes as the two embeddings come to agree, and rounding does not with it.
VERIFY_MAPS = (1e-3, 1e-4)

Outputs = dict[str, NDArray[Any]]
"""Outputs of one utterance by name, without padding."""
Runtime = Callable[[Tensor, Tensor, Tensor], Mapping[str, NDArray[Any]]]
"""Outputs of a batch, from audio [batch, samples], lengths [batch], and target [batch] or reference [batch, size]."""


class Case(NamedTuple):
    """One utterance as it is asked about: samples at 16 kHz, [samples], and whose score is explained.

    That is of the class `target` (-1: the predicted one), or the cosine to `reference` [size] where there is one.
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
        utterances: at least one, 16 kHz.
        advance: called after each of `steps()` steps.

    Returns:
        What `parity.json` holds: `holds`, `tolerances`, `utterances`, and `figures`, one for each runtime, output,
        batch size and length, with the worst and the median relative L2 error: of maps against the nearest of the
        eager maps that differ by rounding alone (`export/kinks.py`), and `raw` against the plain one.
    """
    runtimes, verifiers = load_runtimes(folder), load_verifiers(folder)
    kinks = Kinks(network)
    figures: list[dict[str, Any]] = []
    for seconds in SECONDS:
        cases = make_cases(utterances, seconds, network.classes)
        references = [eager(network, case) for case in cases]
        pairs = make_pairs(cases, references)
        pair_references = [eager(network, pair) for pair in pairs]
        advance()
        for batch_size in BATCH_SIZES:
            for name, runtime in (*runtimes.items(), *verifiers.items()):
                asked, right = (pairs, pair_references) if name in verifiers else (cases, references)
                answers = answer_in_batches(runtime, asked, batch_size)
                where = {"runtime": name, "batch": batch_size, "seconds": seconds}
                figures += _compare(asked, right, answers, kinks, where)
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
    """How often `verify` calls `advance`."""
    return len(SECONDS) * (1 + len(BATCH_SIZES) * len(RUNTIMES))


def make_cases(utterances: Sequence[NDArray[np.float32]], seconds: float, classes: int) -> list[Case]:
    """Cut (or repeat) each utterance to about `seconds`; every second one names a class to explain."""
    cases = []
    for index, samples in enumerate(utterances):
        length = int(seconds * SAMPLE_RATE) - 331 * (index % 7)
        audio = torch.from_numpy(np.resize(samples, length))
        cases.append(Case(audio, target=(5 * index) % classes if index % 2 else -1))
    return cases


def make_pairs(cases: Sequence[Case], references: Sequence[Outputs]) -> list[Case]:
    """The same utterances, each compared with the next one's embedding, which `references` hold."""
    others = [*references[1:], references[0]]
    return [
        Case(case.audio, case.target, torch.from_numpy(other["embedding"]))
        for case, other in zip(cases, others, strict=True)
    ]


def eager(network: SpeakerNetwork, case: Case) -> Outputs:
    """Outputs of one utterance alone, by autograd."""
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
    """Everything in a bundle that answers with classes, by the name of its file; asked with a target."""
    script = read_torchscript(folder)
    return {
        PREDICT: _graph(folder / PREDICT, Prediction._fields, None),
        EXPLAIN: _graph(folder / EXPLAIN, Explanation._fields, "target"),
        SCRIPT: _scripted(script, Explanation._fields),
    }


def load_verifiers(folder: Path) -> dict[str, Runtime]:
    """Everything in a bundle that compares, by its name in `parity.json`; asked with a reference."""
    return {
        VERIFY: _graph(folder / VERIFY, Verification._fields, "reference"),
        SCRIPT_VERIFY: _scripted(read_torchscript(folder).verify, Verification._fields),
    }


def _graph(path: Path, outputs: Sequence[str], asked: str | None) -> Runtime:
    """An ONNX graph; `asked` is its input beside audio and lengths."""
    session = _session(path)

    def run(audio: Tensor, lengths: Tensor, about: Tensor) -> Mapping[str, NDArray[Any]]:
        feeds = {"audio": audio.numpy(), "lengths": lengths.numpy()}
        if asked:
            feeds[asked] = about.numpy()
        return dict(zip(outputs, session.run(list(outputs), feeds), strict=True))

    return run


def _scripted(function: Callable[..., Sequence[Tensor]], outputs: Sequence[str]) -> Runtime:
    """A method of the TorchScript module."""

    def run(audio: Tensor, lengths: Tensor, about: Tensor) -> Mapping[str, NDArray[Any]]:
        with torch.inference_mode():
            answers = function(audio, lengths, about)
        return {name: tensor.numpy() for name, tensor in zip(outputs, answers, strict=True)}

    return run


def answer_in_batches(runtime: Runtime, cases: Sequence[Case], batch_size: int) -> list[Outputs]:
    """Ask a runtime about all cases, padded to the longest of each batch; answers without the padding."""
    answers: list[Outputs] = []
    for start in range(0, len(cases), batch_size):
        batch = cases[start : start + batch_size]
        lengths = torch.tensor([len(case.audio) for case in batch])
        audio = pad_sequence([case.audio for case in batch], batch_first=True)
        references = [case.reference for case in batch if case.reference is not None]
        about = torch.stack(references) if references else torch.tensor([case.target for case in batch])
        outputs = runtime(audio, lengths, about)
        answers += [{name: values[row] for name, values in outputs.items()} for row in range(len(batch))]
    return answers


def relative_error(answer: NDArray[Any], reference: NDArray[Any]) -> float:
    """L2 norm of the difference over that of the reference; what an answer has beyond the reference's size is padding.

    Padding must be zero, so it counts as error.
    """
    padded = np.zeros_like(answer)
    padded[tuple(slice(size) for size in reference.shape)] = reference
    norm = float(np.linalg.norm(reference))
    error = float(np.linalg.norm(answer - padded))
    return error / norm if norm > 0 else error


def _error(name: str, answer: NDArray[Any], reference: NDArray[Any]) -> float:
    """The error that the tolerances of an output are for."""
    return float(abs(answer - reference)) if name == "score" else relative_error(answer, reference)


def _compare(
    cases: Sequence[Case],
    references: Sequence[Outputs],
    answers: Sequence[Outputs],
    kinks: Kinks,
    where: Mapping[str, Any],
) -> list[dict[str, Any]]:
    names = [name for name in TOLERANCES if name in answers[0]]
    raw = [{n: _error(n, a[n], r[n]) for n in names} for a, r in zip(answers, references, strict=True)]
    nearest = [nearest_errors(*row, kinks) for row in zip(cases, answers, raw, strict=True)]
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


def nearest_errors(case: Case, answer: Outputs, raw: Mapping[str, float], kinks: Kinks) -> dict[str, float]:
    """The errors of an answer, its maps' against the nearest of the eager maps on either side of the kinks.

    Args:
        case: what was asked.
        answer: holds `features`, and maps or none.
        raw: relative L2 error of each output against one right answer; where scores or features are wrong, it stands.
        kinks: of the network that answered.
    """
    nearest = dict(raw)
    maps = [name for name in MAPS if name in answer]
    # Rounding does not change scores or features: where they differ, no kink is to blame.
    if not maps or any(not raw[name] <= TOLERANCES[name][0] for name in ("logits", "score", "features") if name in raw):
        return nearest
    candidates = kinks.maps(answer["features"], len(case.audio), case.target, case.reference)
    while any(nearest[name] > TOLERANCES[name][1] for name in maps):
        candidate = next(candidates, None)
        if candidate is None:
            break
        for name, reference in zip(MAPS, candidate, strict=True):
            nearest[name] = min(nearest[name], relative_error(answer[name], reference))
    return nearest


def failures(verified: Mapping[str, Any]) -> str:
    """What does not hold, in a sentence."""
    failed = [figure for figure in verified["figures"] if not figure["holds"]]
    first = max(failed, key=lambda figure: float(figure["worst"]))
    return (
        f"{len(failed)} of {len(verified['figures'])} comparisons with the eager network do not hold; the worst is "
        f"{first['output']} of {first['runtime']}, batch {first['batch']}, {first['seconds']} s: relative error "
        f"{first['worst']:.1e} at most and {first['median']:.1e} in the median; "
        f"allowed are {_limits(first['output'], first['runtime'])}"
    )


def table(verified: Mapping[str, Any]) -> Table:
    """The worst figures of each output by runtime, for the terminal."""
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
    options.intra_op_num_threads = 1  # small graphs, in processes beside one another
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _tolerance(output: str, runtime: str) -> tuple[float, float]:
    return VERIFY_MAPS if output in MAPS and runtime in (VERIFY, SCRIPT_VERIFY) else TOLERANCES[output]


def _limits(output: str, runtime: str) -> str:
    worst, median = _tolerance(output, runtime)
    return f"{worst:.0e} and {median:.0e}"
