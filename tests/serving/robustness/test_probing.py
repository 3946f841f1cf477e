"""Probes of real servers without requests: what they show, of which models, and when it is removed."""

import json
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from speakerlens.measures.probes import Condition, ProbeSet
from speakerlens.serving.pipeline.explain import resize
from tests.serving import toy
from tests.serving.harness import ServerProcess

CONDITIONS = (("clean", ""), ("resampled", ""), ("noise", "10"), ("noise", "0"))
UTTERANCES, SPEAKING_SECONDS = 2, 2.5
ROUND_SECONDS = 20.0
# The server's own module run by a program that changes it first; `sys.argv` is as of `python -m serving`.
WRONG_RESAMPLING = """
import runpy, sys
import soxr
class Wrong(soxr.ResampleStream):
    def __init__(self, rate, model_rate, *rest, **named):
        super().__init__(rate, 2 * model_rate, *rest, **named)
soxr.ResampleStream = Wrong
sys.argv = sys.argv[3:]
runpy.run_module("speakerlens.serving", run_name="__main__", alter_sys=True)
"""


def series(name: str, variant: str, interference: str, snr: str) -> str:
    return f'speakerlens_probe_{name}{{interference="{interference}",snr="{snr}",variant="{variant}"}}'


def of_variant(name: str, variant: str) -> str:
    return f'speakerlens_probe_{name}{{variant="{variant}"}}'


def outcome(variant: str, how: str) -> str:
    return f'speakerlens_probe_utterances_total{{outcome="{how}",variant="{variant}"}}'


def accuracies(metrics: dict[str, float], variant: str, name: str = "accuracy_ratio") -> dict[tuple[str, str], float]:
    """By interference and ratio, those that are shown."""
    found = {condition: metrics.get(series(name, variant, *condition)) for condition in CONDITIONS}
    return {condition: value for condition, value in found.items() if value is not None}


def wait_for_round(server: ServerProcess, variant: str, after: float = 0.0) -> dict[str, float]:
    """The metrics once a round has ended after a moment, in seconds since 1970."""
    name = of_variant("round_timestamp_seconds", variant)
    server.wait_for_metric(name, after or 1.0, ROUND_SECONDS)
    return server.metrics()


@pytest.fixture
def probed(tmp_path: Path) -> Path:
    """Variant `v` with probes, which it passes."""
    toy.add_probes(toy.write_bundle(tmp_path / "bundles", "v", 1))
    return tmp_path / "bundles"


def test_a_round_matches_the_results_at_export(probed: Path) -> None:
    """The numbers by hand, of the files; and nothing of it among the metrics of requests."""
    toy.write_bundle(probed, "without", 1)
    with ServerProcess(probed, "--probe-seconds=300") as server:
        metrics = wait_for_round(server, "v")
        text, log = server.metrics_text(), server.log
    content = json.loads((probed / "v/1/baseline.json").read_text())["probes"]
    expected = {
        (each["interference"], f"{each['snr_db'] or 0:g}" if each["snr_db"] is not None else ""): each
        for each in content
    }
    wanted = {condition: expected[condition]["accuracy"] for condition in CONDITIONS}
    assert accuracies(metrics, "v") == accuracies(metrics, "v", "expected_accuracy_ratio") == wanted
    assert wanted["clean", ""] == 1.0
    right = round(sum(wanted.values()) * UTTERANCES)
    counted = {how: metrics[outcome("v", how)] for how in ("right", "wrong", "failed")}
    assert counted == {"right": right, "wrong": UTTERANCES * len(CONDITIONS) - right, "failed": 0}
    assert re.search(rf"INFO .*probes of v/1: {right} of 8 right in ", log)
    for condition in CONDITIONS:
        assert 0 < metrics[series("latency_seconds", "v", *condition)] < 10
        mixed = condition[0] == "noise"
        assert (series("deletion_index", "v", *condition) in metrics) == mixed
        assert (series("expected_deletion_index", "v", *condition) in metrics) == mixed
        if mixed:
            found = metrics[series("deletion_index", "v", *condition)]
            assert found == pytest.approx(deletion_by_hand(probed / "v/1", float(condition[1])), rel=1e-4)
            assert metrics[series("expected_deletion_index", "v", *condition)] == 0.5
    assert time.time() - 60 < metrics[of_variant("round_timestamp_seconds", "v")] <= time.time()
    assert 0 < metrics[of_variant("round_duration_seconds", "v")] < ROUND_SECONDS
    assert not re.search(r"^speakerlens_probe_(?!utterances).*without", text, re.MULTILINE)
    for name in ("answers_total", "audio_seconds_total", "phase_duration_seconds_count", "input_duration_seconds_count",
                 "prediction_margin_count", "requests_total", "saliency_concentration_count"):  # fmt: skip
        assert not any(value for each, value in metrics.items() if each.startswith(f"speakerlens_{name}")), name
    sizes = {
        kind: metrics[f'speakerlens_batch_size_sum{{kind="{kind}",variant="v"}}']
        for kind in ("predict", "explain", "verify")
    }
    assert sizes == {"predict": 8, "explain": 8, "verify": 2}


def deletion_by_hand(folder: Path, snr_db: float) -> float:
    probes, condition = ProbeSet.read(folder, toy.manifest_of(folder)), Condition("noise", snr_db)
    assert probes is not None
    indices = []
    for number in range(UTTERANCES):
        answer = toy.expected(toy.weights(0), probes.mixture(number, condition))
        shape, where = answer["features"].shape, probes.dominated(number, condition)
        assert where is not None
        maps = [answer[f"saliency_s{stage}"].astype(np.float32) for stage in (2, 3, 4)]
        shown = np.mean([resize(each / each.max(), *shape) for each in maps], axis=0)
        indices.append(shown[where].sum() / shown.sum() / where.mean())
    return float(np.mean(indices))


def test_no_probes_when_the_period_is_zero(probed: Path) -> None:
    with ServerProcess(probed, "--probe-seconds=0") as server:
        time.sleep(1)
        text = server.metrics_text()
    assert "speakerlens_probe_accuracy_ratio{" not in text
    assert "probes of" not in server.log


def test_other_weights_show_within_a_period(probed: Path) -> None:
    """All is well with the bundle but what it says: digests, schema and parity hold."""
    folder = probed / "v/1"
    other = toy.write_bundle(probed.parent / "other", "v", 1, seed=1)
    for kind in ("predict", "explain", "verify"):
        shutil.copy(other / f"{kind}.onnx", folder / f"{kind}.onnx")
    toy.reseal(folder)
    with ServerProcess(probed, "--probe-seconds=5") as server:
        began = time.monotonic()
        metrics = wait_for_round(server, "v")
        assert time.monotonic() - began < 5 + ROUND_SECONDS
        log = server.log
    assert accuracies(metrics, "v")["clean", ""] < accuracies(metrics, "v", "expected_accuracy_ratio")["clean", ""]
    assert re.search(r"WARNING .*probes of v/1: \d of 8 right in .*more were right at export: clean 0 of 2, not 2", log)


@pytest.mark.parametrize(
    ("kind", "shown"), [("predict", CONDITIONS), ("explain", CONDITIONS), ("verify", CONDITIONS[:1])]
)
def test_each_graph_is_probed(probed: Path, kind: str, shown: tuple[tuple[str, str], ...]) -> None:
    """One graph alone is of another network; most requests ask another."""
    folder = probed / "v/1"
    before = json.loads((folder / "baseline.json").read_text())["probes"]
    shutil.copy(toy.write_bundle(probed.parent / "other", "v", 1, seed=1) / f"{kind}.onnx", folder / f"{kind}.onnx")
    toy.reseal(folder)
    with ServerProcess(probed, "--probe-seconds=300") as server:
        metrics = wait_for_round(server, "v")
    expected = {
        (each["interference"], "" if each["snr_db"] is None else f"{each['snr_db']:g}"): each["accuracy"]
        for each in before
    }
    fallen = {condition for condition, value in accuracies(metrics, "v").items() if value < expected[condition]}
    assert fallen == {condition for condition in shown if expected[condition]}


def test_an_overflow_counts_as_failed(tmp_path: Path) -> None:
    """The graph answers, with NaN."""
    folder = toy.write_bundle(tmp_path / "bundles", "v", 1, nan_peak=0.01)
    toy.add_probes(folder)
    with ServerProcess(tmp_path / "bundles", "--probe-seconds=300") as server:
        metrics, log = wait_for_round(server, "v"), server.log
    assert set(accuracies(metrics, "v").values()) == {0.0}
    assert metrics[outcome("v", "failed")] == 8
    assert metrics[outcome("v", "right")] == metrics[outcome("v", "wrong")] == 0
    assert series("latency_seconds", "v", "clean", "") not in metrics
    assert series("deletion_index", "v", "noise", "0") not in metrics
    assert re.search(
        r"WARNING .*0 of 8 right in .*, 8 failed, first clean: the model answered with NaN or infinity", log
    )


def test_broken_resampling_shows_in_resampled_probes_only(probed: Path, tmp_path: Path) -> None:
    program = tmp_path / "wrong.py"
    program.write_text(WRONG_RESAMPLING)
    with ServerProcess(probed, "--probe-seconds=300", within=[sys.executable, str(program)]) as server:
        metrics = wait_for_round(server, "v")
    found, expected = accuracies(metrics, "v"), accuracies(metrics, "v", "expected_accuracy_ratio")
    assert found.pop(("resampled", "")) < expected.pop(("resampled", ""))
    assert found == expected


def test_results_are_those_of_the_newest_version(probed: Path) -> None:
    """A new version is probed as soon as it is there; one without probes shows nothing, nor does one that is gone."""
    with ServerProcess(probed, "--probe-seconds=600", "--watch=0.2") as server:
        first = wait_for_round(server, "v")[of_variant("round_timestamp_seconds", "v")]
        toy.add_probes(toy.write_bundle(probed, "v", 2, seed=2), seed=2)
        wait_for_round(server, "v", after=first + 1e-3)
        server.wait_for_log("probes of v/2: ")
        toy.write_bundle(probed, "v", 3)
        wait_until_gone(server)
        toy.add_probes(toy.write_bundle(probed, "v", 4))
        wait_for_round(server, "v")
        shutil.rmtree(probed / "v/4")
        shutil.rmtree(probed / "v/3")
        wait_for_round(server, "v")
        toy.write_bundle(probed, "other", 1)
        server.wait_for_metric(
            'speakerlens_model_info{code_revision="toy",training_data_digest="'
            + "0" * 64
            + '",variant="other",version="1"}',
            1,
        )
        shutil.rmtree(probed / "v")
        wait_until_gone(server)
        assert server.metrics()[outcome("v", "right")] > 0, "what counts stays"


def wait_until_gone(server: ServerProcess) -> None:
    deadline = time.monotonic() + ROUND_SECONDS
    while re.search(r"^speakerlens_probe_(?!utterances)\w+{", server.metrics_text(), re.MULTILINE):
        assert time.monotonic() < deadline, server.metrics_text()
        time.sleep(0.05)


def test_an_unfinished_round_shows_nothing(tmp_path: Path) -> None:
    """Draining waits for no round."""
    folder = toy.write_bundle(tmp_path / "bundles", "v", 1, slow_seconds=0.9)
    toy.add_probes(folder)
    with ServerProcess(tmp_path / "bundles", "--probe-seconds=300", "--window-seconds=1.5") as server:
        server.wait_for_metric(outcome("v", "right"), 1)
        metrics = server.metrics()
        assert metrics[outcome("v", "right")] < 8
        assert not accuracies(metrics, "v")
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10
    assert "probes of" not in server.log
