"""Bundles on disk: complete, verified, refused when damaged, and written atomically."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
import torch

from speakerlens.export.boundary import BoundaryReferences
from speakerlens.export.bundle import (
    ExportError,
    Options,
    Report,
    _Calibrated,
    choose_utterances,
    export_run,
    file_digests,
    schema,
)
from speakerlens.export.cli import main
from speakerlens.export.onnx_graphs import GraphError, check_graph
from speakerlens.export.verify import verify_bundle
from speakerlens.serving.models.reader import read_bundle
from speakerlens.training.checkpoint import Run, load_run
from speakerlens.training.data.manifest import Corpus, load_corpus
from speakerlens.training.errors import UserError
from tests.conftest import VARIANTS

FILES = {
    "bundle.json", "predict.onnx", "explain.onnx", "verify.onnx", "model.ts", "weights.safetensors", "parity.json",
    "baseline.json",
}  # fmt: skip


def nothing(done: int, total: int) -> None:
    """Ignore progress."""


@pytest.fixture
def bundle(bundles: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(bundles / "act-da" / "1", tmp_path / "act-da" / "1"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_bundle_is_complete_and_describes_itself(bundles: Path, runs: dict[str, Path], variant: str) -> None:
    folder = bundles / variant / "1"
    assert all(p.stat().st_mode & 0o004 for p in folder.rglob("*")), "not readable by another user"
    manifest = json.loads((folder / "bundle.json").read_text())
    jsonschema.validate(manifest, schema("bundle"))
    trained = load_run(runs[variant])
    assert manifest["variant"] == variant
    assert tuple(manifest["speakers"]) == trained.speakers
    assert manifest["training_data_digest"] == trained.corpus_digest
    assert len(manifest["utterances"]) == 20
    assert {entry["speaker"] for entry in manifest["utterances"]} <= set(trained.speakers)
    calibration = manifest["calibration"]
    assert calibration["temperature"] > 0
    by_logit = calibration["score"] == "logit"
    assert {p.name for p in folder.iterdir() if p.is_file()} == FILES | (set() if by_logit else {"scorer.npz"})
    assert not by_logit or -1 < calibration["threshold"] < 1
    assert calibration["noises"] > 20
    assert calibration["noise_acceptance"] == 0.02
    assert calibration["false_acceptance"] == 0.05
    loaded = load_corpus(trained.corpus)
    out_of_set = {clip.speaker for clip in loaded.interference("speech", "dev")} - set(trained.speakers)
    assert calibration["strangers"] == "held-out speakers"
    assert calibration["stranger_speakers"] == len(out_of_set) >= 3
    assert calibration["stranger_speakers"] <= calibration["stranger_utterances"]
    assert calibration["utterances"] == len(loaded.utterances("dev"))
    verification = manifest["verification"]
    assert (verification["strangers"], verification["false_acceptance"]) == ("held-out speakers", 0.05)
    assert (manifest["search"]["speakers"], manifest["search"]["false_alarm"]) == (len(out_of_set), 0.05)
    assert verification["thresholds"][0]["utterances"] == 1
    assert all(-1 < each["threshold"] < 1 and each["different_pairs"] > 100 for each in verification["thresholds"])


@pytest.mark.parametrize("graph", ["predict.onnx", "explain.onnx", "verify.onnx"])
def test_graphs_describe_themselves(bundles: Path, graph: str) -> None:
    model = onnx.load(str(bundles / "clean" / "1" / graph))
    check_graph(model, graph)
    assert min(opset.version for opset in model.opset_import) >= 18
    facts = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    manifest = json.loads((bundles / "clean" / "1" / "bundle.json").read_text())
    assert facts == {key: manifest[key] for key in facts}
    assert {"variant", "speakers", "sample_rate", "stages", "calibration"} <= facts.keys()
    names = {o.name: [d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in model.graph.output}
    assert names["embedding"] == ["batch", manifest["network"]["embedding"]]
    assert names.get("logits", ["batch", 8]) == ["batch", 8]


def test_parity_covers_all_outputs_and_holds(bundles: Path) -> None:
    parity = json.loads((bundles / "clean" / "1" / "parity.json").read_text())
    assert parity["holds"] is True
    assert parity["utterances"] == 20
    figures = parity["figures"]
    assert len({figure["batch"] for figure in figures}) >= 3
    assert len({figure["seconds"] for figure in figures}) >= 4
    outputs = {"logits", "embedding", "features", *(f"saliency_s{s}" for s in (1, 2, 3, 4))}
    assert {f["output"] for f in figures if f["runtime"] == "explain.onnx"} == outputs
    assert {f["output"] for f in figures if f["runtime"] == "model.ts"} == outputs
    compared = {"score", *outputs} - {"logits"}
    assert {f["output"] for f in figures if f["runtime"] == "verify.onnx"} == compared
    assert {f["output"] for f in figures if f["runtime"] == "model.ts verify"} == compared
    for figure in figures:
        assert figure["worst"] <= (1e-4 if figure["output"] in ("logits", "embedding", "score") else 1e-3)


def test_baseline_counts_every_utterance(bundles: Path, corpus: Path) -> None:
    baseline = json.loads((bundles / "act-da" / "1" / "baseline.json").read_text())
    jsonschema.validate(baseline, schema("baseline"))
    by_kind: dict[str, int] = {}
    for condition in baseline["conditions"]:
        by_kind[condition["interference"]] = by_kind.get(condition["interference"], 0) + condition["utterances"]
    assert set(by_kind) == {"clean", "noise", "music", "babble", "speaker", "reverb", "reverb+noise"}
    known = load_corpus(corpus)
    assert by_kind["clean"] == len(known.utterances("test")) + len(known.utterances("dev"))
    assert set(baseline["distributions"]) == set(by_kind)
    clean = baseline["distributions"]["clean"]
    assert set(clean) == {
        "seconds", "snr_db", "speech_share", "clipped_share", "level_dbfs", "bandwidth_hz", "top1_probability",
        "margin", "entropy", "best_logit", "deletion_index", "concentration",
    }  # fmt: skip
    for kind, measures in baseline["distributions"].items():
        for name, found in measures.items():
            assert sum(found["counts"]) == found["samples"] <= by_kind[kind]
            assert len(found["counts"]) == len(found["edges"]) + 1
            assert found["edges"] == clean[name]["edges"] == sorted(found["edges"])
            if name != "snr_db":
                assert found["samples"] == by_kind[kind], name


def test_serving_reads_the_baseline(bundles: Path) -> None:
    bundle = read_bundle(bundles / "act-da" / "1")
    assert bundle.baseline.clean["margin"].samples > 0


@pytest.fixture
def short_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification on one length and one batch size; the export of the bundles used all of them."""
    monkeypatch.setattr("speakerlens.export.parity.SECONDS", (1.6,))
    monkeypatch.setattr("speakerlens.export.parity.BATCH_SIZES", (3,))


@pytest.mark.usefixtures("short_parity")
def test_verify_of_a_bundle_holds(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundles / "act-da" / "1")]) == 0
    assert capsys.readouterr().out.count("holds") == 1


def test_exporting_again_reuses_the_bundle(bundles: Path, runs: dict[str, Path]) -> None:
    before = sorted(bundles.rglob("*"))
    written = export_run(runs["clean"], bundles, lambda done, total: None)
    assert written == (bundles / "clean" / "1", True)
    assert sorted(bundles.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "rate", "reused"),
    [("schema_version", 0.05, False), ("nothing", 0.1, False), ("nothing", 0.05, True)],
    ids=["written before", "another rate", "the same"],
)
def test_another_schema_or_rate_makes_a_new_version(
    bundle: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, change: str, rate: float, reused: bool
) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, change: 1}))
    monkeypatch.setattr("speakerlens.export.bundle._fill", lambda folder, *_: (folder / "bundle.json").write_text("{}"))
    written = export_run(runs["act-da"], bundle.parents[1], lambda done, total: None, false_acceptance=rate)
    assert written == (bundle if reused else bundle.parent / "2", reused)


def test_bundle_of_an_older_schema_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    del manifest["calibration"]
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "schema_version": 2}))
    with pytest.raises(ExportError, match=r"has schema version 2, this program reads 4; export it again"):
        verify_bundle(bundle, nothing)


@pytest.mark.parametrize("name", sorted(FILES - {"bundle.json"}))
def test_a_changed_file_is_refused_by_name(bundle: Path, name: str) -> None:
    with (bundle / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ExportError, match=name.replace(".", r"\.")):
        verify_bundle(bundle, nothing)


def test_a_missing_and_an_unlisted_file_are_refused(bundle: Path) -> None:
    (bundle / "stray.txt").write_text("?")
    with pytest.raises(ExportError, match=r"stray\.txt is not listed"):
        verify_bundle(bundle, nothing)
    (bundle / "stray.txt").unlink()
    (bundle / "model.ts").unlink()
    with pytest.raises(ExportError, match=r"model\.ts is missing"):
        verify_bundle(bundle, nothing)


def test_wrong_manifest_is_refused_with_its_place(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["calibration"]["temperature"] = -1
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=r"\$\.calibration\.temperature"):
        verify_bundle(bundle, nothing)


def test_wrong_baseline_is_refused_with_its_place(bundle: Path) -> None:
    """With a correct digest."""
    baseline = json.loads((bundle / "baseline.json").read_text())
    baseline["distributions"]["clean"]["margin"]["mean"] = "wide"
    (bundle / "baseline.json").write_text(json.dumps(baseline))
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "files": file_digests(bundle)}))
    with pytest.raises(ExportError, match=r"baseline\.json: \$\.distributions\.clean\.margin\.mean"):
        verify_bundle(bundle, nothing)


@pytest.mark.usefixtures("short_parity")
def test_other_weights_fail_verification(bundles: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of another variant with correct digests: only the comparison detects them."""
    shutil.copy(bundles / "clean" / "1" / "weights.safetensors", bundle / "weights.safetensors")
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"] = file_digests(bundle)
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    assert main(["verify", str(bundle)]) == 1
    assert "do not hold" in capsys.readouterr().err


def test_boundary_references_accept_no_other_map(runs: dict[str, Path], corpus: Path) -> None:
    """The map of another class is far from every candidate."""
    trained = load_run(runs["clean"])
    network = trained.network
    audio = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    features, _ = network.front_end(audio)
    candidates = list(BoundaryReferences(network).maps(features[0].numpy(), 16000, 0))
    wrong = next(BoundaryReferences(network).maps(features[0].numpy(), 16000, 1))
    assert len(candidates) >= 10
    for stage in range(4):
        errors = [np.linalg.norm(wrong[stage] - c[stage]) / np.linalg.norm(c[stage]) for c in candidates]
        assert min(errors) > 0.05
        between = [np.linalg.norm(candidates[0][stage] - c[stage]) / np.linalg.norm(c[stage]) for c in candidates]
        assert max(between) < 0.05


def test_non_standard_operator_is_refused() -> None:
    node = onnx.helper.make_node("FusedConv", ["x"], ["y"], domain="com.example")
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.example", 1)]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=opsets)
    with pytest.raises(GraphError, match=r"com\.example::FusedConv"):
        check_graph(model, "g.onnx")


def test_utterances_are_spread_and_filled_up(corpus: Path) -> None:
    loaded = load_corpus(corpus)
    chosen = choose_utterances(loaded, 20)
    assert len(chosen) == len(set(chosen)) == 20
    test = [clip for clip in chosen if clip.split == "test"]
    assert {clip.speaker for clip in test} == set(loaded.speakers)


def test_what_cannot_be_exported_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        export_run(tmp_path, tmp_path / "bundles", lambda done, total: None)
    assert not (tmp_path / "bundles").exists()
    moved = tmp_path / "run"
    shutil.copytree(runs["clean"], moved)
    checkpoint = torch.load(moved / "checkpoint.pt", weights_only=True)
    checkpoint["corpus_digest"] = "0" * 64
    torch.save(checkpoint, moved / "checkpoint.pt")
    with pytest.raises(UserError, match="not the corpus"):
        export_run(moved, tmp_path / "bundles", lambda done, total: None)


def test_failed_export_leaves_no_files(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speakerlens.export.bundle._calibrate", lambda *_: _Calibrated())
    monkeypatch.setattr("speakerlens.export.bundle.write_graphs", lambda *_: (_ for _ in ()).throw(GraphError("no")))
    with pytest.raises(ExportError, match="no"):
        export_run(runs["clean"], tmp_path / "bundles", lambda done, total: None)
    assert not list((tmp_path / "bundles").rglob("*"))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nowhere", "--out", "x"],
        ["verify", "nowhere"],
        ["run", "--out", "x", "--false-acceptance", "5"],
        ["run", "--out", "x", "--false-acceptance", "nan"],
    ],
)
def test_bad_command_line_is_an_error(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as end:  # of the argument parser
        code = end.code  # type: ignore[assignment]
    assert code == 2
    error = capfd.readouterr().err
    assert "error:" in error
    assert "Traceback" not in error


def test_parallel_exports_of_a_variant_get_two_versions(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first and takes the next number, which is in the files."""

    def slowly(folder: Path, run: Run, corpus: Corpus, version: int, options: Options, report: Report) -> None:
        time.sleep(0.5)
        (folder / "bundle.json").write_text(f'{{"version": {version}}}')

    monkeypatch.setattr("speakerlens.export.bundle._fill", slowly)
    other = tmp_path / "other"
    shutil.copytree(runs["clean"], other)
    checkpoint = torch.load(other / "checkpoint.pt", weights_only=True)
    checkpoint["network"]["encoder.seg_1.bias"] += 1.0
    torch.save(checkpoint, other / "checkpoint.pt")
    with ThreadPoolExecutor() as pool:
        both = [runs["clean"], other]
        written = list(pool.map(lambda run: export_run(run, tmp_path / "bundles", lambda done, total: None), both))
    assert sorted(result.folder.name for result in written) == ["1", "2"]
    for result in written:
        assert json.loads((result.folder / "bundle.json").read_text())["version"] == int(result.folder.name)
    assert sorted(p.name for p in (tmp_path / "bundles" / "clean").iterdir()) == ["1", "2"]


def test_a_file_in_the_way_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "bundles").write_text("not a folder")
    with pytest.raises(UserError, match="bundles"):
        export_run(runs["clean"], tmp_path / "bundles", lambda done, total: None)


@pytest.mark.parametrize(
    "name", ["explain.onnx", "predict.onnx", "verify.onnx", "model.ts", "weights.safetensors", "parity.json"]
)
def test_garbage_with_a_correct_digest_is_refused(bundle: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / name).write_bytes(b"rubbish")
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"] = file_digests(bundle)
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    assert main(["verify", str(bundle)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
