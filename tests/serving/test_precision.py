"""Precisions of a bundle in a real server: chosen and refused by its own figures, shown, and consistent."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.scoring import Scorer
from speakerlens.serving.bundle import BundleError, Fault
from speakerlens.serving.models.loader import choose_precision
from speakerlens.serving.models.reader import read_bundle
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, ServerProcess, plane, raw, voice
from tests.serving.startup import failing

FLOAT, WHOLE = 5, 6  # seeds of the networks in fp32 and in int8
STAGES = (pb.STAGE_S1, pb.STAGE_S2, pb.STAGE_S3, pb.STAGE_S4)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One variant for every reason to choose or refuse int8."""
    root = tmp_path_factory.mktemp("precisions")
    for variant in ("fast", "slow", "lossy", "plain"):
        toy.write_bundle(root, variant, 1, FLOAT)
    toy.add_precision(root / "fast/1", "int8", WHOLE)
    toy.add_precision(root / "slow/1", "int8", WHOLE, speed=1.2)
    toy.add_precision(root / "lossy/1", "int8", WHOLE, lost=0.01)
    return root


@pytest.fixture(scope="module")
def server(bundles: Path) -> Iterator[ServerProcess]:
    """Serve only what has int8 and meets the floor."""
    with ServerProcess(bundles, "--precision=int8") as process:
        yield process


def chosen(bundle: Path, wanted: str, on_gpu: bool = False) -> str:
    return choose_precision(read_bundle(bundle), wanted, on_gpu)


def refusal(bundle: Path, wanted: str, on_gpu: bool = False) -> str:
    with pytest.raises(BundleError) as caught:
        chosen(bundle, wanted, on_gpu)
    assert caught.value.fault is Fault.PRECISION
    return str(caught.value)


def change(bundle: Path, name: str, **changes: Any) -> None:
    path = bundle / "precisions.json"
    content = json.loads(path.read_text())
    content["precisions"][name] |= changes
    path.write_text(json.dumps(content))
    toy.reseal(bundle)


def test_auto_takes_what_is_faster_and_holds(bundles: Path) -> None:
    assert {name: chosen(bundles / name / "1", "auto") for name in ("fast", "slow", "lossy", "plain")} == {
        "fast": "int8",
        "slow": "fp32",
        "lossy": "fp32",
        "plain": "fp32",
    }
    assert chosen(bundles / "slow/1", "int8") == "int8", "it was asked for by name"
    assert chosen(bundles / "fast/1", "auto", on_gpu=True) == "fp32"
    assert chosen(bundles / "lossy/1", "fp32") == "fp32"


def test_auto_on_a_gpu_takes_fp16_that_holds(bundles: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundles / "fast/1", tmp_path / "fast/1"))
    toy.add_precision(folder, "fp16", FLOAT, ("predict", "explain", "verify"), speed=1.1)
    assert chosen(folder, "auto", on_gpu=True) == "fp16"
    assert chosen(folder, "auto") == "int8"
    assert refusal(folder, "int8", on_gpu=True).startswith("fast/1: int8 is for CPUs")
    worse = [{"output": "saliency_s2", "graph": "explain.onnx", "median": 0.01, "worst": 0.1, "correlation": 0.98}]
    change(folder, "fp16", outputs=worse)
    assert chosen(folder, "auto", on_gpu=True) == "fp32"
    assert "correlation of saliency_s2 is 0.9800 at worst, at least 0.99" in refusal(folder, "fp16")


def test_refusal_names_variant_condition_figure_and_floor(bundles: Path) -> None:
    assert refusal(bundles / "lossy/1", "int8") == (
        "lossy/1 in int8 misses the floor for serving: top-1 accuracy under noise at 0 dB is 89.0 %, 90.0 % in fp32; "
        "at most 0.5 points worse are allowed; serve --precision fp32"
    )
    assert refusal(bundles / "plain/1", "int8").startswith("plain/1 has no int8, only fp32: export it with")
    assert refusal(bundles / "fast/1", "fp16").startswith("fast/1 has no fp16, only fp32, int8: export it with")


def test_server_refuses_what_misses_the_floor(server: ServerProcess, bundles: Path, tmp_path: Path) -> None:
    assert server.ready["models"] == ["fast/1", "slow/1"]
    assert server.ready["precisions"] == {"fast/1": "int8", "slow/1": "int8"}
    assert "lossy/1 in int8 misses the floor for serving: top-1 accuracy under noise at 0 dB is 89.0 %" in server.log
    assert "plain/1 has no int8, only fp32" in server.log
    page = server.metrics()
    assert page['speakerlens_bundles_refused{reason="precision",variant="lossy"}'] == 1
    assert page['speakerlens_model_precision{precision="int8",variant="fast",version="1"}'] == 1
    for name in ("fast", "slow"):
        selector = pb.GetModelRequest(model=pb.ModelSelector(variant=name))
        assert server.stub.GetModel(selector, timeout=CALL_SECONDS).model.precision == "int8"


def test_only_bundle_that_misses_ends_the_start(bundles: Path, tmp_path: Path) -> None:
    shutil.copytree(bundles / "lossy", tmp_path / "lossy")
    assert "no usable bundle, 1 refused" in (error := failing(f"--bundles={tmp_path}", "--precision=int8"))
    assert "lossy/1 in int8 misses the floor" in error


def test_maps_leave_the_scores_as_they_are(server: ServerProcess) -> None:
    """And are those of the float32 network, for the speaker that was named."""
    audio = voice(1.2)
    fast = pb.ModelSelector(variant="fast")
    plain = server.identify(pb.IdentifyRequest(audio=raw(audio), models=[fast])).answers[0]
    options = pb.ExplainOptions(stages=STAGES, resolution=pb.RESOLUTION_NATIVE)
    mapped = server.identify(pb.IdentifyRequest(audio=raw(audio), models=[fast], explain=options)).answers[0]
    whole, exact = (toy.expected(toy.weights(seed), audio) for seed in (WHOLE, FLOAT))
    named = int(whole["logits"].argmax())
    assert named != int(exact["logits"].argmax()), "the networks must disagree for this test"
    assert plain.speakers[0].speaker == mapped.speakers[0].speaker == toy.speakers()[named]
    assert [each.logit for each in mapped.speakers] == [each.logit for each in plain.speakers]
    assert mapped.explanation.target_speaker == toy.speakers()[named]
    expected = toy.expected(toy.weights(FLOAT), audio, named)
    for number, each in enumerate(mapped.explanation.saliency, 1):
        np.testing.assert_allclose(plane(each), expected[f"saliency_s{number}"], rtol=1e-4, atol=1e-6)
    other = pb.ExplainOptions(stages=STAGES, resolution=pb.RESOLUTION_NATIVE, target_speaker=toy.speakers()[2])
    asked = server.identify(pb.IdentifyRequest(audio=raw(audio), models=[fast], explain=other)).answers[0]
    assert asked.explanation.target_speaker == toy.speakers()[2]
    assert [each.logit for each in asked.speakers] == [each.logit for each in plain.speakers]


def test_comparison_with_maps_has_the_same_score(server: ServerProcess) -> None:
    first, second = voice(1.2), voice(1.4)[::-1].copy()
    fast = pb.ModelSelector(variant="fast")
    request = pb.VerifyRequest(audio=raw(first), other=raw(second), model=fast)
    plain = server.stub.Verify(request, timeout=CALL_SECONDS)
    request.explain.stages.append(pb.STAGE_S2)
    mapped = server.stub.Verify(request, timeout=CALL_SECONDS)
    vectors = [toy.expected(toy.weights(WHOLE), audio)["embedding"] for audio in (first, second)]
    cosine = float(np.dot(*[vector / np.linalg.norm(vector) for vector in vectors]))
    assert plain.score == pytest.approx(cosine, abs=1e-4)
    assert mapped.score == pytest.approx(plain.score, abs=1e-6)
    assert mapped.explanation.saliency


def test_recordings_are_scored_in_the_precision_that_is_asked_for(bundles: Path) -> None:
    audio = voice(1.2)
    with Scorer(bundles / "fast/1", device="cpu", threads=1, precision="int8") as scorer:
        (row,) = scorer.score([audio])
    assert row.speaker == toy.speakers()[int(toy.expected(toy.weights(WHOLE), audio)["logits"].argmax())]
    with pytest.raises(BundleError, match="lossy/1 in int8 misses the floor"):
        Scorer(bundles / "lossy/1", device="cpu", threads=1, precision="int8")


def test_bundle_of_before_has_float32_alone(bundles: Path) -> None:
    bundle = read_bundle(bundles / "plain/1")
    assert (bundle.precision, dict(bundle.precisions)) == ("fp32", {})
    assert not bundle.borrows_scores("explain.onnx")
    fast = replace(read_bundle(bundles / "fast/1"), precision="int8")
    assert (fast.file("predict.onnx"), fast.file("explain.onnx")) == ("predict.int8.onnx", "explain.onnx")
    assert fast.borrows_scores("explain.onnx")


def test_damaged_precisions_are_refused(bundles: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundles / "fast/1", tmp_path / "fast/1"))
    change(folder, "int8", speed={"of_fp32": 0, "seconds": 3.0, "processor": "toy"})
    with pytest.raises(BundleError, match=r"precisions\.json does not fit the schema at precisions\.int8\.speed"):
        read_bundle(folder)
    change(folder, "int8", speed={"of_fp32": 1, "seconds": 3.0, "processor": "toy"})
    (folder / "predict.int8.onnx").unlink()
    toy.reseal(folder)
    with pytest.raises(BundleError, match=r"records no digest of predict\.int8\.onnx, predict\.onnx in int8"):
        read_bundle(folder)
