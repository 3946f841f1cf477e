"""Read bundles from disk, and check everything before it is used.

A bundle is accepted only if `bundle.json` and `baseline.json` fit their schemas, every file has the SHA-256 recorded in
`bundle.json`, the export's parity verification holds, and the folder's name is `<variant>/<version>`. Whether the
graphs fit is checked by the engine when it opens them.
"""

import hashlib
import io
import itertools
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import resources
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

import jsonschema
import numpy as np

from speakerlens.measures.distribution import Bins
from speakerlens.measures.precision import misses
from speakerlens.measures.probes import ProbeError, ProbeSet, files
from speakerlens.measures.scorer import Scorer
from speakerlens.measures.search import SearchCalibration
from speakerlens.serving.bundle import (
    EXPLAIN,
    PREDICT,
    STAGES,
    VERIFY,
    Baseline,
    Bundle,
    BundleError,
    Calibration,
    Distribution,
    ExpectedProbe,
    Fault,
    Precision,
    StageSpec,
    ThresholdBasis,
)

MANIFEST, BASELINE, PARITY, SCORER = "bundle.json", "baseline.json", "parity.json", "scorer.npz"
PRECISIONS = "precisions.json"
SCORER_ARRAYS = ("mean", "transform", "quadratic", "linear", "constant")
SCHEMA_VERSION = 4
# The largest that the wire contract can name (int32).
MAX_VERSION = 2**31 - 1


def read_bundle(folder: Path) -> Bundle:
    """Return the bundle in `folder`, which is named <variant>/<version>, after checking all of it.

    Raises:
        BundleError: the bundle must not be served; says why.
    """
    content = _read(folder, MANIFEST)
    manifest = _parse(MANIFEST, content)
    _check_manifest(manifest)
    if (folder.parent.name, folder.name) != (manifest["variant"], str(manifest["version"])):
        where = f"{manifest['variant']}/{manifest['version']}"
        raise BundleError(f"{MANIFEST} is of {where}, the folder is not", Fault.MISPLACED)
    _check_files(folder, manifest["files"], bool(manifest["speakers"]))
    if _parse(PARITY, _read(folder, PARITY)).get("holds") is not True:
        raise BundleError(f"{PARITY}: the export's own verification does not hold", Fault.PARITY)
    front_end = manifest["front_end"]
    verification = manifest["verification"] or {"thresholds": [], "strangers": None}
    baseline = _read_baseline(folder)
    bundle = Bundle(
        folder=folder,
        variant=manifest["variant"],
        version=manifest["version"],
        speakers=tuple(manifest["speakers"]),
        frame_length=front_end["frame_length"],
        frame_shift=front_end["frame_shift"],
        mel_centres_hz=tuple(front_end["mel_centres_hz"]),
        embedding_size=manifest["network"]["embedding"],
        stages=tuple(StageSpec(**stage) for stage in manifest["stages"]),
        fused_stages=tuple(manifest["fused_stages"]),
        min_samples=manifest["min_samples"],
        score_scale=manifest["network"]["scale"],
        calibration=_calibration(folder, manifest),
        verification_thresholds=tuple((each["utterances"], each["threshold"]) for each in verification["thresholds"]),
        verification_basis=_basis(verification["strangers"]),
        search=_search(manifest),
        code_revision=manifest["code_revision"],
        training_data_digest=manifest["training_data_digest"],
        digest=hashlib.sha256(content).hexdigest(),
        baseline=baseline,
        probes=_read_probes(folder, manifest, baseline),
        precisions=_read_precisions(folder, manifest["files"]),
    )
    _check_consistency(bundle, front_end["mel_bins"])
    return bundle


def _calibration(folder: Path, manifest: dict[str, Any]) -> Calibration | None:
    found = manifest["calibration"]
    if (found is None) == bool(manifest["speakers"]):
        rest = "calibration is missing" if found is None else "a calibration without speakers"
        raise BundleError(
            f"{MANIFEST}: {rest}; a classifier has both, a network without one has neither", Fault.MANIFEST
        )
    if found is None:
        return None
    return Calibration(
        temperature=found["temperature"],
        threshold=found["threshold"],
        false_acceptance=found["false_acceptance"],
        basis=_basis(found["strangers"]),
        speakers=found["stranger_speakers"],
        utterances=found["stranger_utterances"],
        noises=found.get("noises", 0),
        noise_acceptance=found.get("noise_acceptance", 0.0),
        scorer=_read_scorer(folder, manifest) if found.get("score", "logit") != "logit" else None,
    )


def _read_scorer(folder: Path, manifest: dict[str, Any]) -> Scorer:
    if SCORER not in manifest["files"]:
        raise BundleError(f"{MANIFEST} records no digest of {SCORER}", Fault.MANIFEST)
    try:
        with np.load(io.BytesIO(_read(folder, SCORER)), allow_pickle=False) as archive:
            arrays = {name: np.ascontiguousarray(archive[name], np.float32) for name in SCORER_ARRAYS}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{SCORER} cannot be read: {error}", Fault.MANIFEST) from error
    embedding, speakers = manifest["network"]["embedding"], len(manifest["speakers"])
    size = arrays["quadratic"].size
    shapes = ((embedding,), (embedding, size), (size,), (speakers, size), (speakers,))
    for (name, array), shape in zip(arrays.items(), shapes, strict=True):
        if array.shape != shape:
            raise BundleError(f"{SCORER} has {name} of {list(array.shape)}, not {list(shape)}", Fault.MANIFEST)
        if not np.isfinite(array).all():
            raise BundleError(f"{SCORER} has {name} with values that are no numbers", Fault.MANIFEST)
    return Scorer(**arrays)


def _search(manifest: dict[str, Any]) -> SearchCalibration | None:
    section = manifest.get("search")
    try:
        return None if section is None else SearchCalibration.from_section(section)
    except ValueError as error:
        raise BundleError(f"{MANIFEST}: search: {error}", Fault.MANIFEST) from error


def _basis(strangers: str | None) -> ThresholdBasis:
    """Return the basis for what the schema calls `strangers`; None: there are no thresholds."""
    if strangers is None:
        return ThresholdBasis.NONE
    return ThresholdBasis.OUT_OF_SET if strangers == "held-out speakers" else ThresholdBasis.KNOWN


def _read_baseline(folder: Path) -> Baseline:
    content = _parse(BASELINE, _read(folder, BASELINE))
    _check_schema(BASELINE, content, "baseline.schema.json", Fault.BASELINE)
    for condition, measures in content["distributions"].items():
        for measure, found in measures.items():
            _check_distribution(f"distributions.{condition}.{measure}", found)
    clean = {
        measure: Distribution(Bins(tuple(found["edges"])), tuple(found["counts"]), found["samples"], found["mean"])
        for measure, found in content["distributions"]["clean"].items()
    }
    return Baseline(clean, tuple(ExpectedProbe(**probe) for probe in content["probes"]))


def _check_distribution(where: str, found: Mapping[str, Any]) -> None:
    edges, counts = found["edges"], found["counts"]
    if len(counts) != len(edges) + 1:
        raise BundleError(f"{BASELINE} has {len(counts)} counts for {len(edges)} edges at {where}", Fault.BASELINE)
    if any(not low < high for low, high in itertools.pairwise(edges)):
        raise BundleError(f"{BASELINE} has edges that do not ascend at {where}", Fault.BASELINE)
    if sum(counts) != found["samples"]:
        message = f"{BASELINE} has counts of {sum(counts)} for {found['samples']} samples at {where}"
        raise BundleError(message, Fault.BASELINE)


def _read_probes(folder: Path, manifest: dict[str, Any], baseline: Baseline) -> ProbeSet | None:
    for name in files(manifest["probes"]) if manifest["probes"] else ():
        if name not in manifest["files"]:
            raise BundleError(f"{MANIFEST} records no digest of {name}", Fault.PROBES)
    try:
        probes = ProbeSet.read(folder, manifest)
    except ProbeError as error:
        raise BundleError(str(error), Fault.PROBES) from error
    expected = [(each.interference, each.snr_db) for each in baseline.probes]
    for condition in probes.conditions if probes else ():
        if condition not in expected:
            raise BundleError(f"{BASELINE} has no expected result of probes under {condition}", Fault.PROBES)
    return probes


def _read_precisions(folder: Path, digests: Mapping[str, str]) -> dict[str, Precision]:
    """Return the graphs in other number formats by precision; none in a bundle without them."""
    if PRECISIONS not in digests:
        return {}
    content = _parse(PRECISIONS, _read(folder, PRECISIONS))
    _check_schema(PRECISIONS, content, "precisions.schema.json", Fault.PRECISION)
    found = {}
    for name, entry in content["precisions"].items():
        for graph, file in entry["graphs"].items():
            if file not in digests:
                raise BundleError(f"{MANIFEST} records no digest of {file}, {graph} in {name}", Fault.MANIFEST)
        found[name] = Precision(entry["graphs"], tuple(misses(entry, content["floor"])), entry["speed"]["of_fp32"])
    return found


@cache
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    text = resources.files("speakerlens.protos").joinpath(schema).read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def _check_schema(name: str, content: dict[str, Any], schema: str, fault: Fault) -> None:
    error = jsonschema.exceptions.best_match(_validator(schema).iter_errors(content))
    if error is not None:
        where = error.json_path.removeprefix("$").removeprefix(".") or "top level"
        raise BundleError(f"{name} does not fit the schema at {where}: {error.message[:200]}", fault)


def _read(folder: Path, name: str) -> bytes:
    with _open(folder, name) as file:
        return file.read()


@contextmanager
def _open(folder: Path, name: str) -> Iterator[BufferedReader]:
    """Open a file of a bundle, and turn what goes wrong with it into BundleError.

    It must be a regular file, as others (pipes, devices) may never end, and not be a link that leaves the bundle.
    """
    path = folder / name
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve(strict=True)):
            raise BundleError(f"{name} is a link that leaves the bundle", Fault.UNREADABLE)
        # Without waiting: a pipe would be opened only once something writes to it.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BundleError(f"{name} is not a regular file", Fault.UNREADABLE)
            yield file
    except FileNotFoundError:
        raise BundleError(f"{name} is missing", Fault.UNREADABLE) from None
    except IsADirectoryError:
        raise BundleError(f"{name} is not a regular file", Fault.UNREADABLE) from None
    except OSError as error:
        raise BundleError(f"{name} cannot be read: {error.strerror}", Fault.UNREADABLE) from error
    except RuntimeError as error:  # links in a circle; an OSError from Python 3.13 on
        raise BundleError(f"{name} cannot be read: {error}", Fault.UNREADABLE) from error


def _parse(name: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} cannot be read: {error}", Fault.UNREADABLE) from error
    if not isinstance(value, dict):
        raise BundleError(f"{name} is not a JSON object", Fault.MANIFEST)
    return value


def _refuse_constant(constant: str) -> NoReturn:
    """Raise ValueError: JSON has no NaN or infinity, and NaN passes every bound of a schema."""
    raise ValueError(f"it holds {constant}")


def _finite(text: str) -> float:
    """Return a number; raise ValueError if it is too large for one, which would be infinity."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"it holds {text[:20]}")
    return value


def _check_manifest(manifest: dict[str, Any]) -> None:
    version = manifest.get("schema_version")
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise BundleError(
            f"{MANIFEST} has schema version {version}, this server reads {SCHEMA_VERSION}; export it again",
            Fault.MANIFEST,
        )
    _check_schema(MANIFEST, manifest, "bundle.schema.json", Fault.MANIFEST)


def _check_files(folder: Path, digests: dict[str, str], classifier: bool) -> None:
    graphs = (PREDICT, EXPLAIN, VERIFY) if classifier else (PREDICT, VERIFY)
    for required in (*graphs, PARITY, BASELINE):
        if required not in digests:
            raise BundleError(f"{MANIFEST} records no digest of {required}", Fault.MANIFEST)
    for name, expected in digests.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{MANIFEST} names a file outside the bundle: {name}", Fault.MANIFEST)
        with _open(folder, name) as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != expected:
            message = f"{name} is not the file that was exported: SHA-256 {actual[:12]}…, not {expected[:12]}…"
            raise BundleError(message, Fault.DIGEST)


def _check_consistency(bundle: Bundle, mel_bins: int) -> None:
    if bundle.version > MAX_VERSION:
        raise BundleError(f"{MANIFEST} is of version {bundle.version}, above {MAX_VERSION}", Fault.MANIFEST)
    if bundle.mel_bins != mel_bins:
        raise BundleError(f"{MANIFEST} gives {bundle.mel_bins} mel centres for {mel_bins} mel bins", Fault.MANIFEST)
    if tuple(stage.name for stage in bundle.stages) != STAGES:
        raise BundleError(f"{MANIFEST} must list the stages {', '.join(STAGES)} in this order", Fault.MANIFEST)
    if bundle.min_samples < bundle.frame_length:
        raise BundleError(f"{MANIFEST}: min_samples {bundle.min_samples} is shorter than a frame", Fault.MANIFEST)
    sizes = [size for size, _ in bundle.verification_thresholds]
    if (sizes and sizes[0] != 1) or sizes != sorted(set(sizes)):
        raise BundleError(f"{MANIFEST}: verification.thresholds must start with 1 utterance and ascend", Fault.MANIFEST)
