"""The exported network: folded batch normalisation, and the gradients of LayerCAM as plain forward operators.

Exporters cannot trace autograd: exporting a call of it fails, or turns the maps into constants. The path from a score
back to a stage is short and known (head or cosine, linear layer, statistics pooling, residual blocks), so the gradient
is written out here as convolutions and products. It is verified against eager autograd (`export/parity.py`), with which
it shares no code. The same modules become ONNX (`torch.onnx`) and TorchScript (`torch.jit.script`).
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerlens.export.blocks import fold, fold_block
from speakerlens.training.model.front_end import LogMel, time_mask
from speakerlens.training.model.heads import AAMHead, SoftmaxHead
from speakerlens.training.model.network import SpeakerNetwork


class Prediction(NamedTuple):
    """Outputs of `predict`: logits [batch, classes] and embedding [batch, size].

    The graph of a network without a classifier has the embedding only.
    """

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


class Activations(NamedTuple):
    """Activations of the forward pass: input, hidden activations and output of each block, and the pooling's.

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
    """The network with folded weights; `predict`, `explain` and `verify` become the three graphs of a bundle.

    Without a classifier (`classes` is 0) there is no graph `explain`, as there is no class to explain.
    """

    classes: Final[int]
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
        # TorchScript cannot iterate over a list backwards.
        self.reversed_blocks = nn.ModuleList(reversed(self.blocks))
        self.embed = encoder.seg_1
        head = network.head
        self.cosine = isinstance(head, AAMHead)
        if isinstance(head, AAMHead):
            weight, bias = head.scale * F.normalize(head.weight), torch.zeros(head.weight.shape[0])
        elif isinstance(head, SoftmaxHead):
            weight, bias = head.linear.weight, head.linear.bias
        else:
            weight, bias = torch.zeros(0, encoder.seg_1.out_features), torch.zeros(0)
        self.classes = network.classes
        self.register_buffer("class_weight", weight.detach().clone())
        self.register_buffer("class_bias", bias.detach().clone())
        self.requires_grad_(False)
        self.eval()

    def predict(self, audio: Tensor, lengths: Tensor) -> Prediction:
        """Return logits and embedding.

        Args:
            audio: 16 kHz, float32 [batch, samples].
            lengths: valid samples, int64 [batch].
        """
        features, frames = self.front_end(audio, lengths)
        mask = time_mask(frames, features.shape[2])[:, None, None, :]
        x = F.relu(self.stem(features.unsqueeze(1))) * mask
        for block in self.blocks:
            before = mask
            if block.stride == 2:
                frames, mask = halved(frames), mask[:, :, :, ::2]
            _, x = block(x, before, mask)
        _, _, embedding = self._embed(x, frames, mask)
        return Prediction(self._logits(embedding), embedding)

    def explain(self, audio: Tensor, lengths: Tensor, target: Tensor) -> Explanation:
        """Return the prediction and the LayerCAM maps of one class.

        Args:
            audio: 16 kHz, float32 [batch, samples].
            lengths: valid samples, int64 [batch].
            target: class to explain, int64 [batch]; -1 for the predicted one.
        """
        return self.explain_activations(self.activations(audio, lengths), target)

    def explain_activations(self, activations: Activations, target: Tensor) -> Explanation:
        """Return what `explain` returns, from the activations of the forward pass."""
        logits = self._logits(activations.embedding)
        target = torch.where(target < 0, logits.argmax(dim=1), target)
        maps = self._maps(activations, self._target_gradient(activations.embedding, target))
        return Explanation(
            logits, activations.embedding, activations.features, target, maps[3], maps[2], maps[1], maps[0]
        )

    def verify(self, audio: Tensor, lengths: Tensor, reference: Tensor) -> Verification:
        """Return the cosine to a reference, and the LayerCAM maps of that score.

        Args:
            audio: 16 kHz, float32 [batch, samples].
            lengths: valid samples, int64 [batch].
            reference: embedding of any norm, float32 [batch, size].
        """
        return self.verify_activations(self.activations(audio, lengths), reference)

    def verify_activations(self, activations: Activations, reference: Tensor) -> Verification:
        """Return what `verify` returns, from the activations of the forward pass."""
        direction = F.normalize(reference)
        score = (F.normalize(activations.embedding) * direction).sum(dim=1)
        maps = self._maps(activations, cosine_gradient(activations.embedding, direction))
        return Verification(activations.embedding, score, activations.features, maps[3], maps[2], maps[1], maps[0])

    def activations(self, audio: Tensor, lengths: Tensor) -> Activations:
        """Return all activations of the forward pass; arguments as for `predict`."""
        features, frames = self.front_end(audio, lengths)
        mask = time_mask(frames, features.shape[2])[:, None, None, :]
        x = F.relu(self.stem(features.unsqueeze(1))) * mask
        inputs: list[Tensor] = []
        hiddens: list[list[Tensor]] = []
        outputs: list[Tensor] = []
        for block in self.blocks:
            before = mask
            if block.stride == 2:
                frames, mask = halved(frames), mask[:, :, :, ::2]
            inputs.append(x)
            hidden, x = block(x, before, mask)
            hiddens.append(hidden)
            outputs.append(x)
        mean, deviation, embedding = self._embed(x, frames, mask)
        return Activations(features, inputs, hiddens, outputs, frames, mean, deviation, embedding)

    def _maps(self, activations: Activations, by_embedding: Tensor) -> list[Tensor]:
        """Return the maps of S4, S3, S2 and S1, each [batch, rows, columns].

        `by_embedding` is the gradient of the explained score by the embedding, [batch, size].
        """
        gradient = self._pooling_gradient(by_embedding, activations)
        maps: list[Tensor] = []
        position = len(activations.outputs)
        for block in self.reversed_blocks:
            position -= 1
            if block.maps_output:
                maps.append(layercam(gradient, activations.outputs[position]))
            if len(maps) < 4:  # no gradient is needed below the first stage's tap
                x, hidden, output = (
                    activations.inputs[position],
                    activations.hiddens[position],
                    activations.outputs[position],
                )
                gradient = block.gradient(gradient, hidden, output, x.shape[2], x.shape[3])  # type: ignore[operator]
            if block.maps_input:
                maps.append(layercam(gradient, activations.inputs[position]))
        return maps

    def _embed(self, x: Tensor, columns: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and standard deviation over the valid columns, [batch, channels, rows, 1], and the embedding.

        Args:
            x: last stage's output, [batch, channels, rows, columns].
            columns: valid ones, [batch].
            mask: of the valid columns, [batch, 1, 1, columns].
        """
        count = columns.to(x.dtype)[:, None, None, None]
        mean = x.sum(dim=3, keepdim=True) / count
        variance = ((x - mean) * mask).square().sum(dim=3, keepdim=True) / (count - 1).clamp_min(1)
        deviation = (variance + 1e-7).sqrt()
        return mean, deviation, self.embed(torch.cat([mean.flatten(1), deviation.flatten(1)], dim=1))

    def _logits(self, embedding: Tensor) -> Tensor:
        direction = F.normalize(embedding) if self.cosine else embedding
        return F.linear(direction, self.class_weight, self.class_bias)

    def _target_gradient(self, embedding: Tensor, target: Tensor) -> Tensor:
        """Return the gradient of each row's target logit by the embedding, [batch, size]; `target` is [batch]."""
        weight = self.class_weight[target]
        return cosine_gradient(embedding, weight) if self.cosine else weight

    def _pooling_gradient(self, upstream: Tensor, activations: Activations) -> Tensor:
        """Return the gradient by the last stage's output, [batch, channels, rows, columns].

        `upstream` is the gradient by the embedding, [batch, size].
        """
        x, mean, deviation = activations.outputs[-1], activations.mean, activations.deviation
        by_mean, by_deviation = torch.matmul(upstream, self.embed.weight).chunk(2, dim=1)
        by_mean, by_deviation = by_mean.reshape(mean.shape), by_deviation.reshape(mean.shape)
        count = activations.columns.to(x.dtype)[:, None, None, None]
        return by_mean / count + by_deviation / deviation * (x - mean) / (count - 1).clamp_min(1)


def halved(columns: Tensor) -> Tensor:
    """Return the number of columns after a stride of 2, int64 [batch]: half of them, rounded up."""
    return torch.div(columns + 1, 2, rounding_mode="trunc")  # `//` would check for signs


def cosine_gradient(embedding: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of weight · embedding / |embedding| by the embedding; all are [batch, size]."""
    # Only the part of the weight orthogonal to the embedding changes the score.
    norm = embedding.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    direction = embedding / norm
    return (weight - (weight * direction).sum(dim=1, keepdim=True) * direction) / norm


def layercam(gradient: Tensor, activation: Tensor) -> Tensor:
    """Return ReLU(sum over channels of ReLU(gradient) x activation), [batch, rows, columns].

    Both arguments are [batch, channels, rows, columns].
    """
    return F.relu((F.relu(gradient) * activation).sum(dim=1))
