"""The network as it is exported: no batch normalisation, and the gradients of LayerCAM as plain forward operators.

Exporters cannot follow autograd: exporting a call of it fails, or freezes the maps into constants. But the path from a
speaker's score back to a stage is short and known (head, linear layer, statistics pooling, residual blocks), so the
gradient is written out here, as convolutions and products like any others. It is verified against eager autograd
(`export/parity.py`), with which it shares no code. The same modules serve ONNX (through `torch.onnx`) and TorchScript
(through `torch.jit.script`).
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.blocks import fold, fold_block
from training.frontend import LogMel, time_mask
from training.heads import AAMHead
from training.network import SpeakerNetwork


class Prediction(NamedTuple):
    """Outputs of `predict`: scores [batch, classes] and embedding [batch, size]."""

    logits: Tensor
    embedding: Tensor


class Explanation(NamedTuple):
    """Outputs of `explain`.

    logits, embedding: as in `Prediction`; features: log-mel [batch, mel, frames];
    explained: the class whose score the maps explain [batch];
    saliency_s1 … saliency_s4: raw LayerCAM maps [batch, rows, columns].
    """

    logits: Tensor
    embedding: Tensor
    features: Tensor
    explained: Tensor
    saliency_s1: Tensor
    saliency_s2: Tensor
    saliency_s3: Tensor
    saliency_s4: Tensor


class ExportedNetwork(nn.Module):
    """The whole network with folded weights; `predict` and `explain` are its two graphs."""

    cosine: Final[bool]
    class_weight: Tensor
    class_bias: Tensor

    def __init__(self, network: SpeakerNetwork) -> None:
        super().__init__()
        encoder = network.encoder
        self.front_end = LogMel(network.front_end.mel_bins)
        self.stem = fold(encoder.conv1, encoder.bn1)
        self.blocks = nn.ModuleList(
            fold_block(block, tap if i == len(layer) - 1 else None)
            for layer, tap in zip(encoder.layers, encoder.taps, strict=True)
            for i, block in enumerate(layer)
        )
        # TorchScript cannot walk a list backwards.
        self.blocks_from_the_end = nn.ModuleList(reversed(self.blocks))
        self.embed = encoder.seg_1
        head = network.head
        self.cosine = isinstance(head, AAMHead)
        if isinstance(head, AAMHead):
            weight, bias = head.scale * F.normalize(head.weight), torch.zeros(head.weight.shape[0])
        else:
            weight, bias = head.linear.weight, head.linear.bias
        self.register_buffer("class_weight", weight.detach().clone())
        self.register_buffer("class_bias", bias.detach().clone())
        self.requires_grad_(False)
        self.eval()

    def predict(self, audio: Tensor, lengths: Tensor) -> Prediction:
        """Scores and embedding of 16 kHz audio [batch, samples], of which `lengths` [batch] are valid."""
        features, frames = self.front_end(audio, lengths)
        mask = time_mask(frames, features.shape[2])[:, None, None, :]
        x = F.relu(self.stem(features.unsqueeze(1))) * mask
        for block in self.blocks:
            before = mask
            if block.stride == 2:
                frames, mask = (frames + 1) // 2, mask[:, :, :, ::2]
            _, x = block(x, before, mask)
        _, _, embedding = self._embed(x, frames, mask)
        return Prediction(self._logits(embedding), embedding)

    def explain(self, audio: Tensor, lengths: Tensor, target: Tensor) -> Explanation:
        """Prediction and LayerCAM maps; `target` [batch] is the class to explain, -1 for the predicted one."""
        features, frames = self.front_end(audio, lengths)
        mask = time_mask(frames, features.shape[2])[:, None, None, :]
        x = F.relu(self.stem(features.unsqueeze(1))) * mask
        # Everything the way back needs, block by block.
        inputs: list[Tensor] = []
        hiddens: list[list[Tensor]] = []
        outputs: list[Tensor] = []
        for block in self.blocks:
            before = mask
            if block.stride == 2:
                frames, mask = (frames + 1) // 2, mask[:, :, :, ::2]
            inputs.append(x)
            hidden, x = block(x, before, mask)
            hiddens.append(hidden)
            outputs.append(x)
        mean, deviation, embedding = self._embed(x, frames, mask)
        logits = self._logits(embedding)
        target = torch.where(target < 0, logits.argmax(dim=1), target)

        gradient = self._pooling_gradient(self._embedding_gradient(embedding, target), x, mean, deviation, frames)
        maps: list[Tensor] = []
        position = len(outputs)
        for block in self.blocks_from_the_end:
            position -= 1
            if block.maps_output:
                maps.append(layercam(gradient, outputs[position]))
            if len(maps) < 4:  # below the first stage's tap no gradient is wanted
                x, hidden, output = inputs[position], hiddens[position], outputs[position]
                gradient = block.gradient(gradient, hidden, output, x.shape[2], x.shape[3])  # type: ignore[operator]
            if block.maps_input:
                maps.append(layercam(gradient, inputs[position]))
        return Explanation(logits, embedding, features, target, maps[3], maps[2], maps[1], maps[0])

    def _embed(self, x: Tensor, columns: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation over the valid columns, [batch, channels, rows, 1], and the embedding."""
        count = columns.to(x.dtype)[:, None, None, None]
        mean = x.sum(dim=3, keepdim=True) / count
        variance = ((x - mean) * mask).square().sum(dim=3, keepdim=True) / (count - 1).clamp_min(1)
        deviation = (variance + 1e-7).sqrt()
        return mean, deviation, self.embed(torch.cat([mean.flatten(1), deviation.flatten(1)], dim=1))

    def _logits(self, embedding: Tensor) -> Tensor:
        direction = F.normalize(embedding) if self.cosine else embedding
        return F.linear(direction, self.class_weight, self.class_bias)

    def _embedding_gradient(self, embedding: Tensor, target: Tensor) -> Tensor:
        """Gradient of each row's target score by the embedding, [batch, size]."""
        weight = self.class_weight[target]
        if not self.cosine:
            return weight
        # The score is w · e / |e|: what changes it is the part of w across e.
        norm = embedding.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
        direction = embedding / norm
        return (weight - (weight * direction).sum(dim=1, keepdim=True) * direction) / norm

    def _pooling_gradient(
        self, upstream: Tensor, x: Tensor, mean: Tensor, deviation: Tensor, columns: Tensor
    ) -> Tensor:
        """Gradient by the last stage's output, from that by the embedding, [batch, channels, rows, columns]."""
        by_mean, by_deviation = torch.matmul(upstream, self.embed.weight).chunk(2, dim=1)
        by_mean, by_deviation = by_mean.reshape(mean.shape), by_deviation.reshape(mean.shape)
        count = columns.to(x.dtype)[:, None, None, None]
        return by_mean / count + by_deviation / deviation * (x - mean) / (count - 1).clamp_min(1)


def layercam(gradient: Tensor, activation: Tensor) -> Tensor:
    """ReLU(sum over channels of ReLU(gradient) x activation), over axis 1 of [batch, channels, rows, columns]."""
    return F.relu((F.relu(gradient) * activation).sum(dim=1))
