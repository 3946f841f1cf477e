"""`verify.onnx` against a LayerCAM of the cosine written out from the papers, and its properties."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import soundfile
from numpy.typing import NDArray
from safetensors.torch import load_file

from tests.conftest import VARIANTS
from tests.export.reference import layercam
from tests.export.test_explain import error
from tests.training.model.test_frontend import kaldi_log_mel

Array = NDArray[Any]
MAPS = ("saliency_s1", "saliency_s2", "saliency_s3", "saliency_s4")


class Verifier:
    """A bundle's `verify.onnx`, one batch at a time."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self.session = ort.InferenceSession(str(bundle / "verify.onnx"), providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]
        self.size: int = json.loads((bundle / "bundle.json").read_text())["network"]["embedding"]
        self.utterances = [soundfile.read(f, dtype="float32")[0] for f in sorted((bundle / "utterances").iterdir())]

    def __call__(self, audio: list[Array], references: list[Array]) -> list[dict[str, Array]]:
        lengths = np.array([len(a) for a in audio])
        batch = np.zeros((len(audio), lengths.max()), np.float32)
        for row, samples in zip(batch, audio, strict=True):
            row[: len(samples)] = samples
        feeds = {"audio": batch, "lengths": lengths, "reference": np.stack(references).astype(np.float32)}
        outputs = self.session.run(self.names, feeds)
        return [{n: v[row] for n, v in zip(self.names, outputs, strict=True)} for row in range(len(audio))]

    def embedding(self, audio: Array) -> Array:
        return self([audio], [np.ones(self.size)])[0]["embedding"]


@pytest.fixture(scope="module", params=VARIANTS)
def verifier(request: pytest.FixtureRequest, bundles: Path) -> Verifier:
    return Verifier(bundles / request.param / "1")


def test_agrees_with_a_plain_layercam_of_the_cosine(verifier: Verifier) -> None:
    weights = load_file(verifier.bundle / "weights.safetensors")
    errors: dict[str, list[float]] = {name: [] for name in MAPS}
    for audio, other in zip(verifier.utterances[:6], verifier.utterances[1:7], strict=True):
        reference = verifier.embedding(other).astype(np.float64)
        cosine, maps = layercam(weights, kaldi_log_mel(audio, 80), None, reference)
        answer = verifier([audio], [reference])[0]
        assert answer["score"] == pytest.approx(float(cosine), abs=1e-3)
        for name, expected in zip(MAPS, maps, strict=True):
            errors[name].append(error(answer[name], expected))
    # Kaldi rounds its features differently in float32, so limits are wider than between two runtimes.
    for name in MAPS:
        assert np.median(errors[name]) < 2e-3, errors
        assert max(errors[name]) < 3e-2, errors


def test_maps_of_a_difference_are_those_of_one_reference(verifier: Verifier) -> None:
    """Search explains the best cosine minus the second by the difference of the references, times its length."""
    weights = load_file(verifier.bundle / "weights.safetensors")
    errors: dict[str, list[float]] = {name: [] for name in MAPS}
    for audio, first, second in zip(
        verifier.utterances[:4], verifier.utterances[4:8], verifier.utterances[8:12], strict=True
    ):
        one, other = (verifier.embedding(each).astype(np.float64) for each in (first, second))
        difference = one / np.linalg.norm(one) - other / np.linalg.norm(other)
        score, maps = layercam(weights, kaldi_log_mel(audio, 80), None, np.stack([one, other]))
        answer, length = verifier([audio], [difference])[0], np.linalg.norm(difference)
        assert answer["score"] * length == pytest.approx(float(score), abs=1e-3)
        for name, expected in zip(MAPS, maps, strict=True):
            errors[name].append(error(length * answer[name], expected))
    for name in MAPS:
        assert np.median(errors[name]) < 2e-3, errors
        assert max(errors[name]) < 3e-2, errors


def test_score_is_the_cosine_in_any_batch_for_any_norm(verifier: Verifier) -> None:
    audio = [samples[: len(samples) - 1601 * i] for i, samples in enumerate(verifier.utterances[:5])]
    embeddings = [verifier.embedding(samples) for samples in audio]
    references = [embeddings[(i + 1) % 5] * 10.0 ** (i - 2) for i in range(5)]
    for i, answer in enumerate(verifier(audio, references)):
        one, other = embeddings[i].astype(np.float64), references[i].astype(np.float64)
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert answer["score"] == pytest.approx(cosine, abs=1e-5)
        assert error(answer["embedding"], embeddings[i]) < 1e-4


def test_maps_follow_the_reference(verifier: Verifier) -> None:
    audio, first, second = verifier.utterances[:3]
    answers = verifier([audio] * 2, [verifier.embedding(first), -verifier.embedding(second)])
    for name in MAPS:
        assert error(answers[0][name], answers[1][name]) > 0.1


def test_maps_of_a_self_comparison_are_near_zero(verifier: Verifier) -> None:
    """The cosine is at its maximum, so the gradient vanishes: maps hold rounding errors, and no NaN."""
    audio, other = verifier.utterances[:2]
    same, different = verifier([audio] * 2, [verifier.embedding(audio), verifier.embedding(other)])
    assert same["score"] == pytest.approx(1.0, abs=1e-5)
    for name in MAPS:
        assert np.isfinite(same[name]).all()
        assert np.linalg.norm(same[name]) < 1e-2 * np.linalg.norm(different[name])
