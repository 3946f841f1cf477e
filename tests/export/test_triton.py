"""Bundles as models of a Triton Inference Server: their files, and answers of a real server."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from benchmarks import triton_server
from speakerlens.export.cli import main
from tests.serving import toy
from tests.serving.harness import talk

# Reads a configuration as Triton does; apart, as its messages cannot be loaded beside the server's.
CHECK = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
print(json_format.MessageToJson(text_format.Parse(sys.stdin.read(), model_config_pb2.ModelConfig())))
"""


def parsed(file: Path) -> dict[str, Any]:
    words = [sys.executable, "-c", CHECK]
    done = subprocess.run(words, input=file.read_text(), capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_models_have_configuration_labels_and_graphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "models"
    for version in (1, 2):
        folder = toy.write_bundle(tmp_path / "bundles", "clean", version)
        assert main(["triton", str(folder), "--out", str(out), "--max-batch", "16"]) == 0
    assert capsys.readouterr().out == f"{out}: clean, clean-explain, clean-verify\n" * 2
    files = sorted(str(file.relative_to(out / "clean")) for file in (out / "clean").rglob("*") if file.is_file())
    assert files == ["1/bundle.json", "1/model.onnx", "2/bundle.json", "2/model.onnx", "config.pbtxt", "labels.txt"]
    assert (out / "clean" / "labels.txt").read_text().splitlines() == toy.speakers()
    config = parsed(out / "clean-explain" / "config.pbtxt")
    assert (config["name"], config["backend"], config["maxBatchSize"]) == ("clean-explain", "onnxruntime", 16)
    assert config["versionPolicy"] == {"specific": {"versions": ["2"]}}
    assert config["dynamicBatching"] == {"maxQueueDelayMicroseconds": "2000"}
    inputs = {each["name"]: each for each in config["input"]}
    assert inputs["audio"] == {"name": "audio", "dataType": "TYPE_FP32", "dims": ["-1"]}
    assert inputs["target"] == {"name": "target", "dataType": "TYPE_INT64", "dims": ["1"], "reshape": {}}
    outputs = {each["name"]: each for each in config["output"]}
    assert outputs["logits"]["labelFilename"] == "labels.txt"
    assert outputs["saliency_s1"]["dims"] == ["-1", "-1"]
    assert float(config["parameters"]["speakerlens_temperature"]["stringValue"]) == toy.TEMPERATURE


def test_missing_bundle_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["triton", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "no bundle there" in capsys.readouterr().err


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the server and the libraries of its Python backend."""
    root = Path(os.environ.get("TRITON_TOOLS") or tmp_path_factory.mktemp("triton"))
    triton_server.fetch(root)
    return root


@pytest.fixture
def served(triton: Path, tmp_path: Path) -> Iterator[str]:
    folder = toy.write_bundle(tmp_path / "bundles", "clean", 1)
    assert main(["triton", str(folder), "--out", str(tmp_path / "models"), "--backend", "python"]) == 0
    triton_server.let_import(tmp_path / "models", triton)
    process, address = triton_server.start(triton, tmp_path / "models", tmp_path / "log")
    triton_server.wait_ready(process, tmp_path / "log")
    yield address
    process.terminate()
    process.wait(60)


@pytest.mark.slow
def test_real_server_batches_any_lengths(served: str, tmp_path: Path) -> None:
    from tritonclient import grpc  # noqa: PLC0415  (its messages cannot be loaded beside those of this server)

    client = grpc.InferenceServerClient(served)
    talks = [talk(0.5 + 0.1 * number, seed=number) for number in range(16)]
    session = onnxruntime.InferenceSession(tmp_path / "bundles" / "clean" / "1" / "explain.onnx")
    names = [each.name for each in session.get_outputs()]

    def infer(model: str, samples: np.ndarray[Any, Any], outputs: list[Any] | None = None) -> Any:
        values = {"audio": samples[None], "lengths": np.array([[len(samples)]]), "target": np.array([[-1]])}
        inputs = []
        for name in values if model.endswith("explain") else ("audio", "lengths"):
            kind = "FP32" if name == "audio" else "INT64"
            inputs.append(grpc.InferInput(name, list(values[name].shape), kind))
            inputs[-1].set_data_from_numpy(values[name])
        return client.infer(model, inputs, outputs=outputs)

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda samples: infer("clean-explain", samples), talks))
    for samples, answer in zip(talks, answers, strict=True):
        fed = {"audio": samples[None], "lengths": np.array([len(samples)]), "target": np.array([-1])}
        for name, value in zip(names, session.run(None, fed), strict=True):
            got = answer.as_numpy(name)
            np.testing.assert_allclose(got.reshape(value.shape), value, rtol=1e-4, atol=1e-5, err_msg=name)
    [counts] = client.get_inference_statistics("clean-explain").model_stats
    assert counts.inference_count == 16
    assert counts.execution_count < 16
    best = [grpc.InferRequestedOutput("logits", class_count=1)]
    [[label]] = infer("clean", talks[0], best).as_numpy("logits")
    logits = toy.expected(toy.weights(0), talks[0])["logits"]
    assert label.decode().split(":")[1:] == [str(logits.argmax()), toy.speakers()[int(logits.argmax())]]


@pytest.mark.slow
def test_real_server_accepts_the_configuration(triton: Path, tmp_path: Path) -> None:
    """Its backend for ONNX is not in the package; that it is looked for shows that the configuration was accepted."""
    folder = toy.write_bundle(tmp_path / "bundles", "clean", 1)
    assert main(["triton", str(folder), "--out", str(tmp_path / "models")]) == 0
    process, _ = triton_server.start(triton, tmp_path / "models", tmp_path / "log")
    process.wait(triton_server.READY_SECONDS)
    log = (tmp_path / "log").read_text()
    assert log.count("unable to find backend library for backend 'onnxruntime'") >= 3, log
