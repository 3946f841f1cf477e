"""Run a bundle's graphs, and the eager network, on utterances: what verification and the baseline compare.

A runtime is a graph in ONNX Runtime or a method of the TorchScript module. All take batches of different lengths,
padded with zeros.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx.utils
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from speakerlens.cuda import CPU, Device
from speakerlens.export.graph import Explanation, Prediction, Verification
from speakerlens.export.onnx_graphs import EXPLAIN, PREDICT, VERIFY
from speakerlens.export.torchscript import FILE as SCRIPT
from speakerlens.export.torchscript import read_torchscript
from speakerlens.training.model.network import SpeakerNetwork
from speakerlens.training.model.saliency import cosine_layercam, layercam

SCRIPT_PREDICT, SCRIPT_VERIFY = f"{SCRIPT} predict", f"{SCRIPT} verify"
MAPS = ("saliency_s1", "saliency_s2", "saliency_s3", "saliency_s4")
_EMBEDDING = ("embedding",)
_OUTPUTS = {PREDICT: Prediction._fields, EXPLAIN: Explanation._fields, VERIFY: Verification._fields}
# In addition to audio and lengths.
_THIRD_INPUTS = {EXPLAIN: "target", VERIFY: "reference"}
ON_CPU = Device(CPU)

Outputs = dict[str, NDArray[Any]]
"""Outputs of one utterance by name, without the batch dimension."""
Runtime = Callable[[Tensor, Tensor, Tensor], Mapping[str, NDArray[Any]]]
"""Run a batch: audio [batch, samples], lengths [batch], and target [batch] or reference [batch, size]."""


class Case(NamedTuple):
    """One utterance, 16 kHz [samples], and the score to explain.

    The score is the logit of the class `target` (-1: the predicted one), or the cosine to `reference` [size] if given.
    """

    audio: Tensor
    target: int
    reference: Tensor | None = None


def runtime_names(classes: int) -> tuple[str, ...]:
    """Return the names of a bundle's runtimes, in the order of `load_runtimes` and `load_verifiers`."""
    return (*((PREDICT, EXPLAIN, SCRIPT) if classes else (PREDICT, SCRIPT_PREDICT)), VERIFY, SCRIPT_VERIFY)


def load_runtimes(folder: Path, classes: int, device: Device = ON_CPU) -> dict[str, Runtime]:
    """Return the runtimes that take a target class, by the name of their file; without classes they ignore it.

    `device` is where graphs run; TorchScript runs on the CPU.
    """
    script = read_torchscript(folder)
    if not classes:
        return {
            PREDICT: load_graph(folder / PREDICT, PREDICT, classes, device),
            SCRIPT_PREDICT: _scripted(
                lambda audio, lengths, _: (script.predict(audio, lengths).embedding,), _EMBEDDING
            ),
        }
    return {
        PREDICT: load_graph(folder / PREDICT, PREDICT, classes, device),
        EXPLAIN: load_graph(folder / EXPLAIN, EXPLAIN, classes, device),
        SCRIPT: _scripted(script, Explanation._fields),
    }


def load_verifiers(folder: Path, device: Device = ON_CPU) -> dict[str, Runtime]:
    """Return the runtimes that take a reference embedding, by their name in `parity.json`; `device` as above."""
    return {
        VERIFY: load_graph(folder / VERIFY, VERIFY, 0, device),
        SCRIPT_VERIFY: _scripted(read_torchscript(folder).verify, Verification._fields),
    }


def eager(network: SpeakerNetwork, case: Case) -> Outputs:
    """Return the outputs of one utterance alone, by autograd; shapes as in `export.graph`, without the batch."""
    if case.reference is not None:
        compared = cosine_layercam(network, case.audio[None], case.reference[None])
        named = {"score": compared.score, "embedding": compared.embedding, "features": compared.features}
        named |= dict(zip(MAPS, compared.maps, strict=True))
    elif network.classes:
        explained = layercam(network, case.audio[None], target=torch.tensor([case.target]))
        named = {"logits": explained.logits, "embedding": explained.embedding, "features": explained.features}
        named |= dict(zip(MAPS, explained.maps, strict=True))
    else:
        with torch.inference_mode():
            named = {"embedding": network.activations(case.audio[None]).embedding}
    return {name: tensor[0].numpy() for name, tensor in named.items()}


def run_batch(runtime: Runtime, cases: Sequence[Case]) -> list[Outputs]:
    """Run cases as one batch, padded to the longest; return each one's outputs, padding included."""
    lengths = torch.tensor([len(case.audio) for case in cases])
    audio = pad_sequence([case.audio for case in cases], batch_first=True)
    references = [case.reference for case in cases if case.reference is not None]
    other = torch.stack(references) if references else torch.tensor([case.target for case in cases])
    outputs = runtime(audio, lengths, other)
    return [{name: values[row] for name, values in outputs.items()} for row in range(len(cases))]


def part_of_graph(path: Path, graph: str, outputs: Sequence[str], threads: int) -> Runtime:
    """Return the runtime of the part of a graph that some outputs need, on the CPU.

    Args:
        path: of the file.
        graph: its name in a bundle.
        outputs: names.
        threads: of a batch.
    """
    third_input = _THIRD_INPUTS.get(graph)
    inputs = ["audio", "lengths", *([third_input] if third_input else [])]
    part = onnx.utils.Extractor(onnx.load(str(path))).extract_model(inputs, list(outputs))
    return _running(_session(part.SerializeToString(), ON_CPU, threads), outputs, third_input)


class GraphNetwork(SpeakerNetwork):
    """A network whose logits and embeddings a bundle's `predict.onnx` computes, faster than torch.

    Args:
        network: what was exported, on the CPU.
        folder: holds the graph.
        threads: of a batch.
    """

    def __init__(self, network: SpeakerNetwork, folder: Path, threads: int) -> None:
        nn.Module.__init__(self)
        self.classes = network.classes
        self.front_end, self.encoder, self.head = network.front_end, network.encoder, network.head
        self._run = load_graph(folder / PREDICT, PREDICT, network.classes, threads=threads)

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits [batch, classes] and embeddings [batch, size] of 16 kHz audio [batch, samples]."""
        if lengths is None:
            lengths = torch.full((len(audio),), audio.shape[1])
        outputs = self._run(audio, lengths, lengths)
        embedding = torch.from_numpy(outputs["embedding"])
        return (torch.from_numpy(outputs["logits"]) if self.classes else self.logits(embedding)), embedding


def load_graph(path: Path, graph: str, classes: int, device: Device = ON_CPU, threads: int = 1) -> Runtime:
    """Return the runtime of a file with the graph of this name, of a network with so many classes."""
    outputs = _EMBEDDING if graph == PREDICT and not classes else _OUTPUTS[graph]
    return _running(_session(str(path), device, threads), outputs, _THIRD_INPUTS.get(graph))


def _running(session: ort.InferenceSession, outputs: Sequence[str], third_input: str | None) -> Runtime:
    """Return the runtime of an open graph."""

    def run(audio: Tensor, lengths: Tensor, other: Tensor) -> Mapping[str, NDArray[Any]]:
        feeds = {"audio": audio.numpy(), "lengths": lengths.numpy()}
        if third_input:
            feeds[third_input] = other.numpy()
        return dict(zip(outputs, session.run(list(outputs), feeds), strict=True))

    return run


def _scripted(function: Callable[..., Sequence[Tensor]], outputs: Sequence[str]) -> Runtime:
    """Return the runtime of a method of the TorchScript module."""

    def run(audio: Tensor, lengths: Tensor, other: Tensor) -> Mapping[str, NDArray[Any]]:
        with torch.inference_mode():
            answers = function(audio, lengths, other)
        return {name: tensor.numpy() for name, tensor in zip(outputs, answers, strict=True)}

    return run


def _session(graph: str | bytes, device: Device, threads: int = 1) -> ort.InferenceSession:
    """Open a graph; with one thread, where several batches or several processes run at a time."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph, options, providers=device.providers(), enable_fallback=0)
