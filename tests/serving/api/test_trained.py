"""Trained bundles over the Open Inference Protocol: answers match `Identify` and the graphs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import soundfile as sf
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray

from speakerlens.export.boundary import BoundaryReferences
from speakerlens.export.parity import nearest_errors
from speakerlens.export.runtimes import Case
from speakerlens.training.checkpoint import load_run
from tests.conftest import VARIANTS
from tests.serving.api.requests import MAPS, OUTPUTS, identified, inputs, padded, requested
from tests.serving.harness import CALL_SECONDS, ServerProcess


def folder_of(bundles: Path, variant: str) -> tuple[Path, dict[str, Any]]:
    folder = bundles / variant / "1"
    content: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return folder, content


def utterances(bundles: Path, variant: str, count: int) -> list[NDArray[np.float32]]:
    """Some of the bundle's own, of different lengths."""
    folder, manifest = folder_of(bundles, variant)
    audios = [sf.read(folder / each["file"], dtype="float32")[0] for each in manifest["utterances"][:count]]
    return [audio[: len(audio) - 2777 * index] for index, audio in enumerate(audios)]


def ask(
    server: ServerProcess, variant: str, rows: list[NDArray[np.float32]], *outputs: str
) -> dict[str, NDArray[np.float32]]:
    with triton.InferenceServerClient(server.ready["grpc"]) as client:
        result = client.infer(variant, inputs(padded(rows)), outputs=requested(*outputs), client_timeout=CALL_SECONDS)
        return {name: result.as_numpy(name) for name in outputs}


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_utterance_matches_identify(server: ServerProcess, bundles: Path, variant: str) -> None:
    """The same job in the same queue: not only near, but the same."""
    [audio] = utterances(bundles, variant, 1)
    answer = ask(server, variant, [audio], *OUTPUTS)
    for name, values in identified(server, audio, variant).items():
        assert answer[name].shape == (1, *values.shape), name
        np.testing.assert_allclose(answer[name][0], values, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_different_lengths_match_single_rows(
    server: ServerProcess, bundles: Path, runs: dict[str, Path], variant: str
) -> None:
    folder, manifest = folder_of(bundles, variant)
    rows = utterances(bundles, variant, 5)
    answer = ask(server, variant, rows, *OUTPUTS)
    session = ort.InferenceSession(folder / "explain.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    boundary = BoundaryReferences(load_run(runs[variant]).network)
    for row, audio in enumerate(rows):
        alone = identified(server, audio, variant)
        for name in ("probabilities", "embedding"):
            error = np.linalg.norm(answer[name][row] - alone[name]) / np.linalg.norm(alone[name])
            assert error < (1e-3 if name == "probabilities" else 1e-4), name
        fed = {"audio": audio[None], "lengths": np.array([len(audio)]), "target": np.array([-1])}
        graph = {name: value[0] for name, value in zip(names, session.run(names, fed), strict=True)}
        served, raw_errors = {"features": graph["features"]}, {"logits": 0.0, "features": 0.0}
        for name in MAPS:
            columns = graph[name].shape[1]
            served[name] = answer[name][row][:, :columns]
            assert not answer[name][row][:, columns:].any(), f"{name}: something behind the end of row {row}"
            distance = np.linalg.norm(served[name] - graph[name]) / np.linalg.norm(graph[name])
            raw_errors[name] = float(distance)
        errors = nearest_errors(Case(torch.from_numpy(audio), -1), served, raw_errors, boundary)
        assert max(errors[name] for name in MAPS) < 1e-3, errors
        frames = graph["features"].shape[1]
        assert answer["saliency"].shape[1] == manifest["front_end"]["mel_bins"]
        assert not answer["saliency"][row][:, frames:].any()
        difference = answer["saliency"][row][:, :frames] - alone["saliency"]
        # Where an activation lies on a ReLU boundary, the fused map may differ a little as well.
        limit = 1e-3 if max(raw_errors[name] for name in MAPS) < 1e-3 else 2e-2
        assert np.linalg.norm(difference) / np.linalg.norm(alone["saliency"]) < limit
