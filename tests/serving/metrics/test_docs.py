"""docs/metrics.md against the page of a real server, both ways."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.errors import Reason
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.metrics.robustness import AGREEMENTS, DECISIONS, OUTCOMES, SNR_BANDS, WORKS
from speakerlens.serving.robustness.drift import Drift
from speakerlens.serving.robustness.sampling import BANDS
from tests.conftest import ROOT
from tests.serving import toy
from tests.serving.harness import ServerProcess, raw, talk

TEXT = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
HEAD = ["name", "type", "unit", "labels", "meaning", "the question it answers"]
# How names end that say their unit, and how the page says it.
UNITS = {"seconds": "seconds", "decibels": "dB", "hertz": "Hz", "bytes": "bytes", "ratio": "0 to 1", "nats": "nats"}


@dataclass(frozen=True)
class Row:
    kind: str
    unit: str
    labels: frozenset[str]
    meaning: str
    question: str


def documented() -> dict[str, Row]:
    """The rows of the page's tables by the name they begin with."""
    rows: dict[str, Row] = {}
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == len(HEAD) and re.fullmatch(r"`\w+`", cells[0]):
            name = cells[0].strip("`")
            assert name not in rows, f"{name} stands there twice"
            rows[name] = Row(cells[1], cells[2], frozenset(re.findall(r"`(\w+)`", cells[3])), cells[4], cells[5])
    return rows


def name_of(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else str(family.name)


@pytest.fixture(scope="module")
def families(toy_bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Metric]]:
    """What stands on the page of a server that has been asked, and whose folder holds a bundle that is refused."""
    root = tmp_path_factory.mktemp("documented") / "bundles"
    shutil.copytree(toy_bundles, root)
    (toy.write_bundle(root, "broken", 1) / "parity.json").write_text("{}")
    with ServerProcess(root, "--saliency-share=1", "--shadow-share=1") as server:
        server.identify(pb.IdentifyRequest(audio=raw(talk(1.0))))
        server.wait_for_metric('speakerlens_background_total{outcome="done",work="saliency"}', 1)
        server.wait_for_metric('speakerlens_background_total{outcome="done",work="shadow"}', 1)
        yield {name_of(family): family for family in text_string_to_metric_families(server.metrics_text())}


def test_every_metric_is_documented_and_nothing_else_is(families: dict[str, Metric]) -> None:
    assert documented().keys() == families.keys()
    for name, row in documented().items():
        assert row.kind == families[name].type, name
        assert row.meaning, name
        assert row.question.endswith("?"), name


def test_labels_are_as_documented(families: dict[str, Metric]) -> None:
    declared = {
        family.name: frozenset(collector._labelnames)
        for collector in Metrics().registry._collector_to_names
        if isinstance(collector, MetricWrapperBase)
        for family in collector.describe()
    } | {family.name: frozenset(family._labelnames) for family in Drift(10).describe()}
    for name, row in documented().items():
        family = families[name]
        found = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        assert found <= {row.labels}, name
        if not found:  # nothing has happened that it counts
            assert declared[family.name] == row.labels, name


def test_units_are_those_of_the_names() -> None:
    for name, row in documented().items():
        end = name.removesuffix("_total").rpartition("_")[2]
        if name.endswith("_timestamp_seconds") or name == "process_start_time_seconds":
            assert row.unit == "seconds since 1970", name
        elif name == "speakerlens_input_level_decibels":
            assert row.unit == "dBFS"
        elif end in UNITS:
            assert row.unit == UNITS[end], name
        else:
            assert row.unit not in {"seconds", "bytes", "Hz", "dB"}, name


def test_values_of_labels_are_those_that_are_documented(families: dict[str, Metric]) -> None:
    """Sets that the code fixes; those of variants, methods and reasons are bounded elsewhere."""
    for values in (DECISIONS, OUTCOMES, WORKS, SNR_BANDS, AGREEMENTS, toy.baseline()["distributions"]["clean"]):
        for value in values:
            assert f"`{value}`" in TEXT, value
    assert [name for _, name in BANDS] == list(SNR_BANDS[:-1])
    shown = {sample.labels["reason"] for sample in families["speakerlens_rejections_total"].samples}
    assert shown == set(Reason)
    shown = {sample.labels["measure"] for sample in families["speakerlens_drift_samples"].samples}
    assert shown == set(toy.baseline()["distributions"]["clean"])


def test_where_a_bound_is_negative_there_is_no_sum(families: dict[str, Metric]) -> None:
    without = {
        name
        for name, family in families.items()
        if family.type == "histogram" and not any(sample.name.endswith("_sum") for sample in family.samples)
    }
    assert without == {"speakerlens_input_snr_decibels", "speakerlens_input_level_decibels"}
    for name, family in families.items():
        assert not any(sample.name.endswith("_created") for sample in family.samples), name
