"""The network as it is exported: no batch normalisation, and the gradients of LayerCAM as plain forward operators.

Exporters cannot follow autograd: exporting a call of it fails, or freezes the maps into constants. But the path from a
score back to a stage is short and known (head or cosine, linear layer, statistics pooling, residual blocks), so the
gradient is written out here, as convolutions and products like any others. It is verified against eager autograd
(`export/parity.py`), with which it shares no code. The same modules serve ONNX (through `torch.onnx`) and TorchScript
(through `torch.jit.script`).
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerlens.export.blocks import fold, fold_block
from speakerlens.training.model.front_end import LogMel, time_mask
from speakerlens.training.model.heads import AAMHead
from speakerlens.training.model.network import SpeakerNetwork


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


class Verification(NamedTuple):
    """Outputs of `verify`.

    embedding, features, saliency_s1 … saliency_s4: as in `Explanation`, the maps those of the score;
    score: cosine of the embedding and the reference [batch].
    """

    embedding: Tensor
    score: Tensor
    features: Tensor
    saliency_s1: Tensor
    saliency_s2: Tensor
    saliency_s3: Tensor
    saliency_s4: Tensor


class Passed(NamedTuple):
    """What the way back needs of the way there: input, hidden activations and output of each block, and the pooling's.

    features: log-mel [batch, mel, frames]; columns: valid ones of the last output [batch];
    mean, deviation: over the valid columns, [batch, channels, rows, 1]; embedding: [batch, size].
    """

    features: Tensor
    inputs: list[Tensor]
    hiddens: list[list[Tensor]]
    outputs: list[Tensor]
    columns: Tensor
    mean: Tensor
    deviation: Tensor
    embedding: Tensor


class ExportedNetwork(nn.Module):
    """The whole network with folded weights; `predict`, `explain` and `verify` are its three graphs."""

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
        passed = self._pass(audio, lengths)
        logits = self._logits(passed.embedding)
        target = torch.where(target < 0, logits.argmax(dim=1), target)
        maps = self._maps(passed, self._target_gradient(passed.embedding, target))
        return Explanation(logits, passed.embedding, passed.features, target, maps[3], maps[2], maps[1], maps[0])

    def verify(self, audio: Tensor, lengths: Tensor, reference: Tensor) -> Verification:
        """Cosine to a reference [batch, size] of any length, and the LayerCAM maps of that score."""
        passed = self._pass(audio, lengths)
        direction = F.normalize(reference)
        score = (F.normalize(passed.embedding) * direction).sum(dim=1)
        maps = self._maps(passed, cosine_gradient(passed.embedding, direction))
        return Verification(passed.embedding, score, passed.features, maps[3], maps[2], maps[1], maps[0])

    def _pass(self, audio: Tensor, lengths: Tensor) -> Passed:
        """The way to the embedding, block by block, with everything the way back needs."""
        features, frames = self.front_end(audio, lengths)
        mask = time_mask(frames, features.shape[2])[:, None, None, :]
        x = F.relu(self.stem(features.unsqueeze(1))) * mask
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
        return Passed(features, inputs, hiddens, outputs, frames, mean, deviation, embedding)

    def _maps(self, passed: Passed, by_embedding: Tensor) -> list[Tensor]:
        """Maps of S4, S3, S2 and S1 of the score whose gradient by the embedding is given, [batch, size]."""
        gradient = self._pooling_gradient(by_embedding, passed)
        maps: list[Tensor] = []
        position = len(passed.outputs)
        for block in self.blocks_from_the_end:
            position -= 1
            if block.maps_output:
                maps.append(layercam(gradient, passed.outputs[position]))
            if len(maps) < 4:  # below the first stage's tap no gradient is wanted
                x, hidden, output = passed.inputs[position], passed.hiddens[position], passed.outputs[position]
                gradient = block.gradient(gradient, hidden, output, x.shape[2], x.shape[3])  # type: ignore[operator]
            if block.maps_input:
                maps.append(layercam(gradient, passed.inputs[position]))
        return maps

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

    def _target_gradient(self, embedding: Tensor, target: Tensor) -> Tensor:
        """Gradient of each row's target score by the embedding, [batch, size]."""
        weight = self.class_weight[target]
        return cosine_gradient(embedding, weight) if self.cosine else weight

    def _pooling_gradient(self, upstream: Tensor, passed: Passed) -> Tensor:
        """Gradient by the last stage's output, from that by the embedding, [batch, channels, rows, columns]."""
        x, mean, deviation = passed.outputs[-1], passed.mean, passed.deviation
        by_mean, by_deviation = torch.matmul(upstream, self.embed.weight).chunk(2, dim=1)
        by_mean, by_deviation = by_mean.reshape(mean.shape), by_deviation.reshape(mean.shape)
        count = passed.columns.to(x.dtype)[:, None, None, None]
        return by_mean / count + by_deviation / deviation * (x - mean) / (count - 1).clamp_min(1)


def cosine_gradient(embedding: Tensor, weight: Tensor) -> Tensor:
    """Gradient of weight · embedding / |embedding| by the embedding, each row by itself: [batch, size]."""
    # What changes that score is the part of the weight across the embedding.
    norm = embedding.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    direction = embedding / norm
    return (weight - (weight * direction).sum(dim=1, keepdim=True) * direction) / norm


def layercam(gradient: Tensor, activation: Tensor) -> Tensor:
    """ReLU(sum over channels of ReLU(gradient) x activation), over axis 1 of [batch, channels, rows, columns]."""
    return F.relu((F.relu(gradient) * activation).sum(dim=1))
