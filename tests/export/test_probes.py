"""The probe set that an export writes: the mixtures of the evaluation, and the graph's results on them."""

import dataclasses
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speakerlens.export.bundle import Written, export_run
from speakerlens.export.graph import ExportedNetwork
from speakerlens.measures.probes import MAX_SECONDS, Condition, ProbeSet, files
from speakerlens.training.checkpoint import load_run
from speakerlens.training.data.manifest import Clip, load_corpus
from speakerlens.training.data.mixing import KINDS, scale_to_snr
from speakerlens.training.evaluation import conditions
from speakerlens.training.evaluation.calibration import Calibration
from speakerlens.training.evaluation.verification import ReferenceThreshold, Verification
from speakerlens.training.model.front_end import LogMel
from speakerlens.training.model.saliency import deletion_index, dominated_bins, fused, layercam

CONDITIONS = [Condition(kind, snr_db) for kind in KINDS for snr_db in (10.0, 0.0)]


@pytest.fixture(scope="module")
def folder(bundles: Path) -> Path:
    return bundles / "act-da" / "1"


@pytest.fixture(scope="module")
def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
    return content


@pytest.fixture(scope="module")
def probes(folder: Path, manifest: dict[str, Any]) -> ProbeSet:
    found = ProbeSet.read(folder, manifest)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def clips(folder: Path, corpus: Path, manifest: dict[str, Any]) -> list[Clip]:
    """The probes' utterances in the corpus, found by their samples, cut to the probes' length."""
    loaded = load_corpus(corpus).utterances("test")
    sounds = {soundfile.read(clip.path, dtype="int16")[0].tobytes(): clip for clip in loaded}
    chosen = [soundfile.read(folder / each["file"], dtype="int16")[0] for each in manifest["probes"]["utterances"]]
    found = [sounds[samples.tobytes()] for samples in chosen]
    return [dataclasses.replace(clip, duration=min(clip.duration, MAX_SECONDS)) for clip in found]


def test_set_has_eight_speakers_and_every_condition(folder: Path, manifest: dict[str, Any], probes: ProbeSet) -> None:
    assert probes.conditions == (Condition("clean", None), Condition("resampled", None), *CONDITIONS)
    assert len({utterance.speaker for utterance in probes.utterances}) == 8
    assert set(files(manifest["probes"])) <= manifest["files"].keys()
    size = sum(path.stat().st_size for path in (folder / "probes").rglob("*") if path.is_file())
    assert size < 4_200_000


def test_probes_are_the_mixtures_of_the_evaluation(
    runs: dict[str, Path], corpus: Path, probes: ProbeSet, clips: Sequence[Clip]
) -> None:
    """The files have 16 bits, so a bin at the boundary may flip."""
    trained, flipped, bins = load_run(runs["act-da"]), 0, 0
    tested = [conditions.CLEAN, *(conditions.Condition(kind, snr_db) for kind, snr_db in CONDITIONS)]
    front_end = trained.network.front_end
    for batch in conditions.mixtures(load_corpus(corpus), "test", trained.speakers, tested, 1, clips):
        index, condition = int(batch.indices[0]), Condition(batch.condition.kind, batch.condition.snr_db)
        reference = batch.mixture.audio[0].numpy()
        mixture = probes.mixture(index, condition)
        assert np.linalg.norm(mixture - reference) < 2e-3 * np.linalg.norm(reference)
        assert trained.speakers[int(batch.labels[0])] == probes.utterances[index].speaker
        dominated = probes.dominated(index, condition)
        if dominated is not None:
            wanted = dominated_bins(front_end, batch.mixture.speech, batch.mixture.interference)[0].numpy()
            flipped, bins = flipped + int((dominated != wanted).sum()), bins + dominated.size
    assert bins > 1_000_000
    assert flipped / bins < 5e-4


def test_eight_bit_levels_flip_almost_no_bin(probes: ProbeSet, manifest: dict[str, Any]) -> None:
    """Rounded down, whole decibels are exact: the rest is float32 rounding."""
    front_end, flipped, bins = LogMel(manifest["front_end"]["mel_bins"]), 0, 0
    for index, utterance in enumerate(probes.utterances):
        speech = torch.from_numpy(probes.mixture(index, Condition("clean", None)))[None]
        for condition in CONDITIONS:
            samples, _ = soundfile.read(io.BytesIO(utterance.layers[condition.interference].sound), dtype="float32")
            layer = scale_to_snr(speech, torch.from_numpy(samples)[None], torch.tensor([condition.snr_db]))
            dominated = probes.dominated(index, condition)
            assert dominated is not None
            flipped += int((dominated != dominated_bins(front_end, speech, layer)[0].numpy()).sum())
            bins += dominated.size
    assert flipped / bins < 1e-5


def test_resampled_utterance_is_the_clean_one(probes: ProbeSet) -> None:
    for index in range(len(probes.utterances)):
        clean = probes.mixture(index, Condition("clean", None))
        samples, rate = soundfile.read(io.BytesIO(probes.encoded(index)), dtype="float32")
        assert (rate, len(samples)) == (48_000, 3 * len(clean))
        assert np.linalg.norm(samples[::3] - clean) < 0.05 * np.linalg.norm(clean)


def test_expected_results_are_those_of_the_eager_network(folder: Path, runs: dict[str, Path], probes: ProbeSet) -> None:
    """Accuracy and deletion index of the eager network by autograd, over the set as it is read."""
    trained = load_run(runs["act-da"])
    network, expected = trained.network, json.loads((folder / "baseline.json").read_text())["probes"]
    assert [(each["interference"], each["snr_db"]) for each in expected] == list(probes.conditions)
    by_condition = {(each["interference"], each["snr_db"]): each for each in expected}
    for condition in probes.conditions:
        if condition.interference == "resampled":
            continue
        hits, indices = [], []
        for index, utterance in enumerate(probes.utterances):
            audio = torch.from_numpy(probes.mixture(index, condition))[None]
            saliency = layercam(network, audio)
            hits.append(trained.speakers[int(saliency.target[0])] == utterance.speaker)
            dominated = probes.dominated(index, condition)
            if dominated is not None:
                shown = fused(saliency)
                indices.append(float(deletion_index(shown, torch.from_numpy(dominated)[None], saliency.frames)))
        found = by_condition[condition]
        assert found["utterances"] == len(hits)
        assert found["accuracy"] == np.mean(hits)
        if indices:
            assert found["deletion_index"] == pytest.approx(np.mean(indices), rel=1e-3)
        else:
            assert found["deletion_index"] is None
    assert by_condition["clean", None]["accuracy"] > 0.5, "a set that the model fails shows no regression"
    resampled = by_condition["resampled", None]
    assert resampled["deletion_index"] is None
    assert abs(resampled["accuracy"] - by_condition["clean", None]["accuracy"]) <= 1 / 8


def test_export_without_probes_has_none(
    folder: Path, manifest: dict[str, Any], runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs, verification and calibration are copied: other tests cover them."""

    def copied(_network: ExportedNetwork, out: Path, *_rest: object) -> None:
        for name in ("predict.onnx", "explain.onnx", "verify.onnx", "model.ts"):
            shutil.copy(folder / name, out / name)

    def export(probes: bool) -> Written:
        return export_run(runs["act-da"], tmp_path, lambda done, total: None, probes=probes)

    measured = json.loads((folder / "baseline.json").read_text())
    calibration = {name: value for name, value in manifest["calibration"].items() if name != "method"}
    verification = {name: value for name, value in manifest["verification"].items() if name != "method"}
    thresholds = tuple(ReferenceThreshold(**each) for each in verification["thresholds"])
    monkeypatch.setattr("speakerlens.export.bundle.calibrate", lambda *_, **__: Calibration(**calibration))
    verified = Verification(**{**verification, "thresholds": thresholds})
    monkeypatch.setattr("speakerlens.export.bundle.calibrate_verification", lambda *_: verified)
    monkeypatch.setattr("speakerlens.export.bundle.calibrate_search", lambda *_: manifest["search"])
    monkeypatch.setattr("speakerlens.export.bundle.predict_split", lambda *_: ())
    monkeypatch.setattr("speakerlens.export.bundle.fit_scorer", lambda *_: None)
    monkeypatch.setattr("speakerlens.export.bundle.write_graphs", copied)
    monkeypatch.setattr("speakerlens.export.bundle.write_torchscript", copied)
    monkeypatch.setattr("speakerlens.export.parity.verify", lambda *_: {"holds": True})
    monkeypatch.setattr("speakerlens.export.baseline.measure", lambda *_: {**measured, "probes": []})

    without = export(probes=False)
    assert json.loads((without.folder / "bundle.json").read_text())["probes"] is None
    assert json.loads((without.folder / "baseline.json").read_text())["probes"] == []
    assert not (without.folder / "probes").exists()
    assert export(probes=False) == (without.folder, True)
    having = export(probes=True)
    assert having == (without.folder.parent / "2", False), "a bundle without probes is not the same"
    assert json.loads((having.folder / "bundle.json").read_text())["probes"] == manifest["probes"]
    again = json.loads((having.folder / "baseline.json").read_text())["probes"]
    for found, before in zip(again, measured["probes"], strict=True):
        index, index_before = found.pop("deletion_index"), before.pop("deletion_index")
        # Rounding of late reverberation depends on the number of threads.
        assert index == index_before if index is None else index == pytest.approx(index_before, rel=1e-3)
        assert found == before
    assert export(probes=True) == (having.folder, True)
