"""A bundle's `baseline.json`: how its answers were distributed at export, and what its probes should give."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jsonschema

from speakerlens.measures.distribution import Bins

BASELINE = "baseline.json"
CLEAN = "clean"


class BaselineError(Exception):
    """A baseline that says nothing, or not what it should; the message says where."""


@dataclass(frozen=True)
class Distribution:
    """Of one measure: how many of `samples` values fell into each bin, and their mean where there are any."""

    bins: Bins
    counts: tuple[int, ...]
    samples: int
    mean: float | None


@dataclass(frozen=True)
class ExpectedProbe:
    """What the model gave at export in one condition of the probes.

    `snr_db` is None where nothing is mixed in; `deletion_index` is a mean, None where it is not defined.
    """

    interference: str
    snr_db: float | None
    utterances: int
    accuracy: float
    deletion_index: float | None


@dataclass(frozen=True)
class Baseline:
    """The distribution of each measure on clean speech, by its name, and what the probes should give."""

    clean: Mapping[str, Distribution]
    probes: tuple[ExpectedProbe, ...]


def baseline_of(content: Mapping[str, Any]) -> Baseline:
    """What `baseline.json` holds, checked against its schema and for what a schema cannot say.

    Raises:
        BaselineError: it does not fit.
    """
    error = jsonschema.exceptions.best_match(_validator().iter_errors(content))
    if error is not None:
        where = error.json_path.removeprefix("$").removeprefix(".") or "top level"
        raise BaselineError(f"does not fit the schema at {where}: {error.message[:200]}")
    for kind, measures in content["distributions"].items():
        for name, found in measures.items():
            _check(f"distributions.{kind}.{name}", found)
    clean = {
        name: Distribution(Bins(tuple(found["edges"])), tuple(found["counts"]), found["samples"], found["mean"])
        for name, found in content["distributions"][CLEAN].items()
    }
    return Baseline(clean, tuple(ExpectedProbe(**probe) for probe in content["probes"]))


def _check(where: str, found: Mapping[str, Any]) -> None:
    edges, counts = found["edges"], found["counts"]
    if len(counts) != len(edges) + 1:
        raise BaselineError(f"has {len(counts)} counts for {len(edges)} edges at {where}")
    if any(not low < high for low, high in itertools.pairwise(edges)):
        raise BaselineError(f"has edges that do not rise at {where}")
    if sum(counts) != found["samples"]:
        raise BaselineError(f"counts {sum(counts)} of {found['samples']} samples at {where}")


@cache
def _validator() -> jsonschema.Draft202012Validator:
    text = resources.files("speakerlens.protos").joinpath("baseline.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))
