"""Exported graphs against independent references, and what they promise about batches, padding and targets."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file

from speakerlens.export.boundary import BoundaryReferences
from speakerlens.export.parity import nearest_errors
from speakerlens.export.runtimes import MAPS, Case
from speakerlens.training.checkpoint import load_run
from tests.conftest import VARIANTS
from tests.export.reference import Weights, layercam
from tests.training.model.test_frontend import kaldi_log_mel

Array = NDArray[Any]


class Explainer:
    """A bundle's `explain.onnx`, one utterance or one batch at a time."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self.session = ort.InferenceSession(str(bundle / "explain.onnx"), providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]
        self.speakers: list[str] = json.loads((bundle / "bundle.json").read_text())["speakers"]
        self.utterances = [soundfile.read(f, dtype="float32")[0] for f in sorted((bundle / "utterances").iterdir())]

    def __call__(
        self, audio: list[Array], targets: list[int] | None = None, padding: int = 0
    ) -> list[dict[str, Array]]:
        lengths = np.array([len(a) for a in audio])
        batch = np.zeros((len(audio), lengths.max() + padding), np.float32)
        for row, samples in zip(batch, audio, strict=True):
            row[: len(samples)] = samples
        target = np.array(targets if targets else [-1] * len(audio))
        outputs = self.session.run(self.names, {"audio": batch, "lengths": lengths, "target": target})
        return [{n: v[row] for n, v in zip(self.names, outputs, strict=True)} for row in range(len(audio))]


@pytest.fixture(scope="module", params=VARIANTS)
def explainer(request: pytest.FixtureRequest, bundles: Path) -> Explainer:
    return Explainer(bundles / request.param / "1")


def error(answer: Array, reference: Array) -> float:
    """Relative L2 error; what lies beyond the reference's size must be zero."""
    padded = np.zeros_like(answer)
    padded[tuple(slice(size) for size in reference.shape)] = reference
    return float(np.linalg.norm(answer - padded) / np.linalg.norm(reference))


@pytest.fixture(scope="module")
def distances(explainer: Explainer, runs: dict[str, Path]) -> Callable[..., dict[str, float]]:
    """Errors of an answer to (audio, target) against another valid one; of maps, to the nearest boundary reference."""
    boundary = BoundaryReferences(load_run(runs[explainer.bundle.parent.name]).network)

    def measure(
        samples: Array, target: int, answer: Mapping[str, Array], right: Mapping[str, Array]
    ) -> dict[str, float]:
        raw = {name: error(answer[name], right[name]) for name in right if name != "explained"}
        return nearest_errors(Case(torch.from_numpy(samples), target), dict(answer), raw, boundary)

    return measure


def test_agrees_with_a_plain_layercam(explainer: Explainer) -> None:
    """Features against Kaldi, everything else against a reference with the same features."""
    weights = load_file(explainer.bundle / "weights.safetensors")
    for index, audio in enumerate(explainer.utterances[:6]):
        target = None if index % 2 else index
        answer = explainer([audio], [-1 if target is None else target])[0]
        # Kaldi rounds its features in float32 in its own way.
        assert error(answer["features"], kaldi_log_mel(audio, 80)) < 1e-3
        errors = dict.fromkeys(MAPS, np.inf)
        for seed in range(20):
            logits, maps = layercam(perturbed(weights, seed), answer["features"].astype(np.float64), target)
            assert error(answer["logits"], logits) < 1e-4
            errors = {n: min(errors[n], error(answer[n], m)) for n, m in zip(MAPS, maps, strict=True)}
            if max(errors.values()) < 1e-4:
                break
        assert max(errors.values()) < 1e-3, errors


def perturbed(weights: Weights, seed: int) -> Weights:
    """Weights changed within float32 rounding, from the second seed on: the other side of a ReLU boundary."""
    generator = torch.Generator().manual_seed(seed)
    size = 2.0**-21 if seed else 0.0
    return {
        name: tensor * (1 + size * (2 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 1))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }


def test_maps_follow_the_input(explainer: Explainer) -> None:
    first, second = (explainer([audio[:32000]])[0] for audio in explainer.utterances[:2])
    for name in MAPS:
        assert error(first[name], second[name]) > 0.1


def test_maps_follow_the_target(explainer: Explainer) -> None:
    audio = explainer.utterances[0]
    predicted = explainer([audio])[0]
    best = int(predicted["logits"].argmax())
    assert predicted["explained"] == best
    named = explainer([audio], [best])[0]
    other = explainer([audio], [(best + 1) % len(explainer.speakers)])[0]
    assert other["explained"] != best
    for name in MAPS:
        assert np.array_equal(named[name], predicted[name])
        assert error(other[name], predicted[name]) > 0.1


def test_map_shapes_are_those_of_the_manifest(explainer: Explainer) -> None:
    manifest = json.loads((explainer.bundle / "bundle.json").read_text())
    answer = explainer([explainer.utterances[0][:20000]])[0]
    frames = 1 + (20000 - 400) // 160
    assert answer["features"].shape == (80, frames)
    for stage in manifest["stages"]:
        assert answer[f"saliency_{stage['name']}"].shape == (stage["rows"], -(-frames // stage["stride"]))
    assert [stage["tap"] for stage in manifest["stages"]] == ["stage-output", *["last-block-input"] * 2, "stage-output"]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_batching_and_padding_change_nothing(
    explainer: Explainer, distances: Callable[..., dict[str, float]], data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1680, 40000), min_size=1, max_size=5))
    padding = data.draw(st.integers(0, 9000))
    audio = [np.resize(explainer.utterances[i], length) for i, length in enumerate(lengths)]
    targets = [data.draw(st.integers(-1, len(explainer.speakers) - 1)) for _ in lengths]
    together = explainer(audio, targets, padding)
    for samples, target, answer in zip(audio, targets, together, strict=True):
        errors = distances(samples, target, answer, explainer([samples], [target])[0])
        assert max(errors[name] for name in ("logits", "embedding", "features")) < 1e-4, errors
        assert max(errors[name] for name in MAPS) < 1e-3, errors


def test_boundary_references_accept_no_wrong_map(
    explainer: Explainer, distances: Callable[..., dict[str, float]]
) -> None:
    """Correct scores and features with the maps of another class, or with maps that are 0.2 % too large."""
    audio = explainer.utterances[0][:32000]
    right, other = explainer([audio], [0])[0], explainer([audio], [1])[0]
    wrong = distances(audio, 0, {**right, **{name: other[name] for name in MAPS}}, right)
    assert min(wrong[name] for name in MAPS) > 0.1
    off = distances(audio, 0, {**right, **{name: right[name] * np.float32(1.002) for name in MAPS}}, right)
    assert min(off[name] for name in MAPS) > 1e-3


def test_predict_agrees_with_explain(explainer: Explainer) -> None:
    session = ort.InferenceSession(str(explainer.bundle / "predict.onnx"), providers=["CPUExecutionProvider"])
    audio = explainer.utterances[0][None]
    logits, embedding = session.run(["logits", "embedding"], {"audio": audio, "lengths": np.array([audio.shape[1]])})
    explained = explainer([audio[0]])[0]
    np.testing.assert_allclose(logits[0], explained["logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(embedding[0], explained["embedding"], rtol=1e-5, atol=1e-5)


def test_torchscript_needs_nothing_but_torch(explainer: Explainer, distances: Callable[..., dict[str, float]]) -> None:
    module = torch.jit.load(str(explainer.bundle / "model.ts"))  # type: ignore[no-untyped-call]
    audio = torch.from_numpy(explainer.utterances[0])[None]
    lengths, target = torch.tensor([audio.shape[1]]), torch.tensor([-1])
    explained = module(audio, lengths, target)
    answer = {name: getattr(explained, name)[0].numpy() for name in explainer.names}
    errors = distances(explainer.utterances[0], -1, answer, explainer([explainer.utterances[0]])[0])
    assert max(errors[name] for name in MAPS) < 1e-3, errors
    assert torch.equal(module.predict(audio, lengths).logits, explained.logits)
