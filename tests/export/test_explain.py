"""Exported graphs against independent references, and what they promise about batches, padding and targets."""

import json
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

from tests.conftest import VARIANTS
from tests.export.reference import layercam
from tests.training.test_frontend import kaldi_log_mel

MAPS = ("saliency_s1", "saliency_s2", "saliency_s3", "saliency_s4")
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


def test_agrees_with_a_written_out_layercam(explainer: Explainer) -> None:
    weights = load_file(explainer.bundle / "weights.safetensors")
    errors: dict[str, list[float]] = {name: [] for name in ("logits", *MAPS)}
    for index, audio in enumerate(explainer.utterances[:6]):
        target = None if index % 2 else index
        logits, maps = layercam(weights, kaldi_log_mel(audio, 80), target)
        answer = explainer([audio], [-1 if target is None else target])[0]
        errors["logits"].append(error(answer["logits"], logits))
        for name, reference in zip(MAPS, maps, strict=True):
            errors[name].append(error(answer[name], reference))
    # Kaldi rounds its features in float32 in its own way, hence wider limits than between two runtimes.
    assert max(errors["logits"]) < 1e-3
    for name in MAPS:
        assert np.median(errors[name]) < 1e-3, errors
        assert max(errors[name]) < 2e-2, errors


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


def test_map_shapes_are_those_of_the_bundle(explainer: Explainer) -> None:
    manifest = json.loads((explainer.bundle / "bundle.json").read_text())
    answer = explainer([explainer.utterances[0][:20000]])[0]
    frames = 1 + (20000 - 400) // 160
    assert answer["features"].shape == (80, frames)
    for stage in manifest["stages"]:
        assert answer[f"saliency_{stage['name']}"].shape == (stage["rows"], -(-frames // stage["stride"]))
    assert [stage["tap"] for stage in manifest["stages"]] == ["stage-output", *["last-block-input"] * 2, "stage-output"]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_company_and_padding_change_nothing(explainer: Explainer, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1680, 40000), min_size=1, max_size=5))
    padding = data.draw(st.integers(0, 9000))
    audio = [np.resize(explainer.utterances[i], length) for i, length in enumerate(lengths)]
    targets = [data.draw(st.integers(-1, len(explainer.speakers) - 1)) for _ in lengths]
    together = explainer(audio, targets, padding)
    for samples, target, answer in zip(audio, targets, together, strict=True):
        alone = explainer([samples], [target])[0]
        assert error(answer["logits"], alone["logits"]) < 1e-4
        assert error(answer["embedding"], alone["embedding"]) < 1e-4
        for name in MAPS:
            # A kink may flip (see export/kinks.py): 1.4e-2 was seen for a second of speech. What leaks from neighbours
            # or padding moves the scores as well, which are held to 1e-4 above.
            assert error(answer[name], alone[name]) < 3e-2


def test_predict_gives_what_explain_gives(explainer: Explainer) -> None:
    session = ort.InferenceSession(str(explainer.bundle / "predict.onnx"), providers=["CPUExecutionProvider"])
    audio = explainer.utterances[0][None]
    logits, embedding = session.run(["logits", "embedding"], {"audio": audio, "lengths": np.array([audio.shape[1]])})
    explained = explainer([audio[0]])[0]
    np.testing.assert_allclose(logits[0], explained["logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(embedding[0], explained["embedding"], rtol=1e-5, atol=1e-5)


def test_torchscript_needs_nothing_but_torch(explainer: Explainer) -> None:
    module = torch.jit.load(str(explainer.bundle / "model.ts"))  # type: ignore[no-untyped-call]
    audio = torch.from_numpy(explainer.utterances[0])[None]
    lengths, target = torch.tensor([audio.shape[1]]), torch.tensor([-1])
    explained = module(audio, lengths, target)
    assert error(explained.saliency_s2[0].numpy(), explainer([explainer.utterances[0]])[0]["saliency_s2"]) < 1e-2
    assert torch.equal(module.predict(audio, lengths).logits, explained.logits)
