"""Bundles on disk, none of them believed unchecked.

A bundle is read only if its `bundle.json` and `baseline.json` fit their schemas, every file has the digest recorded
there, its own parity verification holds, and it lies where its name says. Whether the graphs fit is the engine's
matter, which opens them.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import jsonschema

from speakerlens.measures.probes import ProbeError, ProbeSet, files
from speakerlens.serving.models.baseline import BASELINE, Baseline, BaselineError, baseline_of

MANIFEST = "bundle.json"
SCHEMA_VERSION = 4
PREDICT, EXPLAIN, VERIFY, PARITY = "predict.onnx", "explain.onnx", "verify.onnx", "parity.json"
STAGES = ("s1", "s2", "s3", "s4")
# As the schema has it.
VARIANT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
# What the wire contract can name.
MAX_VERSION = 2**31 - 1


class Fault(StrEnum):
    """What is wrong with a bundle; the values of the label `reason` of the metric."""

    UNREADABLE = "unreadable"
    DIGEST = "digest"
    MANIFEST = "manifest"
    MISPLACED = "misplaced"
    PARITY = "parity"
    BASELINE = "baseline"
    PROBES = "probes"
    GRAPH = "graph"

    @property
    def may_pass(self) -> bool:
        """Whether a bundle that is being copied looks like this."""
        return self in (Fault.UNREADABLE, Fault.DIGEST)


class BundleError(Exception):
    """A bundle that is not fit to serve.

    Args:
        message: one sentence that says why.
        fault: the kind of reason.
    """

    def __init__(self, message: str, fault: Fault = Fault.GRAPH) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class StageSpec:
    """Where a saliency map is taken: `rows` of frequency, and log-mel frames per column."""

    name: str
    tap: str
    rows: int
    stride: int


@dataclass(frozen=True)
class Bundle:
    """One exported variant, checked; `digest` is of bundle.json, which has those of all other files.

    `frame_length` and `frame_shift` are in samples of 16 kHz. Probabilities are softmax(logits / temperature); below
    `threshold` the best logit over `score_scale` is nobody known's. The fused map is the mean of those of
    `fused_stages`. `verification_thresholds` are pairs, rising: of how many utterances a reference is made, 1 first,
    and the cosine from which on a voice is that of the reference. `probes` is what a server asks itself, None where the
    bundle has none.
    """

    folder: Path
    variant: str
    version: int
    speakers: tuple[str, ...]
    frame_length: int
    frame_shift: int
    mel_centres_hz: tuple[float, ...]
    embedding_size: int
    stages: tuple[StageSpec, ...]
    fused_stages: tuple[str, ...]
    min_samples: int
    score_scale: float
    temperature: float
    threshold: float
    verification_thresholds: tuple[tuple[int, float], ...]
    code_revision: str
    training_data_digest: str
    digest: str
    # The digest covers both.
    baseline: Baseline = field(compare=False, repr=False)
    probes: ProbeSet | None = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """How logs and messages call it."""
        return f"{self.variant}/{self.version}"

    @property
    def mel_bins(self) -> int:
        """Rows of the log-mel features."""
        return len(self.mel_centres_hz)

    def frames(self, samples: int) -> int:
        """Log-mel frames of `samples` at 16 kHz: whole frames only."""
        return 1 + (samples - self.frame_length) // self.frame_shift

    def columns(self, samples: int, stage: StageSpec) -> int:
        """Columns of a stage's native map for `samples` at 16 kHz."""
        return -(-self.frames(samples) // stage.stride)


def read_bundle(folder: Path) -> Bundle:
    """Reads and checks the bundle in `folder`, which is called <variant>/<version>.

    Raises:
        BundleError: with the reason why it must not be served.
    """
    content = _read(folder / MANIFEST)
    manifest = _parse(MANIFEST, content)
    _check_schema(manifest)
    if (folder.parent.name, folder.name) != (manifest["variant"], str(manifest["version"])):
        where = f"{manifest['variant']}/{manifest['version']}"
        raise BundleError(f"{MANIFEST} is of {where}, the folder is not", Fault.MISPLACED)
    _check_files(folder, manifest["files"])
    if _parse(PARITY, _read(folder / PARITY)).get("holds") is not True:
        raise BundleError(f"{PARITY}: the export's own verification does not hold", Fault.PARITY)
    front_end, calibration = manifest["front_end"], manifest["calibration"]
    verification = manifest["verification"]["thresholds"]
    baseline = _read_baseline(folder / BASELINE)
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
        temperature=calibration["temperature"],
        threshold=calibration["threshold"],
        verification_thresholds=tuple((each["utterances"], each["threshold"]) for each in verification),
        code_revision=manifest["code_revision"],
        training_data_digest=manifest["training_data_digest"],
        digest=hashlib.sha256(content).hexdigest(),
        baseline=baseline,
        probes=_read_probes(folder, manifest, baseline),
    )
    _check_sense(bundle, front_end["mel_bins"])
    return bundle


def _read_baseline(path: Path) -> Baseline:
    try:
        return baseline_of(_parse(BASELINE, _read(path)))
    except BaselineError as error:
        raise BundleError(f"{BASELINE} {error}", Fault.BASELINE) from error


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
            raise BundleError(f"{BASELINE} does not say what to expect of probes under {condition}", Fault.PROBES)
    return probes


@cache
def _validator() -> jsonschema.Draft202012Validator:
    text = resources.files("speakerlens.protos").joinpath("bundle.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path.name} is missing", Fault.UNREADABLE) from None
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read: {error.strerror}", Fault.UNREADABLE) from error


def _parse(name: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} cannot be read: {error}", Fault.UNREADABLE) from error
    if not isinstance(value, dict):
        raise BundleError(f"{name} is not a JSON object", Fault.MANIFEST)
    return value


def _no_number(constant: str) -> NoReturn:
    """JSON has no NaN and no infinity, and NaN is within every bound of a schema."""
    raise ValueError(f"it holds {constant}")


def _check_schema(manifest: dict[str, Any]) -> None:
    version = manifest.get("schema_version")
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise BundleError(
            f"{MANIFEST} has schema version {version}, this server reads {SCHEMA_VERSION}; export it again",
            Fault.MANIFEST,
        )
    error = jsonschema.exceptions.best_match(_validator().iter_errors(manifest))
    if error is not None:
        where = error.json_path.removeprefix("$").removeprefix(".") or "top level"
        raise BundleError(f"{MANIFEST} does not fit the schema at {where}: {error.message[:200]}", Fault.MANIFEST)


def _check_files(folder: Path, digests: dict[str, str]) -> None:
    for required in (PREDICT, EXPLAIN, VERIFY, PARITY, BASELINE):
        if required not in digests:
            raise BundleError(f"{MANIFEST} records no digest of {required}", Fault.MANIFEST)
    for name, expected in digests.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{MANIFEST} names a file outside the bundle: {name}", Fault.MANIFEST)
        try:
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise BundleError(f"{name} is missing", Fault.UNREADABLE) from None
        except OSError as error:
            raise BundleError(f"{name} cannot be read: {error.strerror}", Fault.UNREADABLE) from error
        if actual != expected:
            message = f"{name} is not the file that was exported: SHA-256 {actual[:12]}…, not {expected[:12]}…"
            raise BundleError(message, Fault.DIGEST)


def _check_sense(bundle: Bundle, mel_bins: int) -> None:
    if bundle.version > MAX_VERSION:
        raise BundleError(f"{MANIFEST} is of version {bundle.version}, above {MAX_VERSION}", Fault.MANIFEST)
    if bundle.mel_bins != mel_bins:
        raise BundleError(f"{MANIFEST} gives {bundle.mel_bins} mel centres for {mel_bins} mel bins", Fault.MANIFEST)
    if tuple(stage.name for stage in bundle.stages) != STAGES:
        raise BundleError(f"{MANIFEST} must list the stages {', '.join(STAGES)} in this order", Fault.MANIFEST)
    if bundle.min_samples < bundle.frame_length:
        raise BundleError(f"{MANIFEST}: min_samples {bundle.min_samples} is shorter than a frame", Fault.MANIFEST)
    sizes = [size for size, _ in bundle.verification_thresholds]
    if sizes[0] != 1 or sizes != sorted(set(sizes)):
        raise BundleError(f"{MANIFEST}: verification.thresholds must begin with 1 utterance, and rise", Fault.MANIFEST)
