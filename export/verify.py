"""Repeat a bundle's verification on any machine, from the bundle alone."""

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
from safetensors import SafetensorError
from safetensors.torch import load_file

from speakerlens.cuda import CudaError, choose
from speakerlens.export import parity
from speakerlens.export.bundle import (
    BASELINE,
    MANIFEST,
    PARITY,
    SCHEMA_VERSION,
    WEIGHTS,
    ExportError,
    file_digests,
    schema,
)
from speakerlens.export.int8 import OPERATORS
from speakerlens.export.onnx_graphs import GraphError, check_graph_file, graph_names
from speakerlens.export.precision_parity import check_precisions
from speakerlens.export.precisions import FILE as PRECISIONS
from speakerlens.measures.precision import INT8, misses
from speakerlens.measures.probes import ProbeError, ProbeSet
from speakerlens.training.config import HeadConfig, NetworkConfig
from speakerlens.training.data.audio import read_audio
from speakerlens.training.errors import UserError
from speakerlens.training.model.network import SpeakerNetwork


def verify_bundle(
    folder: Path, advance: Callable[[int, int], None], workers: int = 1, device: str = "cpu"
) -> dict[str, Any]:
    """Check a bundle's manifest, digests and graphs, and compare the graphs with the eager network of its weights.

    Args:
        folder: the bundle.
        advance: called after each step with the number of finished steps and the total.
        workers: threads.
        device: where the graphs run: `cpu`, `cuda` or `cuda:N`; the eager network runs on the CPU.

    Returns:
        The new figures, as in `parity.json`.

    Raises:
        UserError: there is no bundle, or CUDA does not work here.
        ExportError: a check fails; the message names it.
    """
    try:
        where = choose(device)
    except CudaError as error:
        raise UserError(str(error)) from error
    manifest = verify_files(folder)
    utterances = [read_audio(folder / entry["file"]) for entry in manifest["utterances"]]
    network = rebuild_network(folder, manifest)
    try:
        done, total = itertools.count(1), parity.steps(len(utterances), network.classes)
        verified = parity.verify(network, folder, utterances, lambda: advance(next(done), total), workers, where)
    except RuntimeError as error:  # of ONNX Runtime or TorchScript, which cannot load or run a file
        raise ExportError(f"{folder}: cannot be run: {str(error).splitlines()[0]}") from error
    if not verified["holds"]:
        raise ExportError(f"{folder}: {parity.failures(verified)}")
    if PRECISIONS in manifest["files"]:
        recorded = _read_json(folder / PRECISIONS)["precisions"]
        wrong = check_precisions(folder, recorded, utterances, network.classes, where)
        if wrong:
            raise ExportError(f"{folder}: {wrong}")
    return verified


def verify_files(folder: Path) -> dict[str, Any]:
    """Check a bundle's manifest, digests, graphs and probes; return the manifest.

    Raises:
        UserError: there is no bundle.
        ExportError: a check fails; the message names it.
    """
    manifest = _read_manifest(folder)
    digests = file_digests(folder)
    for name in sorted(digests.keys() | manifest["files"].keys()):
        if digests.get(name) != manifest["files"].get(name):
            state = (
                "is missing" if name not in digests else "is not listed" if name not in manifest["files"] else "changed"
            )
            raise ExportError(f"{folder}: {name} {state}: its digest is not the one in {MANIFEST}")
    for name in graph_names(len(manifest["speakers"])):
        try:
            check_graph_file(folder, name)
        except GraphError as error:
            raise ExportError(f"{folder}: {name} is not fit for a bundle: {error}") from error
    _check_schema(folder / BASELINE, _read_json(folder / BASELINE), "baseline")
    try:
        ProbeSet.read(folder, manifest)
    except ProbeError as error:
        raise ExportError(f"{folder}: {error}") from error
    if PRECISIONS in digests:
        _check_precisions(folder, digests)
    if not _recorded_parity_holds(folder):
        raise ExportError(f"{folder}: {PARITY} does not record a successful verification at export")
    return manifest


def _check_precisions(folder: Path, digests: Mapping[str, str]) -> None:
    """Check the graphs in other number formats, and that the recorded verdict is that of the recorded figures."""
    content = _read_json(folder / PRECISIONS)
    _check_schema(folder / PRECISIONS, content, "precisions")
    for name, entry in content["precisions"].items():
        for graph, file in entry["graphs"].items():
            if file not in digests:
                raise ExportError(f"{folder}: {file}, {graph} in {name}, is missing")
            try:
                check_graph_file(folder, file, OPERATORS if name == INT8 else ())
            except GraphError as error:
                raise ExportError(f"{folder}: {file} is not fit for a bundle: {error}") from error
        if (entry["misses"], entry["meets_floor"]) != (misses(entry, content["floor"]), not entry["misses"]):
            raise ExportError(f"{folder}: {PRECISIONS}: whether {name} meets the floor is not what its figures say")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no {MANIFEST} there; give the folder of one version, such as bundles/act-da/1")
    manifest: dict[str, Any] = _read_json(path)
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise ExportError(f"{path}: has schema version {version}, this program reads {SCHEMA_VERSION}; export it again")
    _check_schema(path, manifest, "bundle")
    return manifest


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ExportError(f"{path}: is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ExportError(f"{path}: not JSON: {error}") from error


def _check_schema(path: Path, content: Any, name: str) -> None:
    try:
        jsonschema.validate(content, schema(name))
    except jsonschema.ValidationError as error:
        raise ExportError(f"{path}: {error.json_path}: {error.message}") from error


def _recorded_parity_holds(folder: Path) -> bool:
    try:
        recorded = json.loads((folder / PARITY).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    return isinstance(recorded, dict) and recorded.get("holds") is True


def rebuild_network(folder: Path, manifest: dict[str, Any]) -> SpeakerNetwork:
    """Return the eager network with a bundle's weights."""
    facts = manifest["network"]
    first, second, third, fourth = facts["blocks"]
    mel_bins = manifest["front_end"]["mel_bins"]
    blocks, block = (first, second, third, fourth), facts["block"]
    network_config = NetworkConfig(blocks, facts["width"], facts["embedding"], mel_bins, block)
    head = HeadConfig() if facts["head"] == "none" else HeadConfig(kind=facts["head"], scale=facts["scale"])
    network = SpeakerNetwork(network_config, head, len(manifest["speakers"]))
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise ExportError(f"{folder}: {WEIGHTS} does not fit the network that {MANIFEST} describes") from error
    return network.eval()
