"""Write a bundle as models of a Triton Inference Server, for those who run one already.

Each graph becomes a model, `<variant>` for `predict` and `<variant>-explain`, `<variant>-verify` for the others, with
its inputs and outputs as they are in the graph. The front end is part of the graph; what this project's server does
around it is not: decoding, windows, the speech detector, calibration. The latter's figures are parameters of the model.
"""

import json
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import onnx

from speakerlens.export.bundle import MANIFEST
from speakerlens.training.errors import UserError
from speakerlens.training.files import make_folder

Backend = Literal["onnxruntime", "python"]

GRAPHS = {"predict": "", "explain": "-explain", "verify": "-verify"}
LABELS = "labels.txt"
PYTHON_MODEL = "triton_model.py"
# A batch waits this long for others while the device is free; longer than the requests of one client are apart.
QUEUE_DELAY_US = 2_000
_TYPES: dict[int, str] = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.INT64: "TYPE_INT64"}


def write_models(bundle: Path, out: Path, backend: Backend = "onnxruntime", max_batch: int = 8) -> list[str]:
    """Write the models of a bundle into a model repository; return their names.

    Args:
        bundle: the bundle's folder.
        out: the repository. Other models and versions in it stay; the configuration is that of this version.
        backend: `onnxruntime` batches requests of the same length; `python` pads requests of any length together,
            and needs the package onnxruntime where Triton's Python runs.
        max_batch: most utterances of a batch.

    Raises:
        UserError: there is no bundle.
    """
    try:
        manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{bundle}: no bundle there ({error})") from error
    names = []
    for graph, suffix in GRAPHS.items():
        source = bundle / f"{graph}.onnx"
        if not source.exists():  # a network without a classifier explains no speaker
            continue
        name = manifest["variant"] + suffix
        make_folder(out / name)
        _write_version(source, manifest, out / name / str(manifest["version"]), backend)
        speakers = manifest["speakers"] or []
        if speakers:
            (out / name / LABELS).write_text("".join(f"{speaker}\n" for speaker in speakers), "utf-8")
        content = config(onnx.load(source), manifest, name, backend, max_batch)
        (out / name / "config.pbtxt").write_text(content, "utf-8")
        names.append(name)
    return names


def _write_version(graph: Path, manifest: dict[str, Any], folder: Path, backend: Backend) -> None:
    """Write the folder of a version, whole: Triton may be looking."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as name:
        made = Path(name) / folder.name
        made.mkdir()
        shutil.copyfile(graph, made / "model.onnx")
        shutil.copyfile(graph.with_name(MANIFEST), made / MANIFEST)
        if backend == "python":
            program = resources.files("speakerlens.export").joinpath(PYTHON_MODEL).read_text("utf-8")
            (made / "model.py").write_text(program, "utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        made.replace(folder)
    assert int(folder.name) == manifest["version"]


def config(graph: onnx.ModelProto, manifest: dict[str, Any], name: str, backend: Backend, max_batch: int) -> str:
    """Return the configuration of a model, in protobuf's text format."""
    lines = [
        f"name: {_text(name)}",
        f"backend: {_text(backend)}",
        f"max_batch_size: {max_batch}",
        *(_tensor("input", value, backend) for value in graph.graph.input),
        *(_tensor("output", value, backend, bool(manifest["speakers"])) for value in graph.graph.output),
        f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY_US} }}",
        f"version_policy {{ specific {{ versions: [ {manifest['version']} ] }} }}",
    ]
    lines += [
        f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}"
        for key, value in _parameters(manifest).items()
    ]
    return "\n".join(lines) + "\n"


def _tensor(kind: str, value: onnx.ValueInfoProto, backend: Backend, labelled: bool = False) -> str:
    tensor = value.type.tensor_type
    # Without the axis of the batch, which Triton adds; a scalar per utterance has one axis of one value there.
    sizes = [axis.dim_value or -1 for axis in tensor.shape.dim][1:]
    fields = [f"name: {_text(value.name)}", f"data_type: {_TYPES[tensor.elem_type]}"]
    if sizes:
        fields.append(f"dims: [ {', '.join(map(str, sizes))} ]")
    elif backend == "onnxruntime":
        fields.append("dims: [ 1 ] reshape { shape: [ ] }")
    else:
        fields.append("dims: [ 1 ]")
    if kind == "input" and backend == "python" and -1 in sizes:
        fields.append("allow_ragged_batch: true")
    if labelled and value.name == "logits":
        fields.append(f"label_filename: {_text(LABELS)}")
    return f"{kind} {{ {' '.join(fields)} }}"


def _parameters(manifest: dict[str, Any]) -> dict[str, str]:
    calibration = manifest["calibration"] or {}
    facts = {
        "speakerlens_version": manifest["version"],
        "speakerlens_temperature": calibration.get("temperature"),
        "speakerlens_threshold": calibration.get("threshold"),
        "speakerlens_sample_rate": manifest["sample_rate"],
        "speakerlens_min_samples": manifest["min_samples"],
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _text(value: str) -> str:
    return json.dumps(value)
