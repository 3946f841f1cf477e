"""What is read and what is refused, with the reason."""

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from speakerlens.measures.distribution import Bins
from speakerlens.serving.bundle import Bundle, BundleError, Distribution, ExpectedProbe, Fault
from speakerlens.serving.engine.placement import Placement
from speakerlens.serving.engine.session import Engine
from speakerlens.serving.models.folders import list_bundles, stamp_of
from speakerlens.serving.models.reader import read_bundle
from tests.measures.search_section import section
from tests.serving import toy


def altered(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: toy.seal(folder, {**toy.manifest_of(folder), **changes})


def without(key: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = toy.manifest_of(folder)
        del manifest[key]
        (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")

    return change


def resealed(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Make a change of the files, and record their digests again: only the other faults are left."""

    def changed(folder: Path) -> None:
        change(folder)
        manifest = toy.manifest_of(folder)
        del manifest["files"]
        toy.seal(folder, manifest)

    return changed


def graph(name: str, change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        model = onnx.load(folder / name)
        change(model)
        onnx.save(model, folder / name)

    return resealed(changed)


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Identity", ["saliency_s3"], ["saliency"]))
    model.graph.output[5].name = "saliency"


def another_variant(model: onnx.ModelProto) -> None:
    onnx.helper.set_model_props(model, {"variant": '"w"', "version": "1", "speakers": json.dumps(toy.speakers())})


def no_facts(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def weights_in_a_file(folder: Path) -> None:
    """As large graphs have them; ONNX Runtime would map the file for as long as the graph is open."""
    model = onnx.load(folder / "predict.onnx")
    onnx.save(model, folder / "predict.onnx", save_as_external_data=True, location="weights.bin", size_threshold=9)


def weights_in_a_branch(folder: Path) -> None:
    """Where a reader of the graph's own list of weights does not look: the constant of a subgraph."""
    model = onnx.load(folder / "predict.onnx")
    weight = onnx.numpy_helper.from_array(np.zeros(2, np.float32), "hidden")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    constant = onnx.helper.make_node("Constant", [], ["hidden"], value=weight)
    body = next(node for node in model.graph.node if node.op_type == "Loop").attribute[0].g
    body.node.insert(0, constant)
    onnx.save_model(model, folder / "predict.onnx")


def overflowing(folder: Path) -> None:
    """A number that is valid JSON, and infinity to Python."""
    text = (folder / "bundle.json").read_text(encoding="utf-8")
    (folder / "bundle.json").write_text(
        text.replace('"temperature": ', '"temperature": 1e999, "x": '), encoding="utf-8"
    )


def calibrated(**changes: float) -> Callable[[Path], None]:
    return altered(calibration=toy.manifest()["calibration"] | changes)


def too_many_speakers(folder: Path) -> None:
    """The graphs claim to know them as well."""
    names = [f"s{index}" for index in range(13)]
    facts = {"variant": '"v"', "version": "1", "speakers": json.dumps(names)}
    for name in ("predict.onnx", "explain.onnx", "verify.onnx"):
        graph(name, lambda model: onnx.helper.set_model_props(model, facts))(folder)
    altered(speakers=names)(folder)


def thresholds(*sizes: int) -> dict[str, Any]:
    entry = toy.manifest()["verification"]["thresholds"][0]
    return {**toy.manifest()["verification"], "thresholds": [{**entry, "utterances": size} for size in sizes]}


def baseline(**changes: Any) -> Callable[[Path], None]:
    """Another baseline of the clean level, or another baseline altogether, with a digest of its own."""

    def change(folder: Path) -> None:
        content = toy.baseline()
        content["distributions"]["clean"]["level_dbfs"] |= changes
        (folder / "baseline.json").write_text(json.dumps(content), encoding="utf-8")

    return resealed(change)


def leaving(name: str) -> Callable[[Path], None]:
    """Replace a file by a link to the same content outside the bundle."""

    def change(folder: Path) -> None:
        elsewhere = folder.parents[1] / "elsewhere"
        (folder / name).rename(elsewhere)
        (folder / name).symlink_to(elsewhere)

    return change


def pipe(name: str) -> Callable[[Path], None]:
    """Replace a file by a named pipe that nothing writes to."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def device(folder: Path) -> None:
    (folder / "predict.onnx").unlink()
    (folder / "predict.onnx").symlink_to("/dev/zero")


def folder_as_file(folder: Path) -> None:
    (folder / "parity.json").unlink()
    (folder / "parity.json").mkdir()


def circle(folder: Path) -> None:
    (folder / "parity.json").unlink()
    (folder / "parity.json").symlink_to("parity.json")


FRONT_END, NETWORK, STAGES = (toy.manifest()[key] for key in ("front_end", "network", "stages"))

BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("no manifest", lambda f: (f / "bundle.json").unlink(), "bundle.json is missing"),
    ("half a manifest", lambda f: (f / "bundle.json").write_text("{"), "bundle.json cannot be read"),
    ("a list", lambda f: (f / "bundle.json").write_text("[]"), "not a JSON object"),
    ("an older schema", altered(schema_version=2), "has schema version 2, this server reads 4; export it again"),
    ("no schema", altered(schema_version="4"), "at schema_version: 4 was expected"),
    ("nothing to fuse", altered(fused_stages=[]), "at fused_stages"),
    ("an unknown stage to fuse", altered(fused_stages=["s5"]), "at fused_stages[0]"),
    ("no threshold", altered(calibration={}), "at calibration"),
    ("no verification", altered(verification={}), "at verification"),
    ("no threshold for two utterances", altered(verification=thresholds(2, 3)), "start with 1 utterance"),
    ("thresholds in disorder", altered(verification=thresholds(1, 3, 2)), "and ascend"),
    ("an unknown key", altered(extra=1), "'extra' was unexpected"),
    ("too deep", lambda f: (f / "bundle.json").write_text("[" * 100_000), "bundle.json cannot be read"),
    ("no speakers", without("speakers"), "'speakers' is a required property"),
    ("one speaker", altered(speakers=["eve"]), "at speakers"),
    ("speakers twice", altered(speakers=["eve", "eve"]), "at speakers"),
    ("another place", altered(version=3), "is of v/3, the folder is not"),
    ("too few centres", altered(front_end=FRONT_END | {"mel_bins": 17}), "16 mel centres for 17"),
    ("stages out of order", altered(stages=STAGES[::-1]), "s1, s2, s3, s4 in this order"),
    ("tiny minimum", altered(min_samples=399), "shorter than a frame"),
    ("a file changed", lambda f: (f / "explain.onnx").write_bytes(b"x"), "explain.onnx is not the file"),
    ("a file missing", lambda f: (f / "predict.onnx").unlink(), "predict.onnx is missing"),
    ("a manifest elsewhere", leaving("bundle.json"), "bundle.json is a link that leaves the bundle"),
    ("a graph elsewhere", leaving("verify.onnx"), "verify.onnx is a link that leaves the bundle"),
    ("a device", device, "predict.onnx is a link that leaves the bundle"),
    ("a manifest that never ends", pipe("bundle.json"), "bundle.json is not a regular file"),
    ("a graph that never ends", pipe("predict.onnx"), "predict.onnx is not a regular file"),
    ("a folder as a file", folder_as_file, "parity.json is not a regular file"),
    ("a link to itself", circle, "parity.json cannot be read"),
    ("no digest", altered(files={"predict.onnx": "0" * 64}), "no digest of explain.onnx"),
    ("parity fails", resealed(lambda f: (f / "parity.json").write_text('{"holds": false}')), "does not hold"),
    ("parity is a word", resealed(lambda f: (f / "parity.json").write_text('{"holds": "yes"}')), "does not hold"),
    ("no baseline", resealed(lambda f: (f / "baseline.json").unlink()), "no digest of baseline.json"),
    ("an empty baseline", resealed(lambda f: (f / "baseline.json").write_text("{}")), "baseline.json does not fit"),
    ("a baseline in words", baseline(mean="loud"), "at distributions.clean.level_dbfs.mean"),
    ("too few edges", baseline(edges=[]), "2 counts for 0 edges at distributions.clean.level_dbfs"),
    ("edges that fall", baseline(edges=[2.0, 1.0], counts=[40, 30, 30]), "do not ascend"),
    (
        "edges of no size",
        baseline(edges=[math.nan, 1.0], counts=[40, 30, 30]),
        "baseline.json cannot be read: it holds NaN",
    ),
    ("a calibration of no size", altered(calibration={"temperature": math.inf, "threshold": 0.0}), "holds Infinity"),
    ("samples without counts", baseline(samples=99), "counts of 100 for 99 samples"),
    ("probes without utterances", altered(probes={"utterances": []}), "at probes"),
    ("not a graph", resealed(lambda f: (f / "predict.onnx").write_bytes(b"x" * 99)), "predict.onnx cannot be opened"),
    ("weights in a file", resealed(weights_in_a_file), "predict.onnx has weights in a file of their own"),
    ("weights in a branch", resealed(weights_in_a_branch), "predict.onnx has weights in a file of their own"),
    ("a temperature of almost nothing", calibrated(temperature=1e-300), "at calibration.temperature"),
    ("a temperature of too much", calibrated(temperature=1e300), "at calibration.temperature"),
    ("a threshold of too much", calibrated(threshold=10**400), "at calibration.threshold"),
    ("a search threshold of too much", altered(search=section(slope=[1e300] * 4)), "at search.slope"),
    ("a search of another size", altered(search=section(offset=[1.0] * 3)), "search: offset has 3 values, not 4"),
    ("a search that falls", altered(search=section(slope=[-1.0] * 4)), "search: slope must be positive"),
    ("a scale of almost nothing", altered(network=NETWORK | {"scale": 1e-300}), "at network.scale"),
    ("a minimum beyond memory", altered(min_samples=10**12), "at min_samples"),
    ("an embedding beyond memory", altered(network=NETWORK | {"embedding": 10**12}), "at network.embedding"),
    ("a number that overflows", overflowing, "bundle.json cannot be read: it holds 1e999"),
    ("graphs swapped", resealed(lambda f: shutil.copy(f / "predict.onnx", f / "explain.onnx")), "explain.onnx takes"),
    ("an output is missing", graph("explain.onnx", rename_output), "explain.onnx has no output saliency_s3"),
    (
        "graphs swapped again",
        resealed(lambda f: shutil.copy(f / "explain.onnx", f / "verify.onnx")),
        "verify.onnx takes",
    ),
    ("another's graph to verify", graph("verify.onnx", another_variant), "verify.onnx is of another bundle"),
    ("another's graph", graph("predict.onnx", another_variant), "disagrees with bundle.json about variant"),
    ("a graph without facts", graph("explain.onnx", no_facts), "disagrees with bundle.json about variant"),
    ("speakers in another order", altered(speakers=toy.speakers()[::-1]), "disagrees with bundle.json about speakers"),
    ("too many speakers", too_many_speakers, "shapes"),
    ("another embedding", altered(network=NETWORK | {"embedding": 7}), "shapes"),
    ("too many rows", altered(stages=[stage | {"rows": 16} for stage in STAGES]), "shapes"),
]


def opened(folder: Path) -> Bundle:
    bundle = read_bundle(folder)
    Engine(bundle, Placement("cpu", 1)).warm_up()
    return bundle


@pytest.mark.parametrize(("change", "reason"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_an_invalid_bundle_is_refused_with_the_reason(
    tmp_path: Path, change: Callable[[Path], object], reason: str
) -> None:
    folder = toy.write_bundle(tmp_path, "v", 1)
    opened(folder)  # whole before the change
    change(folder)
    with pytest.raises(BundleError) as caught:
        opened(folder)
    assert reason in str(caught.value)


def test_an_invalid_baseline_has_its_own_fault(tmp_path: Path) -> None:
    folder = toy.write_bundle(tmp_path, "v", 1)
    baseline(samples=99)(folder)
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    assert caught.value.fault == Fault.BASELINE
    assert not caught.value.fault.may_be_transient


def test_baseline_and_probes_are_read(tmp_path: Path) -> None:
    folder = toy.write_bundle(tmp_path, "v", 1)
    assert read_bundle(folder).probes is None
    toy.add_probes(folder)
    bundle = read_bundle(folder)
    assert bundle.probes is not None
    assert [str(each) for each in bundle.probes.conditions] == ["clean", "resampled", "noise 10 dB", "noise 0 dB"]
    assert len(bundle.baseline.probes) == 4
    assert bundle.baseline.probes[0] == ExpectedProbe("clean", None, 2, 1.0, None)
    assert bundle.baseline.clean["level_dbfs"] == Distribution(Bins((-20.0,)), (50, 50), 100, -20.0)


def unlisted(folder: Path) -> None:
    manifest = toy.manifest_of(folder)
    del manifest["files"]["probes/noise/01.npy"]
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")


def expecting_little(folder: Path) -> None:
    content = json.loads((folder / "baseline.json").read_text(encoding="utf-8"))
    content["probes"].pop()
    (folder / "baseline.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (unlisted, "bundle.json records no digest of probes/noise/01.npy"),
        (resealed(expecting_little), "baseline.json has no expected result of probes under noise 0 dB"),
        (
            resealed(lambda f: (f / "probes/noise/00.npy").write_bytes(b"no")),
            "probes/noise/00.npy cannot be read as an",
        ),
        (resealed(lambda f: (f / "probes/resampled/01.flac").write_bytes(b"")), "probes/resampled/01.flac cannot be"),
    ],
)
def test_invalid_probes_have_their_own_fault(tmp_path: Path, change: Callable[[Path], object], reason: str) -> None:
    folder = toy.write_bundle(tmp_path, "v", 1)
    toy.add_probes(folder)
    change(folder)
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    assert reason in str(caught.value)
    assert caught.value.fault == Fault.PROBES
    assert not caught.value.fault.may_be_transient


def test_files_outside_the_bundle_are_not_read(tmp_path: Path) -> None:
    folder = toy.write_bundle(tmp_path, "v", 1)
    files = toy.manifest_of(folder)["files"]
    for name in ("../secret", "/etc/passwd"):
        toy.seal(folder, {**toy.manifest_of(folder), "files": {**files, name: "0" * 64}})
        with pytest.raises(BundleError, match="outside the bundle"):
            read_bundle(folder)


def test_weights_beside_the_server_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would look for them in the working directory, where no digest covers them."""
    folder = toy.write_bundle(tmp_path, "v", 1)
    resealed(weights_in_a_file)(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(BundleError, match=r"predict\.onnx has weights in a file of their own"):
        opened(folder)


def test_links_within_a_bundle_are_followed(tmp_path: Path) -> None:
    """As volumes of Kubernetes have them; the bundle's own folder may be a link as well."""
    folder = toy.write_bundle(tmp_path / "store", "v", 1)
    (folder / "..data").mkdir()
    for file in [each for each in folder.iterdir() if each.is_file()]:
        file.rename(folder / "..data" / file.name)
        file.symlink_to(Path("..data", file.name))
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "v").symlink_to(folder.parent)
    assert read_bundle(tmp_path / "bundles" / "v" / "1").name == "v/1"


def test_versions_beyond_int32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="above 2147483647"):
        read_bundle(toy.write_bundle(tmp_path, "v", 2**31))


def test_versions_are_listed_by_number(tmp_path: Path) -> None:
    for name in ("v/10", "v/9", "v/100", "u/1", "u/.unfinished", "u/01", "u/notes", ".hidden/1", "empty"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("not a bundle", encoding="utf-8")
    found = {variant: [each.name for each in versions] for variant, versions in list_bundles(tmp_path).items()}
    assert found == {"u": ["u/1", "u/01", "u/notes"], "v": ["v/100", "v/10", "v/9"]}
    with pytest.raises(OSError, match="No such file"):
        list_bundles(tmp_path / "none")


def test_a_stamp_changes_with_every_change(tmp_path: Path) -> None:
    """Also where neither size nor modification time tell."""
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep" / "a"
    file.write_bytes(b"1234")
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    stamps = [stamp_of(tmp_path)]
    assert stamp_of(tmp_path) == stamps[0]
    time.sleep(0.02)  # two ticks of the clock that files are stamped with
    file.write_bytes(b"4321")
    os.utime(file, ns=times)
    stamps.append(stamp_of(tmp_path))
    (tmp_path / "b").touch()
    stamps.append(stamp_of(tmp_path))
    file.unlink()
    stamps.append(stamp_of(tmp_path))
    assert len(set(stamps)) == 4


def test_frames_and_columns(toy_bundles: Path) -> None:
    bundle = read_bundle(toy_bundles / "clean" / "1")
    assert [bundle.frames(n) for n in (400, 559, 560, 16_000)] == [1, 1, 2, 98]
    assert [bundle.columns(16_000, stage) for stage in bundle.stages] == [98, 49, 25, 13]


def scored(tmp_path: Path, **changes: Any) -> Path:
    """A bundle whose threshold is on log-likelihood ratios; `changes` replace arrays of the scorer."""
    folder = toy.write_bundle(tmp_path, "v", 1)
    speakers, size = len(toy.speakers()), toy.manifest()["network"]["embedding"]
    arrays = {
        "mean": np.zeros(size, np.float32),
        "transform": np.eye(size, dtype=np.float32),
        "quadratic": np.ones(size, np.float32),
        "linear": np.zeros((speakers, size), np.float32),
        "constant": np.arange(speakers, dtype=np.float32),
    }
    np.savez(folder / "scorer.npz", **{**arrays, **changes})
    calibration = {**toy.manifest_of(folder)["calibration"], "score": "logit + likelihood ratio", "threshold": 5.0}
    toy.reseal(folder, {"calibration": {**calibration, "noises": 7, "noise_acceptance": 0.02}})
    return folder


def test_scorer_of_a_bundle_decides_who_is_known(tmp_path: Path) -> None:
    bundle = read_bundle(scored(tmp_path))
    embedding, logits = np.array([3, 0, 0, 0, 0, 4], np.float32), np.zeros(len(toy.speakers()), np.float32)
    # x²·quadratic of a vector of length one is 1.
    found = bundle.open_set_scores(logits + 2, embedding)
    np.testing.assert_allclose(found, 2 + 1 + np.arange(len(toy.speakers())), rtol=1e-6)
    assert (bundle.classification.noises, bundle.classification.threshold) == (7, 5.0)
    plain = read_bundle(toy.write_bundle(tmp_path / "plain", "v", 1))
    np.testing.assert_allclose(plain.open_set_scores(logits + 3, embedding), 3 / toy.SCALE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear": np.zeros((3, 3), np.float32)}, "scorer.npz has linear of [3, 3], not [12, 6]"),
        ({"constant": np.full(12, np.nan, np.float32)}, "scorer.npz has constant with values that are no numbers"),
        ({"mean": np.array(["a", None], object)}, "scorer.npz cannot be read"),
    ],
)
def test_unfit_scorer_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=re.escape(message)):
        read_bundle(scored(tmp_path, **changes))


def test_missing_scorer_is_refused(tmp_path: Path) -> None:
    folder = scored(tmp_path)
    (folder / "scorer.npz").unlink()
    toy.reseal(folder)
    with pytest.raises(BundleError, match=r"records no digest of scorer\.npz"):
        read_bundle(folder)


def test_calibration_of_search_is_optional(tmp_path: Path) -> None:
    assert read_bundle(toy.write_bundle(tmp_path, "v", 1)).search is None
    found = read_bundle(toy.write_bundle(tmp_path, "v", 2, search=section())).search
    assert found is not None
    assert (found.false_alarm, found.speakers, found.terms.knots_db) == (0.05, 4, (0.0, 20.0))
    assert found.threshold(100, 2.0, 10.0) > found.threshold(10, 2.0, 10.0)
