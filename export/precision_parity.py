"""Repeat the comparison of a bundle's graphs in other number formats with those in float32, from the bundle alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speakerlens.cuda import Device
from speakerlens.export import parity
from speakerlens.export.onnx_graphs import PREDICT, VERIFY
from speakerlens.export.runtimes import ON_CPU, Case, Outputs, Runtime, load_graph, run_batch
from speakerlens.measures.precision import INT8, relative_error

_MARGIN = 2.0


def check_precisions(
    folder: Path,
    recorded: Mapping[str, Mapping[str, Any]],
    utterances: Sequence[NDArray[np.float32]],
    classes: int,
    device: Device,
) -> str:
    """Compare a bundle's graphs in other number formats with those in float32, on its own utterances.

    The median error may be `_MARGIN` times the worst that was recorded: single maps differ where a ReLU is at its kink.
    A processor that computes other numbers, or a graph of other weights, is far beyond that.

    Args:
        folder: the bundle.
        recorded: `precisions` of `precisions.json`.
        utterances: 16 kHz, each float32 [samples].
        classes: of the network.
        device: where fp16 runs; int8 runs on the CPU.

    Returns:
        A sentence about the first error that is too large; empty if all hold.
    """
    lengths = [parity.SECONDS[index % len(parity.SECONDS)] for index in range(len(utterances))]
    # Without a target, the two could explain different speakers.
    cases = [case._replace(target=max(case.target, 0)) for case in parity.make_cases(utterances, lengths, classes)]
    pairs = parity.make_pairs(cases, _answers(load_graph(folder / PREDICT, PREDICT, classes), cases))
    for name, entry in recorded.items():
        for graph, file in entry["graphs"].items():
            tested = pairs if graph == VERIFY else cases
            old = _answers(load_graph(folder / graph, graph, classes), tested)
            new = _answers(load_graph(folder / file, graph, classes, ON_CPU if name == INT8 else device), tested)
            for each in entry["outputs"]:
                if each["graph"] != graph:
                    continue
                output, limit = each["output"], _MARGIN * each["worst"]
                error = float(np.median([relative_error(b[output], a[output]) for a, b in zip(old, new, strict=True)]))
                if not error <= limit:
                    return f"{file}: {output} differs from {graph} by {error:.1e}; {limit:.1e} is allowed by the export"
    return ""


def _answers(runtime: Runtime, cases: Sequence[Case]) -> list[Outputs]:
    return [
        answer
        for chosen in parity.plan(len(cases))
        for answer in run_batch(runtime, [cases[index] for index in chosen])
    ]
