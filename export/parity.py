"""Verify exported graphs against the eager network and autograd.

The eager network runs on every utterance alone and unpadded, the exported graphs run on batches of different lengths:
one comparison covers the operators, the gradients, dynamic shapes, and the masking of padding. Every runtime gets every
utterance once, at one of four lengths and in a batch of one of three sizes; batches mix the lengths.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from speakerlens.cuda import Device
from speakerlens.export.boundary import BoundaryReferences
from speakerlens.export.onnx_graphs import VERIFY
from speakerlens.export.runtimes import (
    MAPS,
    ON_CPU,
    SCRIPT_VERIFY,
    Case,
    Outputs,
    Runtime,
    eager,
    load_runtimes,
    load_verifiers,
    run_batch,
    runtime_names,
)
from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.model.network import SpeakerNetwork

UTTERANCES = 20
BATCH_SIZES = (1, 3, 8)
SECONDS = (1.0, 1.6, 2.3, 3.0)  # nominal lengths; each utterance's own differs a little

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


class _Row(NamedTuple):
    """One utterance in one runtime: its nominal length, the size of its batch, its outputs and their errors.

    `raw` are against the eager network; `nearest` may have those of maps against the nearest ReLU-boundary reference.
    """

    runtime: str
    batch: int
    seconds: float
    case: Case
    answer: Outputs
    raw: Mapping[str, float]
    nearest: Mapping[str, float]


def verify(
    network: SpeakerNetwork,
    folder: Path,
    utterances: Sequence[NDArray[np.float32]],
    advance: Callable[[], None] = lambda: None,
    workers: int = 1,
    device: Device = ON_CPU,
) -> dict[str, Any]:
    """Compare a bundle's graphs with the eager network.

    Args:
        network: the reference, in evaluation mode.
        folder: holds the graphs and `model.ts`.
        utterances: at least one, 16 kHz, each float32 [samples].
        advance: called after each of `steps()` steps.
        workers: threads.
        device: where the graphs run; the eager network and TorchScript run on the CPU.

    Returns:
        Content of `parity.json`: `holds`, `tolerances`, `utterances`, and `figures`, one for each runtime, output,
        batch size and length, with the worst relative L2 error of these utterances, and the median of all utterances in
        that runtime; for maps that exceed a tolerance against the nearest ReLU-boundary reference
        (`export/boundary.py`), and as `raw_…` against the eager map.
    """
    runtimes, verifiers = load_runtimes(folder, network.classes, device), load_verifiers(folder, device)
    boundary = BoundaryReferences(network)
    lengths = [SECONDS[index % len(SECONDS)] for index in range(len(utterances))]
    cases = make_cases(utterances, lengths, network.classes)
    with ThreadPoolExecutor(workers) as pool:
        references = list(pool.map(lambda case: eager(network, case), cases))
        advance()
        pairs = make_pairs(cases, references)
        pair_references = list(pool.map(lambda case: eager(network, case), pairs))
        advance()

        def run(task: tuple[str, Runtime, range]) -> list[_Row]:
            name, runtime, chosen = task
            tested, expected = (pairs, pair_references) if name in verifiers else (cases, references)
            answers = run_batch(runtime, [tested[index] for index in chosen])
            rows = []
            for index, answer in zip(chosen, answers, strict=True):
                raw = {output: _error(output, answer[output], expected[index][output]) for output in _compared(answer)}
                rows.append(_Row(name, len(chosen), lengths[index], tested[index], answer, raw, raw))
            return rows

        tasks = [
            (name, runtime, chosen)
            for name, runtime in (*runtimes.items(), *verifiers.items())
            for chosen in plan(len(cases))
        ]
        rows = []
        for found in pool.map(run, tasks):
            rows += found
            advance()
        for every in (False, True):  # a few of them are mostly enough
            doubtful = _doubtful(rows, every)
            nearest = pool.map(lambda row: nearest_errors(row.case, row.answer, row.raw, boundary), doubtful)
            replaced = dict(zip(map(id, doubtful), nearest, strict=True))
            rows = [row._replace(nearest=replaced.get(id(row), row.nearest)) for row in rows]
    figures = _figures(rows)
    return {
        "holds": all(figure["holds"] for figure in figures),
        "utterances": len(utterances),
        "tolerances": {
            name: {"worst": worst, "median": median}
            for name, (worst, median) in {**TOLERANCES, f"maps of {VERIFY}": VERIFY_MAPS}.items()
        },
        "figures": figures,
    }


def steps(utterances: int, classes: int) -> int:
    """Return the number of steps in `verify`."""
    return 2 + len(runtime_names(classes)) * len(list(plan(utterances)))


def plan(utterances: int) -> Iterator[range]:
    """Yield the utterances of each batch: sizes in turn, as far as they fit; each utterance is in one batch."""
    start, smallest = 0, min(BATCH_SIZES)
    for size in cycle(BATCH_SIZES):
        left = utterances - start
        if left <= 0:
            return
        if size <= left or left < smallest:
            yield range(start, start + min(size, left))
            start += size


def make_cases(utterances: Sequence[NDArray[np.float32]], seconds: Sequence[float], classes: int) -> list[Case]:
    """Cut or repeat each utterance [samples] to about its seconds; every second case has a target class."""
    cases = []
    for index, (samples, nominal) in enumerate(zip(utterances, seconds, strict=True)):
        length = int(nominal * SAMPLE_RATE) - 331 * (index % 7)
        audio = torch.from_numpy(np.resize(samples, length))
        cases.append(Case(audio, target=(5 * index) % classes if classes and index % 2 else -1))
    return cases


def make_pairs(cases: Sequence[Case], references: Sequence[Outputs]) -> list[Case]:
    """Return cases of the same utterances, each compared with the next one's embedding in `references`."""
    others = [*references[1:], references[0]]
    return [
        Case(case.audio, case.target, torch.from_numpy(other["embedding"].copy()))
        for case, other in zip(cases, others, strict=True)
    ]


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


def _compared(answer: Outputs) -> list[str]:
    return [name for name in TOLERANCES if name in answer]


def _doubtful(rows: Sequence[_Row], every: bool) -> list[_Row]:
    """Return the rows for which the nearest reference decides whether a tolerance holds, and is not known yet.

    These are the rows with a map beyond the tolerance for one utterance. Where the median of a runtime is beyond its
    own, they are also the rows beyond that: up to the middle one in the order of their errors, or `every` one.
    """
    found: dict[int, _Row] = {}
    for runtime in dict.fromkeys(row.runtime for row in rows):
        own = [row for row in rows if row.runtime == runtime]
        for name in [name for name in MAPS if name in own[0].raw]:
            worst, median = _tolerance(name, runtime)
            chosen = [row for row in own if not row.nearest[name] <= worst]
            if not np.median([row.nearest[name] for row in own]) <= median:
                ordered = sorted(own, key=lambda row: row.nearest[name])
                first = ordered if every else ordered[: len(own) // 2 + 1]
                chosen += [row for row in first if not row.nearest[name] <= median]
            found |= {id(row): row for row in chosen if row.nearest is row.raw}
    return list(found.values())


def _figures(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    """Return the content of `figures`."""
    figures = []
    for runtime in dict.fromkeys(row.runtime for row in rows):
        own = [row for row in rows if row.runtime == runtime]
        for name in [name for name in TOLERANCES if name in own[0].raw]:
            allowed, allowed_median = _tolerance(name, runtime)
            median = float(np.median([row.nearest[name] for row in own]))
            raw_median = float(np.median([row.raw[name] for row in own]))
            for batch, seconds in dict.fromkeys((row.batch, row.seconds) for row in own):
                cell = [row for row in own if (row.batch, row.seconds) == (batch, seconds)]
                worst = max(row.nearest[name] for row in cell)
                figures.append(
                    {
                        "runtime": runtime,
                        "batch": batch,
                        "seconds": seconds,
                        "output": name,
                        "worst": worst,
                        "median": median,
                        "raw_worst": max(row.raw[name] for row in cell),
                        "raw_median": raw_median,
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
    enough = TOLERANCES if case.reference is None else dict.fromkeys(MAPS, VERIFY_MAPS)
    while any(nearest[name] > enough[name][1] for name in maps):
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
        for runtime in dict.fromkeys(figure["runtime"] for figure in verified["figures"]):
            figures = [f for f in verified["figures"] if f["output"] == output and f["runtime"] == runtime]
            if figures:
                worst, median = max(f["worst"] for f in figures), figures[0]["median"]
                shown.add_row(output, runtime, f"{worst:.1e}", f"{median:.1e}", _limits(output, runtime))
    return shown


def _tolerance(output: str, runtime: str) -> tuple[float, float]:
    return VERIFY_MAPS if output in MAPS and runtime in (VERIFY, SCRIPT_VERIFY) else TOLERANCES[output]


def _limits(output: str, runtime: str) -> str:
    worst, median = _tolerance(output, runtime)
    return f"{worst:.0e} and {median:.0e}"
