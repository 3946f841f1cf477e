"""The bundle repository: finds bundles on disk and believes none of them unchecked.

A bundle is read only if its `bundle.json` fits the schema, every file has the digest recorded there, its own parity
verification holds, and it lies where its name says. Whether the graphs fit is the engine's matter, which opens them.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema

from serving.errors import StartupError

MANIFEST = "bundle.json"
SCHEMA_VERSION = 3
PREDICT, EXPLAIN, PARITY = "predict.onnx", "explain.onnx", "parity.json"
STAGES = ("s1", "s2", "s3", "s4")


class BundleError(Exception):
    """A bundle that is not fit to serve: one sentence that says why."""


@dataclass(frozen=True)
class StageSpec:
    """Where a saliency map is taken: `rows` of frequency, and log-mel frames per column."""

    name: str
    tap: str
    rows: int
    stride: int


@dataclass(frozen=True)
class Bundle:
    """One exported variant, checked.

    `frame_length` and `frame_shift` are in samples of 16 kHz. Probabilities are softmax(logits / temperature); below
    `threshold` the best logit over `score_scale` is nobody known's. The fused map is the mean of
    those of `fused_stages`.
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
    code_revision: str
    training_data_digest: str

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


@dataclass(frozen=True)
class Refusal:
    """A folder that looked like a bundle, and why it is not served."""

    folder: Path
    reason: str


def scan(root: Path) -> tuple[list[Bundle], list[Refusal]]:
    """Reads every <variant>/<version> under `root`, sorted; names with a leading dot are skipped.

    Raises:
        StartupError: there is no such folder.
    """
    if not root.is_dir():
        raise StartupError(f"--bundles {root}: no such folder")
    bundles: list[Bundle] = []
    refusals: list[Refusal] = []
    for folder in sorted(root.glob("*/*/")):
        if any(part.startswith(".") for part in folder.relative_to(root).parts):
            continue
        try:
            bundles.append(read_bundle(folder))
        except BundleError as error:
            refusals.append(Refusal(folder, str(error)))
    return sorted(bundles, key=lambda bundle: (bundle.variant, bundle.version)), refusals


def read_bundle(folder: Path) -> Bundle:
    """Reads and checks the bundle in `folder`, which is called <variant>/<version>.

    Raises:
        BundleError: with the reason why it must not be served.
    """
    manifest = _read_json(folder / MANIFEST)
    _check_schema(manifest)
    if (folder.parent.name, folder.name) != (manifest["variant"], str(manifest["version"])):
        raise BundleError(f"{MANIFEST} is of {manifest['variant']}/{manifest['version']}, the folder is not")
    _check_files(folder, manifest["files"])
    if _read_json(folder / PARITY).get("holds") is not True:
        raise BundleError(f"{PARITY}: the export's own verification does not hold")
    front_end, calibration = manifest["front_end"], manifest["calibration"]
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
        code_revision=manifest["code_revision"],
        training_data_digest=manifest["training_data_digest"],
    )
    _check_sense(bundle, front_end["mel_bins"])
    return bundle


@cache
def _validator() -> jsonschema.Draft202012Validator:
    text = resources.files("protos").joinpath("bundle.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path.name} is not a JSON object")
    return value


def _check_schema(manifest: dict[str, Any]) -> None:
    version = manifest.get("schema_version")
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise BundleError(
            f"{MANIFEST} has schema version {version}, this server reads {SCHEMA_VERSION}; export it again"
        )
    error = jsonschema.exceptions.best_match(_validator().iter_errors(manifest))
    if error is not None:
        where = error.json_path.removeprefix("$").removeprefix(".") or "top level"
        raise BundleError(f"{MANIFEST} does not fit the schema at {where}: {error.message[:200]}")


def _check_files(folder: Path, digests: dict[str, str]) -> None:
    for required in (PREDICT, EXPLAIN, PARITY):
        if required not in digests:
            raise BundleError(f"{MANIFEST} records no digest of {required}")
    for name, expected in digests.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{MANIFEST} names a file outside the bundle: {name}")
        try:
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise BundleError(f"{name} is missing") from None
        except OSError as error:
            raise BundleError(f"{name} cannot be read: {error.strerror}") from error
        if actual != expected:
            raise BundleError(f"{name} is not the file that was exported: SHA-256 {actual[:12]}…, not {expected[:12]}…")


def _check_sense(bundle: Bundle, mel_bins: int) -> None:
    if bundle.mel_bins != mel_bins:
        raise BundleError(f"{MANIFEST} gives {bundle.mel_bins} mel centres for {mel_bins} mel bins")
    if tuple(stage.name for stage in bundle.stages) != STAGES:
        raise BundleError(f"{MANIFEST} must list the stages {', '.join(STAGES)} in this order")
    if bundle.min_samples < bundle.frame_length:
        raise BundleError(f"{MANIFEST}: min_samples {bundle.min_samples} is shorter than a frame")
