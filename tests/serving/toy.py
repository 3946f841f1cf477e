"""Bundles small enough to check by hand, whole or broken, for tests of the server.

The toy network is linear: features are a strided convolution, scores are their mean over time times a matrix, maps are
ReLU(features x the target's weights), thinned out for the coarser stages. Two things are there for the tests alone:

* audio longer than SLOW_SECONDS keeps the device busy for a time that grows with what is longer;
* audio with a peak above `nan_peak` gets NaN for an embedding.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import soundfile
import soxr
from numpy.typing import NDArray

from speakerlens.measures.precision import FLOOR
from speakerlens.measures.probes import Condition, ProbeSet, read_speech
from tests.serving.harness import talk
from tests.serving.toy_graph import EMBEDDING, FRAME, SHIFT, STRIDES, Weights, make_graph

MEL, MIN_SAMPLES = 16, 1600
SLOW_SECONDS = 4
NAN_PEAK = 4.0
TEMPERATURE, THRESHOLD, SCALE = 0.02, 0.005, 2.0  # unknown below a logit of 0.01

VERIFICATION_THRESHOLDS = {1: 0.8, 3: 0.9}  # by utterances in the reference


def speakers(count: int = 12) -> list[str]:
    return [f"speaker-{index:02}" for index in range(count)]


def weights(seed: int) -> Weights:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    return Weights(draw(MEL, 1, FRAME), draw(MEL, len(speakers())), draw(MEL, EMBEDDING))


def expected(weight: Weights, audio: NDArray[np.float32], target: int | None = None) -> dict[str, NDArray[Any]]:
    """What the toy network answers, computed in numpy for one utterance, [samples]."""
    frames = 1 + (len(audio) - FRAME) // SHIFT
    windows = np.stack([audio[t * SHIFT : t * SHIFT + FRAME] for t in range(frames)])
    features = (windows.astype(np.float64) @ weight.kernel[:, 0].T.astype(np.float64)).T
    logits = features.mean(axis=1) @ weight.score
    explained = int(logits.argmax()) if target is None else target
    full = np.maximum(features * weight.score[:, explained][:, None], 0)
    maps = {f"saliency_s{i + 1}": full[::stride, ::stride] for i, stride in enumerate(STRIDES)}
    return {"logits": logits, "embedding": features.mean(axis=1) @ weight.embedding, "features": features, **maps}


def compared(weight: Weights, audio: NDArray[np.float32], reference: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """What the toy network says of an utterance and a reference: score, and the maps of that score."""
    plain = expected(weight, audio)
    embedding, features = plain["embedding"], plain["features"]
    length = np.linalg.norm(embedding)
    unit, direction = embedding / length, reference / np.linalg.norm(reference)
    score = unit @ direction
    gradient = weight.embedding @ ((direction - score * unit) / length) / features.shape[1]
    full = np.maximum(features * gradient[:, None], 0)
    maps = {f"saliency_s{i + 1}": full[::stride, ::stride] for i, stride in enumerate(STRIDES)}
    return {"score": score, "embedding": embedding, "features": features, **maps}


def write_bundle(
    root: Path,
    variant: str,
    version: int,
    seed: int = 0,
    slow_seconds: float = SLOW_SECONDS,
    nan_peak: float = NAN_PEAK,
    **changes: Any,
) -> Path:
    """Writes root/variant/version; `changes` replace entries of bundle.json. Returns the folder."""
    folder = root / variant / str(version)
    folder.mkdir(parents=True)
    names = json.dumps(changes.get("speakers", speakers()))
    facts = {"variant": json.dumps(variant), "version": str(version), "speakers": names}
    for kind in ("predict", "explain", "verify"):
        onnx.save(make_graph(weights(seed), kind, facts, slow_seconds, nan_peak), folder / f"{kind}.onnx")
    parity = {"holds": True, "tolerances": {}, "figures": []}
    (folder / "parity.json").write_text(json.dumps(parity), encoding="utf-8")
    (folder / "baseline.json").write_text(json.dumps(baseline()), encoding="utf-8")
    seal(folder, {**manifest(variant, version), **changes})
    return folder


def add_precision(
    folder: Path, name: str, seed: int, graphs: Sequence[str] = ("predict",), speed: float = 0.5, lost: float = 0.0
) -> None:
    """Gives a bundle graphs in another precision: those of the network of `seed`, so that its answers can be told.

    `lost` is the accuracy that it has lost under noise at 0 dB, and `speed` its time over that of float32.
    """
    entries = manifest_of(folder)
    facts = {key: json.dumps(entries[key]) for key in ("variant", "version", "speakers")}
    named = {f"{kind}.onnx": f"{kind}.{name}.onnx" for kind in graphs}
    for kind in graphs:
        onnx.save(make_graph(weights(seed), kind, facts, SLOW_SECONDS, NAN_PEAK), folder / named[f"{kind}.onnx"])
    path = folder / "precisions.json"
    empty: dict[str, Any] = {"floor": dict(FLOOR), "utterances": 200, "precisions": {}}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty
    conditions = [
        {
            "interference": kind,
            "snr_db": snr_db,
            "utterances": 200,
            "shares": [{"name": "top-1 accuracy", "fp32": 0.9, "value": 0.9 - loss, "lower_is_better": False}],
            "changed": loss,
        }
        for kind, snr_db, loss in (("clean", None, 0.0), ("noise", 0.0, lost))
    ]
    entry = {
        "graphs": named,
        "meets_floor": 100 * lost <= FLOOR["accuracy_points"],
        "misses": [],
        "conditions": conditions,
        "outputs": [{"output": "logits", "graph": "predict.onnx", "median": 0.01, "worst": 0.02}],
        "deletion_index": [],
        "speed": {"of_fp32": speed, "seconds": 3.0, "processor": "toy"},
        "method": "by hand",
    }
    path.write_text(json.dumps({**content, "precisions": {**content["precisions"], name: entry}}), encoding="utf-8")
    reseal(folder)


def add_probes(folder: Path, seed: int = 0, kinds: Sequence[str] = ("noise",)) -> None:
    """Gives a bundle that was just written a probe set: two talkers, who are whom the network of `seed` takes them for.

    What is expected is what that network says.
    """
    weight, talkers = weights(seed), [talk(1.0, seed=11), talk(1.5, seed=12)]
    entries, expected_of = [], defaultdict(list)
    for number, samples in enumerate(talkers):
        write_sound(folder / f"utterances/{number:02d}.flac", samples)
        write_sound(folder / f"probes/resampled/{number:02d}.flac", soxr.resample(samples, 16_000, 48_000), 48_000)
        for kind in kinds:
            layer = np.random.default_rng(number + len(kind)).normal(0, 0.1, len(samples)).astype(np.float32)
            write_sound(folder / f"probes/{kind}/{number:02d}.flac", layer)
            levels = np.random.default_rng(number).integers(-60, 61, (MEL, 1 + (len(samples) - FRAME) // SHIFT))
            np.save(folder / f"probes/{kind}/{number:02d}.npy", levels.astype(np.int8))
        read = read_speech((folder / f"utterances/{number:02d}.flac").read_bytes())
        label = int(expected(weight, read)["logits"].argmax())
        entries.append({"file": f"utterances/{number:02d}.flac", "speaker": speakers()[label]})
    entry = {
        "utterances": entries,
        "resampled_rate": 48_000,
        "interference": list(kinds),
        "snrs_db": [10.0, 0.0],
        "folder": "probes",
    }
    content = {**manifest_of(folder), "probes": entry}
    probes = ProbeSet.read(folder, content)
    assert probes is not None
    for condition in probes.conditions:
        for number, utterance in enumerate(probes.utterances):
            clean = Condition("clean", None)
            mixture = probes.mixture(number, clean if condition.interference == "resampled" else condition)
            logits = expected(weight, mixture)["logits"]
            expected_of[condition].append(speakers()[int(logits.argmax())] == utterance.speaker)
    rows = [
        {
            "interference": condition.interference,
            "snr_db": condition.snr_db,
            "utterances": len(hits),
            "accuracy": sum(hits) / len(hits),
            "deletion_index": 0.5 if condition.mixed else None,
        }
        for condition, hits in expected_of.items()
    ]
    (folder / "baseline.json").write_text(json.dumps({**baseline(), "probes": rows}), encoding="utf-8")
    reseal(folder, {"probes": entry})


def write_sound(path: Path, samples: NDArray[np.float32], rate: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, format="FLAC", subtype="PCM_16")


def reseal(folder: Path, changes: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Puts the digests right after a change to the files, and changes entries of bundle.json."""
    entries = manifest_of(folder)
    del entries["files"]
    seal(folder, {**entries, **changes})


def seal(folder: Path, entries: dict[str, Any]) -> None:
    """Writes bundle.json with the digests of what lies in the folder now, unless it brings some."""
    digests = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "bundle.json"
    }
    (folder / "bundle.json").write_text(json.dumps({"files": digests, **entries}), encoding="utf-8")


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return found


def manifest(variant: str = "v", version: int = 1) -> dict[str, Any]:
    """What bundle.json says, but for the digests."""
    return {
        "schema_version": 4,
        "variant": variant,
        "version": version,
        "created": "2026-01-01T00:00:00Z",
        "speakers": speakers(),
        "sample_rate": 16000,
        "front_end": {
            "kind": "kaldi-log-mel",
            "mel_bins": MEL,
            "frame_length": FRAME,
            "frame_shift": SHIFT,
            "low_hz": 20.0,
            "high_hz": 8000.0,
            "mel_centres_hz": [float(x) for x in np.linspace(100, 7900, MEL)],
        },
        "network": {
            "block": "basic",
            "blocks": [1, 1, 1, 1],
            "width": 1,
            "embedding": EMBEDDING,
            "head": "softmax",
            "scale": SCALE,
            "parameters": 1,
        },
        "stages": [
            {"name": f"s{i + 1}", "tap": "stage-output", "rows": MEL // stride, "stride": stride}
            for i, stride in enumerate(STRIDES)
        ],
        "fused_stages": ["s2", "s3", "s4"],
        "min_samples": MIN_SAMPLES,
        "window_seconds": 3.0,
        "utterances": [{"file": "utterances/00.flac", "speaker": speakers()[0]}],
        "opset": 18,
        "calibration": {
            "temperature": TEMPERATURE,
            "threshold": THRESHOLD,
            "false_acceptance": 0.05,
            "strangers": "held-out speakers",
            "stranger_speakers": 1,
            "stranger_utterances": 1,
            "utterances": 1,
            "method": "by hand",
        },
        "verification": {
            "thresholds": [
                {"utterances": n, "threshold": threshold, "same_pairs": 1, "different_pairs": 1, "miss": None}
                for n, threshold in VERIFICATION_THRESHOLDS.items()
            ],
            "false_acceptance": 0.05,
            "strangers": "held-out speakers",
            "persons": 2,
            "method": "by hand",
        },
        "probes": None,
        "training_data_digest": "0" * 64,
        "code_revision": "toy",
        "versions": {},
    }


def baseline() -> dict[str, Any]:
    """What baseline.json says: of every measure 50 values in each of two bins, split where the toy network's lie."""
    edges = {
        "snr_db": 20.0,
        "speech_share": 0.5,
        "clipped_share": 0.001,
        "level_dbfs": -20.0,
        "bandwidth_hz": 4000.0,
        "seconds": 1.5,
        "top1_probability": 0.5,
        "margin": 0.3,
        "entropy": 1.0,
        "best_logit": 0.1,
        "deletion_index": 0.5,
        "concentration": 0.5,
    }
    return {
        "utterances": 100,
        "conditions": [{"interference": "clean", "snr_db": None, "utterances": 100, "top1": 1.0}],
        "distributions": {
            "clean": {
                name: {"edges": [edge], "counts": [50, 50], "samples": 100, "mean": edge}
                for name, edge in edges.items()
            }
        },
        "probes": [],
    }
