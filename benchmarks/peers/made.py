"""Bundles of networks of any size with random weights, to measure what they cost."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.peers.networks import manifest_of
from speakerlens.export.bundle import MANIFEST, WEIGHTS, file_digests
from speakerlens.export.graph import ExportedNetwork
from speakerlens.export.onnx_graphs import write_graphs
from speakerlens.training.config import HeadConfig, NetworkConfig
from speakerlens.training.model.network import STAGES, STRIDES, SpeakerNetwork

SMALL = NetworkConfig((1, 2, 2, 2), 8, 64, 80, "basic")
RESNET34 = NetworkConfig((3, 4, 6, 3), 32, 256, 80, "basic")


def made_once(source: Path, folder: Path, network: NetworkConfig, speakers: int) -> Path:
    """Return the folder of such a bundle, which is made if it is not there.

    Args:
        source: a bundle, whose audio and other facts are taken.
        folder: <variant>/<version>.
        network: its size.
        speakers: number of classes.
    """
    if (folder / MANIFEST).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    made = SpeakerNetwork(network, HeadConfig(kind="aam", scale=32.0), speakers).eval()
    for module in made.modules():  # away from the identity, which a graph may leave out
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    manifest = manifest_of(source)
    facts = {
        "variant": folder.parent.name,
        "version": int(folder.name),
        "speakers": [f"speaker-{number:06d}" for number in range(speakers)],
    }
    write_graphs(ExportedNetwork(made), folder, {name: json.dumps(value) for name, value in facts.items()})
    save_file(made.state_dict(), folder / WEIGHTS)
    manifest |= {**facts, "probes": None, "search": None}
    manifest["network"] |= {
        "blocks": list(network.blocks),
        "width": network.width,
        "embedding": network.embedding,
        "parameters": sum(each.numel() for each in made.parameters()),
    }
    manifest["stages"] = [
        {"name": stage, "tap": tap, "rows": -(-network.mel_bins // stride), "stride": stride}
        for stage, tap, stride in zip(STAGES, made.encoder.taps, STRIDES, strict=True)
    ]
    if manifest["calibration"]:
        manifest["calibration"].pop("score", None)  # of the source's embeddings
    shutil.copy(source / "parity.json", folder)
    baseline = json.loads((source / "baseline.json").read_text("utf-8"))
    (folder / "baseline.json").write_text(json.dumps(baseline | {"probes": []}), "utf-8")
    shutil.copytree(source / "utterances", folder / "utterances")
    manifest["files"] = file_digests(folder)
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return folder
