"""Write and read `model.ts`: the same network as TorchScript, loadable with torch alone."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from speakerlens.export.graph import Explanation, ExportedNetwork, Prediction, Verification

FILE = "model.ts"


class _ScriptedEmbedder(nn.Module):
    """A network without a classifier: its call is `verify`."""

    def __init__(self, network: ExportedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, audio: Tensor, lengths: Tensor, reference: Tensor) -> Verification:
        return self.network.verify(audio, lengths, reference)

    @torch.jit.export
    def predict(self, audio: Tensor, lengths: Tensor) -> Prediction:
        return self.network.predict(audio, lengths)

    @torch.jit.export
    def verify(self, audio: Tensor, lengths: Tensor, reference: Tensor) -> Verification:
        return self.network.verify(audio, lengths, reference)


class _Scripted(nn.Module):
    def __init__(self, network: ExportedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, audio: Tensor, lengths: Tensor, target: Tensor) -> Explanation:
        return self.network.explain(audio, lengths, target)

    @torch.jit.export
    def predict(self, audio: Tensor, lengths: Tensor) -> Prediction:
        return self.network.predict(audio, lengths)

    @torch.jit.export
    def verify(self, audio: Tensor, lengths: Tensor, reference: Tensor) -> Verification:
        return self.network.verify(audio, lengths, reference)


def write_torchscript(network: ExportedNetwork, folder: Path) -> None:
    """Write `model.ts`: its call is `explain`; `predict` and `verify` are methods, as in `ExportedNetwork`.

    Without a classifier its call is `verify`, and the logits of `predict` are empty.
    """
    scripted = _Scripted(network) if network.classes else _ScriptedEmbedder(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(scripted.eval()), str(folder / FILE))


def read_torchscript(folder: Path) -> torch.jit.ScriptModule:
    """Load a bundle's `model.ts`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module: torch.jit.ScriptModule = torch.jit.load(str(folder / FILE), map_location="cpu")  # type: ignore[no-untyped-call]
    return module
