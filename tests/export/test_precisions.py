"""Graphs in int8 and fp16: their arithmetic, the figures about them, and a bundle with them, exported and served."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import soundfile
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from speakerlens.export.bundle import ExportError, export_run, file_digests, schema
from speakerlens.export.cli import main
from speakerlens.export.int8 import in_int8
from speakerlens.export.precision_figures import Decider, Scores, Trials, map_entries
from speakerlens.export.precisions import check_measurable
from speakerlens.export.verify import verify_bundle
from speakerlens.measures.precision import FLOOR, correlation, misses, relative_error
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.bundle import BundleError
from speakerlens.serving.models.loader import choose_precision
from speakerlens.serving.models.reader import read_bundle
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.calibration import Calibration
from speakerlens.training.evaluation.conditions import CLEAN, Condition
from speakerlens.training.evaluation.verification import ReferenceThreshold, Verification
from tests.serving.harness import ServerProcess, raw

CHANNELS, FILTERS = 64, 8


def convolution(weights: NDArray[np.float32]) -> bytes:
    """Return a graph of one convolution [filters, channels, 1, 1] of an image."""
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Conv", ["audio", "weight"], ["logits"])],
            "one",
            [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", CHANNELS, 1, "width"])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", FILTERS, 1, "width"])],
            [numpy_helper.from_array(weights, "weight")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    helper.set_model_props(model, {"variant": '"v"'})
    return bytes(model.SerializeToString())


def run(content: bytes, audio: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"audio": audio})[0])


def test_int8_is_the_arithmetic_of_whole_numbers() -> None:
    """Also where every product is as large as it can be: sums of 8-bit weights would overflow without VNNI."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(FILTERS, CHANNELS, 1, 1)).astype(np.float32)
    weights[0] = 1.0
    weights[1] = -1.0
    audio = rng.uniform(-0.5, 1.0, (1, CHANNELS, 1, 50)).astype(np.float32)
    audio[..., 0], audio[..., 1] = 1.0, -0.5
    content = in_int8(convolution(weights), [{"audio": audio}])
    model = onnx.load_from_string(content)
    assert {each.key for each in model.metadata_props} == {"variant"}
    assert not any(tensor.HasField("data_location") for tensor in model.graph.initializer)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    steps = constants["weight_quantized"].astype(np.int64)
    assert np.abs(steps).max() <= 64
    scale, zero = float(constants["audio_scale"]), int(constants["audio_zero_point"])
    taken = np.clip(np.rint(audio / np.float32(scale)) + zero, 0, 255).astype(np.int64) - zero
    sums = np.einsum("fc,bcw->bfw", steps[..., 0, 0], taken[:, :, 0])
    exact = sums * scale * constants["weight_scale"][:, None].astype(np.float64)
    step = float(constants["logits_scale"])
    answer = run(content, audio)[:, :, 0]
    assert np.abs(answer - exact).max() <= step * 0.51
    assert relative_error(answer, run(convolution(weights), audio)[:, :, 0]) < 0.02


def test_padding_of_zeros_stays_zero_in_int8() -> None:
    weights = np.random.default_rng(1).normal(size=(FILTERS, CHANNELS, 1, 1)).astype(np.float32)
    audio = np.random.default_rng(2).uniform(0.3, 1.0, (1, CHANNELS, 1, 20)).astype(np.float32)
    content = in_int8(convolution(weights), [{"audio": audio}])
    padded = np.concatenate([audio, np.zeros_like(audio)], axis=3)
    answer = run(content, padded)
    np.testing.assert_array_equal(answer[..., :20], run(content, audio))
    assert not answer[..., 20:].any()


def test_measures_of_outputs_are_those_of_numpy() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(4, 5)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    assert correlation(first, second) == pytest.approx(np.corrcoef(first.ravel(), second.ravel())[0, 1])
    assert correlation(first, 3 * first + 1) == pytest.approx(1.0)
    assert (correlation(np.ones(3), np.ones(3)), correlation(np.ones(3), np.arange(3.0))) == (1.0, 0.0)
    assert relative_error(2 * first, first) == pytest.approx(1.0)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0.0
    maps = [({"saliency_s1": first, "logits": second}, {"saliency_s1": first + 0.1 * second, "logits": second})]
    (entry,) = map_entries("explain.onnx", [*maps, ({"saliency_s1": 0 * first}, {"saliency_s1": second})])
    error = 0.1 * np.linalg.norm(second) / np.linalg.norm(first)
    assert entry["worst"] == entry["median"] == pytest.approx(error, rel=1e-5)
    assert entry["correlation"] == pytest.approx(correlation(first, first + 0.1 * second), rel=1e-6)


def of_labels(*best: int, score: float = 1.0) -> Scores:
    """Return scores whose best speakers are these, with logits of `score` for them."""
    logits = np.zeros((len(best), 3), np.float32)
    logits[np.arange(len(best)), best] = score
    return Scores(logits, np.eye(3, dtype=np.float32)[list(best)])


def test_shares_count_answers_and_decisions() -> None:
    trials, noise = Trials(), Condition("noise", 0.0)
    for condition, after in ((CLEAN, of_labels(0, 1, 2, 2)), (noise, of_labels(0, 1, 1, 1, score=0.2))):
        trials.fp32[condition].append(of_labels(0, 1, 2, 1))
        trials.changed[condition].append(after)
        trials.labels[condition].append(np.array([0, 1, 2, 2]))
    trials.strangers.append((of_labels(0, 1, score=0.2), of_labels(0, 1)))
    decider = Decider(threshold=0.25, scale=2.0, scorer=None, voices=None, comparison=0.5)
    clean, noisy, everywhere = trials.conditions(decider)
    shares = {each["name"]: (each["fp32"], each["value"]) for each in clean["shares"]}
    assert shares["top-1 accuracy"] == (0.75, 1.0)
    # Of the six pairs the last two utterances are of one speaker: taken for two in float32, for one after.
    assert shares["same speaker accepted"] == (0.0, 1.0)
    assert shares["different speakers accepted"] == (0.2, 0.0)
    assert (noisy["shares"][0]["fp32"], noisy["shares"][0]["value"]) == (0.75, 0.5)
    assert (clean["changed"], noisy["changed"], everywhere["changed"]) == (0.25, 1.0, 0.625)
    shares = {each["name"]: (each["fp32"], each["value"]) for each in everywhere["shares"]}
    assert shares == {"share identified above the threshold": (0.75, 0.5), "false acceptance": (0.0, 1.0)}
    entry = {"conditions": [clean, noisy, everywhere], "outputs": trials.errors()}
    found = misses(entry, FLOOR)
    assert found[0].startswith("false acceptance under all conditions is 100.0 %, 0.0 % in fp32; at most 0.5 points")
    assert found[1].startswith("top-1 accuracy under noise at 0 dB is 50.0 %, 75.0 % in fp32")
    assert any(each.startswith("relative error of logits is") for each in found)


def test_floor_has_room_for_half_a_point() -> None:
    def entry(value: float, error: float) -> dict[str, Any]:
        share = {"name": "top-1 accuracy", "fp32": 0.9, "value": value, "lower_is_better": False}
        condition = {"interference": "clean", "snr_db": None, "utterances": 200, "shares": [share], "changed": 0.0}
        output = {"output": "logits", "graph": "predict.onnx", "median": error, "worst": error}
        return {"conditions": [condition], "outputs": [output]}

    assert misses(entry(0.895, 0.05), FLOOR) == []
    assert len(misses(entry(0.894, 0.05), FLOOR)) == 1
    assert len(misses(entry(0.9, 0.051), FLOOR)) == 1
    assert misses({"conditions": [], "outputs": []}, FLOOR) == ["accuracy was not measured"]
    assert len(misses(entry(float("nan"), float("nan")), FLOOR)) == 3


@pytest.fixture(scope="module")
def exported(bundles: Path, runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a trained run in all precisions; graphs, verification and calibration are those of float32."""
    source = bundles / "act-da" / "1"
    manifest = json.loads((source / "bundle.json").read_text())
    measured = json.loads((source / "baseline.json").read_text())
    known = {name: value for name, value in manifest["calibration"].items() if name != "method"}
    verified = {name: value for name, value in manifest["verification"].items() if name != "method"}
    verified["thresholds"] = tuple(ReferenceThreshold(**each) for each in verified["thresholds"])

    def copied(_network: object, out: Path, *_rest: object) -> None:
        for name in ("predict.onnx", "explain.onnx", "verify.onnx", "model.ts"):
            shutil.copy(source / name, out / name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speakerlens.export.bundle.calibrate", lambda *_, **__: Calibration(**known))
        patch.setattr("speakerlens.export.bundle.calibrate_verification", lambda *_: Verification(**verified))
        patch.setattr("speakerlens.export.bundle.calibrate_search", lambda *_: manifest["search"])
        patch.setattr("speakerlens.export.bundle.predict_split", lambda *_: ())
        patch.setattr("speakerlens.export.bundle.write_graphs", copied)
        patch.setattr("speakerlens.export.bundle.write_torchscript", copied)
        patch.setattr("speakerlens.export.parity.verify", lambda *_: json.loads((source / "parity.json").read_text()))
        patch.setattr("speakerlens.export.baseline.measure", lambda *_: dict(measured))
        for name, few in (("UTTERANCES", 8), ("_STRANGERS", 3), ("_MAPPED", 1), ("_CALIBRATION", 14)):
            patch.setattr(f"speakerlens.export.precisions.{name}", few)
        out = tmp_path_factory.mktemp("precise")
        steps: list[tuple[int, int]] = []
        formats = ("int8", "fp16")
        written = export_run(runs["act-da"], out, lambda *step: steps.append(step), formats=formats)
        assert steps[-1][0] <= steps[-1][1]
        assert export_run(runs["act-da"], out, lambda *_: None, formats=formats) == (written.folder, True)
    return written.folder


@pytest.fixture
def precise(exported: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported, tmp_path / "act-da" / "1"))


def change(bundle: Path, name: str, **changes: Any) -> None:
    content = json.loads((bundle / "precisions.json").read_text())
    content["precisions"][name] |= changes
    (bundle / "precisions.json").write_text(json.dumps(content))
    seal(bundle)


def seal(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "files": file_digests(bundle)}))


def passing(bundle: Path, name: str) -> None:
    """Give a precision figures that meet the floor."""
    entry = json.loads((bundle / "precisions.json").read_text())["precisions"][name]
    for condition in entry["conditions"]:
        for share in condition["shares"]:
            share["value"] = share["fp32"]
    change(bundle, name, conditions=entry["conditions"], misses=[], meets_floor=True)


def test_bundle_says_what_each_precision_changes(exported: Path) -> None:
    manifest = json.loads((exported / "bundle.json").read_text())
    jsonschema.validate(manifest, schema("bundle"))
    halves = {f"{name}.fp16.onnx" for name in ("predict", "explain", "verify")}
    assert {"precisions.json", "predict.int8.onnx", *halves} <= manifest["files"].keys()
    content = json.loads((exported / "precisions.json").read_text())
    jsonschema.validate(content, schema("precisions"))
    assert content["floor"] == FLOOR
    whole, half = content["precisions"]["int8"], content["precisions"]["fp16"]
    baseline = json.loads((exported / "baseline.json").read_text())
    expected = [(each["interference"], each["snr_db"]) for each in baseline["conditions"]]
    for entry in (whole, half):
        assert [(each["interference"], each["snr_db"]) for each in entry["conditions"]] == [*expected, ("all", None)]
        assert entry["misses"] == misses(entry, FLOOR)
        assert entry["meets_floor"] is not entry["misses"]
    assert half["meets_floor"], half["misses"]
    errors = {each["output"]: each for each in whole["outputs"]}
    assert set(errors) == {"logits", "embedding"}
    assert 1e-4 < errors["logits"]["median"] < 0.1
    maps = {(each["graph"], each["output"]) for each in half["outputs"] if "correlation" in each}
    assert maps == {(f"{g}.onnx", f"saliency_s{s}") for g in ("explain", "verify") for s in (1, 2, 3, 4)}
    assert all(each["correlation"] > 0.99 for each in half["outputs"] if "correlation" in each)
    defined = [each["deletion_index"] for each in baseline["probes"] if each["deletion_index"] is not None]
    assert [each["fp32"] for each in half["deletion_index"]] == defined != whole["deletion_index"] == []
    for each in half["deletion_index"]:
        assert each["value"] == pytest.approx(each["fp32"], rel=0.05)


def test_figures_are_those_of_the_graphs(exported: Path) -> None:
    """The clean accuracy and an error, computed again from the files."""
    bundle = read_bundle(exported)
    content = json.loads((exported / "precisions.json").read_text())["precisions"]["int8"]
    sessions = [
        ort.InferenceSession(str(exported / name), providers=["CPUExecutionProvider"])
        for name in ("predict.onnx", "predict.int8.onnx")
    ]
    worst = {each["output"]: each["worst"] for each in content["outputs"]}
    for path in sorted((exported / "utterances").iterdir())[:5]:
        audio = soundfile.read(path, dtype="float32")[0]
        feeds = {"audio": audio[None], "lengths": np.array([len(audio)])}
        exact, whole = (session.run(["logits", "embedding"], feeds) for session in sessions)
        assert 0 < relative_error(whole[0], exact[0]) <= 3 * worst["logits"]
        assert 0 < relative_error(whole[1], exact[1]) <= 3 * worst["embedding"]
    assert bundle.precisions["int8"].files == {"predict.onnx": "predict.int8.onnx"}


def test_int8_does_not_depend_on_the_batch(exported: Path) -> None:
    """Less than float32 does: whole numbers add up exactly, and padding is masked."""
    session = ort.InferenceSession(str(exported / "predict.int8.onnx"), providers=["CPUExecutionProvider"])
    utterances = [soundfile.read(path, dtype="float32")[0] for path in sorted((exported / "utterances").iterdir())[:6]]
    lengths = np.array([len(audio) for audio in utterances])
    batch = np.zeros((len(utterances), lengths.max() + 1600), np.float32)
    for row, audio in zip(batch, utterances, strict=True):
        row[: len(audio)] = audio
    together = session.run(["logits"], {"audio": batch, "lengths": lengths})[0]
    alone = [
        session.run(["logits"], {"audio": audio[None], "lengths": lengths[place : place + 1]})[0][0]
        for place, audio in enumerate(utterances)
    ]
    errors = [relative_error(one, other) for one, other in zip(together, alone, strict=True)]
    # The front end, in float32, may round a value to the next step.
    assert np.median(errors) < 1e-4
    assert max(errors) < 1e-2


def test_verify_repeats_the_comparison(precise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holds = json.loads((precise / "parity.json").read_text())
    monkeypatch.setattr("speakerlens.export.parity.verify", lambda *_: holds)
    monkeypatch.setattr("speakerlens.export.parity.SECONDS", (1.6,))
    assert verify_bundle(precise, lambda *_: None) == holds
    model = onnx.load(str(precise / "predict.int8.onnx"))
    scales = next(each for each in model.graph.initializer if each.name.endswith("stem.weight_scale"))
    scales.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(scales), scales.name))
    onnx.save(model, precise / "predict.int8.onnx")
    with pytest.raises(ExportError, match=r"predict\.int8\.onnx changed"):
        verify_bundle(precise, lambda *_: None)
    seal(precise)
    with pytest.raises(ExportError, match=r"predict\.int8\.onnx: logits differs from predict\.onnx by"):
        verify_bundle(precise, lambda *_: None)
    change(precise, "fp16", meets_floor=False)
    with pytest.raises(ExportError, match="whether fp16 meets the floor is not what its figures say"):
        verify_bundle(precise, lambda *_: None)


def test_bundle_is_served_in_int8(precise: Path) -> None:
    passing(precise, "int8")
    path = sorted((precise / "utterances").iterdir())[0]
    audio = soundfile.read(path, dtype="float32")[0]
    session = ort.InferenceSession(str(precise / "predict.int8.onnx"), providers=["CPUExecutionProvider"])
    feeds = {"audio": audio[None], "lengths": np.array([len(audio)])}
    logits = session.run(["logits"], feeds)[0][0]
    exact = ort.InferenceSession(str(precise / "predict.onnx"), providers=["CPUExecutionProvider"]).run(
        ["logits"], feeds
    )[0][0]
    with ServerProcess(precise.parents[1], "--precision=int8") as server:
        assert server.ready["precisions"] == {"act-da/1": "int8"}
        plain, mapped = (
            server.identify(pb.IdentifyRequest(audio=raw(audio), top_k=len(logits), explain=explain)).answers[0]
            for explain in (None, pb.ExplainOptions(stages=[pb.STAGE_FUSED]))
        )
    labels = read_bundle(precise).speakers
    served = {each.speaker: each.logit for each in plain.speakers}
    answer = np.array([served[name] for name in labels], np.float32)
    # The server pads, and a sum in the front end may round to the next step: still much nearer to int8 than to float32.
    assert relative_error(answer, logits) < 0.3 * relative_error(answer, exact)
    assert [each.logit for each in mapped.speakers] == [each.logit for each in plain.speakers]
    assert mapped.explanation.saliency


def test_precision_that_is_missed_is_refused_by_name(precise: Path) -> None:
    entry = json.loads((precise / "precisions.json").read_text())["precisions"]["int8"]
    share = entry["conditions"][0]["shares"][0]
    share["value"] = share["fp32"] - 0.1
    change(precise, "int8", conditions=entry["conditions"])
    with pytest.raises(
        BundleError, match=r"^act-da/1 in int8 misses the floor for serving: top-1 accuracy under clean"
    ):
        choose_precision(read_bundle(precise), "int8", on_gpu=False)
    assert choose_precision(read_bundle(precise), "auto", on_gpu=True) == "fp16"


def test_unknown_precision_and_missing_corpus_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), "--out", str(tmp_path), "--precision", "fp32,bf16"])
    assert caught.value.code == 2
    assert "must be some of fp32, int8, fp16 with commas between them, not 'bf16'" in capsys.readouterr().err
    with pytest.raises(UserError, match="there are none for this network; leave it out, for float32"):
        check_measurable(("int8",), None, None)
    check_measurable((), None, None)
