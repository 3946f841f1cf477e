"""Table 1: explaining a batch of utterances, ours beside autograd and what is built on it, and OpenVINO.

Every way computes the raw LayerCAM maps of the predicted class, from the waveform, without padding, and
each runs in a process of its own. Quoted is also the relative L2 error of the map of S4 against ours.
"""

import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.measuring import Others, interleave, summary
from benchmarks.peers.networks import SALIENCY, batch_of
from benchmarks.peers.workers import SkippedError, Worker

Maps = dict[str, NDArray[Any]]
Function = Callable[[], Maps]
REFERENCE = "ours, S1 to S4"
# What pytorch-grad-cam imports and LayerCAM does not use.
UNUSED = (
    *("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "cv2"),
    *("sklearn", "sklearn.decomposition", "sklearn.cluster", "sklearn.preprocessing"),
)


def ours(bundle: Path, rows: int, threads: int, lowest: str) -> Function:
    """Return the server's own session for the maps from a lowest stage on; for none, `predict.onnx`."""
    from speakerlens.serving.engine.graphs import EXPLAIN_SPECS, PREDICT_SPEC
    from speakerlens.serving.engine.placement import Placement
    from speakerlens.serving.engine.session import GraphSession
    from speakerlens.serving.models.reader import read_bundle

    spec: Any = EXPLAIN_SPECS[lowest] if lowest else PREDICT_SPEC
    session = GraphSession(spec, read_bundle(bundle), Placement("cpu", threads))._session  # noqa: SLF001 - the bare graph
    audio = batch_of(bundle, rows)
    feeds: Maps = {"audio": audio, "lengths": np.full(rows, audio.shape[1])}
    if lowest:
        feeds["target"] = np.full(rows, -1)
    return lambda: dict(zip(spec.outputs, session.run(spec.outputs, feeds), strict=True))


def eager(bundle: Path, rows: int, threads: int, bf16: bool, compiled: bool) -> Function:
    """Return autograd's LayerCAM; with bfloat16 in the encoder, or compiled by `torch.compile`."""
    import torch

    from speakerlens.training.model.saliency import layercam_map, score_target, tapped

    if bf16 and not {"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text("utf-8").split()):
        raise SkippedError("this processor computes no bf16")  # PyTorch would emulate it, thirty times slower
    network, audio = _network(bundle, threads), torch.from_numpy(batch_of(bundle, rows))
    with torch.no_grad():
        frames = network.front_end(audio, None)[1]

    def explained(features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            scored = score_target(network, features.requires_grad_(), frames, False)
            taps = tapped(network, scored.activations)
        gradients = torch.autograd.grad(scored.score, taps)
        return tuple(layercam_map(gradient, tap) for gradient, tap in zip(gradients, taps, strict=True))

    if not compiled:

        def run() -> Maps:
            with torch.no_grad():
                features = network.front_end(audio, None)[0]
            return _named(explained(features))

        return run

    # A compiled function hides its activations from autograd, so that zeros are added there, and the score is
    # differentiated by these.
    with torch.no_grad():
        features, _ = network.front_end(audio, None)
        shapes = [each.shape for each in tapped(network, network.encoder(features, frames, False))]
    zeros = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    for module, zero in zip(_taps(network), zeros, strict=True):
        module.register_forward_hook(lambda _module, _inputs, output, zero=zero: output + zero)

    def scores(features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scored = score_target(network, features, frames, False)
        return scored.score, *tapped(network, scored.activations)

    forward = torch.compile(scores)

    def run_compiled() -> Maps:
        with torch.no_grad():
            features = network.front_end(audio, None)[0]
        score, *taps = forward(features)
        gradients = torch.autograd.grad(score, zeros)
        return _named(layercam_map(gradient, tap) for gradient, tap in zip(gradients, taps, strict=True))

    return run_compiled


def captum(bundle: Path, rows: int, threads: int) -> Function:
    """Return Captum's gradient x activation of the four taps, summed over channels."""
    import torch
    from captum.attr import LayerGradientXActivation

    network, audio = _network(bundle, threads), torch.from_numpy(batch_of(bundle, rows))
    model = _scorer(network)
    method = LayerGradientXActivation(model, _taps(network), multiply_by_inputs=True)

    def run() -> Maps:
        with torch.no_grad():
            features = network.front_end(audio, None)[0]
            target = model(features).argmax(1)  # Captum asks for the class, which takes a forward pass
        attributions = method.attribute(features, target=target)
        return _named(each.relu().sum(1) for each in attributions)

    return run


def grad_cam(bundle: Path, rows: int, threads: int) -> Function:
    """Return LayerCAM of pytorch-grad-cam, without its resizing to the input by OpenCV."""
    for name in UNUSED:
        sys.modules.setdefault(name, _Empty(name))
    import torch
    from pytorch_grad_cam import LayerCAM

    network, audio = _network(bundle, threads), torch.from_numpy(batch_of(bundle, rows))
    method = LayerCAM(_scorer(network), _taps(network))

    def unscaled(tensor: Any, targets: Any, eigen_smooth: bool) -> list[NDArray[Any]]:
        found = method.activations_and_grads
        pairs = zip(method.target_layers, found.activations, found.gradients, strict=True)
        return [
            method.get_cam_image(tensor, layer, targets, one.numpy(), two.numpy(), eigen_smooth)
            for layer, one, two in pairs
        ]

    method.compute_cam_per_layer = unscaled
    method.aggregate_multi_layers = lambda maps: maps

    def run() -> Maps:
        with torch.no_grad():
            features = network.front_end(audio, None)[0]
        return dict(zip(SALIENCY, method(features, None), strict=True))

    return run


def openvino(bundle: Path, rows: int, threads: int, precision: str) -> Function:
    """Return OpenVINO's runtime on our `explain.onnx`; `precision` is f32 or bf16, which it may decline."""
    import openvino as ov

    core = ov.Core()
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    model = core.compile_model(str(bundle / "explain.onnx"), "CPU", hints)
    if model.get_property("INFERENCE_PRECISION_HINT") != getattr(ov.Type, precision):
        raise SkippedError(f"this processor computes no {precision}")
    audio = batch_of(bundle, rows)
    feeds = {"audio": audio, "lengths": np.full(rows, audio.shape[1]), "target": np.full(rows, -1)}
    request = model.create_infer_request()

    def run() -> Maps:
        answer = request.infer(feeds)
        return {name: answer[name] for name in SALIENCY}

    return run


WAYS: dict[str, tuple[Callable[..., Function], tuple[Any, ...]]] = {
    REFERENCE: (ours, ("s1",)),
    "ours, S2 to S4": (ours, ("s2",)),
    "ours, S4": (ours, ("s4",)),
    "ours, predict": (ours, ("",)),
    "PyTorch, autograd": (eager, (False, False)),
    "PyTorch, autograd, bf16": (eager, (True, False)),
    "torch.compile": (eager, (False, True)),
    "pytorch-grad-cam": (grad_cam, ()),
    "Captum": (captum, ()),
    "OpenVINO, f32": (openvino, ("f32",)),
    "OpenVINO, bf16": (openvino, ("bf16",)),
}


def cells(bundles: dict[str, Path], quick: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of each cell of the table and the function that measures it."""
    shapes = [(1, 1)] if quick else [(1, 1), (8, 1), (1, 2), (8, 2)]
    for network, bundle in bundles.items():
        for rows, threads in shapes:
            name = f"explaining/{network}/batch {rows}/{threads} thread{'s' * (threads > 1)}"
            yield name, partial(_cell, bundle, rows, threads, quick)


def _cell(bundle: Path, rows: int, threads: int, quick: bool) -> dict[str, Any]:
    """Return the figures of each way for a batch, and why others were skipped."""
    skipped: dict[str, str] = {}
    workers: dict[str, Worker] = {}
    with ExitStack() as stack:
        for name, (make, arguments) in WAYS.items():
            try:
                workers[name] = Worker(threads, make, bundle, rows, threads, *arguments)
                stack.callback(workers[name].close)
            except SkippedError as error:
                skipped[name] = str(error)
        slowest = max(worker.run().wall for worker in workers.values())
        calls = 1 if quick else max(1, round(0.1 / slowest))
        with Others(time.monotonic) as others:
            ways = {name: partial(worker.run, calls) for name, worker in workers.items()}
            rounds = interleave(ways, 2 if quick else 9, seconds=12)
    expected = workers[REFERENCE].result
    figures = summary(rounds, REFERENCE)
    for name, worker in workers.items():
        found = worker.result.get(SALIENCY[-1])
        if found is not None and name != REFERENCE:
            figures[name]["error"] = float(f"{_error(found, expected[SALIENCY[-1]]):.1g}")
    return {"ways": figures, "skipped": skipped, **others.marks()}


def _error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the relative L2 error of a map."""
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))


def _network(bundle: Path, threads: int) -> Any:
    import torch

    from benchmarks.peers.networks import manifest_of
    from speakerlens.export.verify import rebuild_network

    torch.set_num_threads(threads)
    network = rebuild_network(bundle, manifest_of(bundle))
    return network.requires_grad_(False)


def _scorer(network: Any) -> Any:
    """Return a module from features [batch, mel, frames] to logits, all frames valid."""
    import torch

    class Scorer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            frames = torch.full((len(features),), features.shape[2])
            logits: torch.Tensor = network.logits(network.encoder(features, frames, False).embedding)
            return logits

    for parameter in network.parameters():  # grad-cam and Captum follow parameters back
        parameter.requires_grad_(True)
    return Scorer().eval()


def _taps(network: Any) -> list[Any]:
    """Return the modules whose outputs are the taps of the four stages."""
    return [
        blocks[-2] if tap == "last-block-input" else blocks[-1]
        for blocks, tap in zip(network.encoder.layers, network.encoder.taps, strict=True)
    ]


def _named(maps: Any) -> Maps:
    return {name: each.detach().float().numpy() for name, each in zip(SALIENCY, maps, strict=True)}


class _Empty(types.ModuleType):
    """A module in place of one that grad-cam imports and LayerCAM does not use."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":
            return []
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
