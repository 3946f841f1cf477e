"""The speaker network: log-mel front end, ResNet, temporal statistics pooling, embedding, classification head.

The ResNet is WeSpeaker's (He et al., CVPR 2016, with a 3x3 stem and no max pooling; statistics pooling after Snyder et
al., ICASSP 2018), and its parameters carry the same names, so that `SpeakerNetwork.encoder` loads the state dict of a
WeSpeaker `ResNet34`, and of its siblings of basic blocks or bottlenecks.

Utterances of different lengths share a batch by masking: padding is set to zero after every ReLU, which equals the
convolutions' own zero padding at the end of an utterance. So its output does not depend on the rest of the batch.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerlens.training.config import HeadConfig, NetworkConfig
from speakerlens.training.model.front_end import LogMel, time_mask
from speakerlens.training.model.heads import make_head

STAGES = ("s1", "s2", "s3", "s4")
STRIDES = (1, 2, 4, 8)  # log-mel frames (and mel bins) per column (and row) of each stage
VARIANCE_FLOOR = 1e-7  # keeps the gradient of the standard deviation finite

Tap = Literal["stage-output", "last-block-input"]
"""Which activation of a stage its saliency map is taken at."""


class Activations(NamedTuple):
    """The network's activations up to the embedding.

    Attributes:
        features: log-mel, [batch, mel, frames].
        frames: valid frames, [batch].
        stages: output of each of the four stages, [batch, channels, rows, columns].
        block_inputs: input of each stage's last block; with the shape of the stage's output where it has more than one.
        stage_frames: valid columns of each stage, [batch].
        statistics: mean and standard deviation over time, [batch, 2 x channels x rows].
        embedding: [batch, size].
    """

    features: Tensor
    frames: Tensor
    stages: tuple[Tensor, ...]
    block_inputs: tuple[Tensor, ...]
    stage_frames: tuple[Tensor, ...]
    statistics: Tensor
    embedding: Tensor


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; it has `expansion` x width output channels."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor, before: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return the output, [batch, inputs, rows, columns] -> [batch, width, rows / stride, columns / stride].

        `before` masks the input, `mask` the output, [batch, 1, 1, columns]; None without padding.
        """
        hidden = _masked(F.relu(self.bn1(self.conv1(x))), mask)
        return _masked(F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x)), mask)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, and a shortcut; the 3x3 one has the stride."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, self.expansion * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.expansion * width)
        self.shortcut = _shortcut(inputs, self.expansion * width, stride)

    def forward(self, x: Tensor, before: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return the output, [batch, inputs, rows, columns] -> [batch, 4 x width, rows / stride, columns / stride]."""
        hidden = _masked(F.relu(self.bn1(self.conv1(x))), before)
        hidden = _masked(F.relu(self.bn2(self.conv2(hidden))), mask)
        return _masked(F.relu(self.bn3(self.conv3(hidden)) + self.shortcut(x)), mask)


BLOCKS: dict[str, type[BasicBlock | Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """The encoder, under WeSpeaker's parameter names."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, config.width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        block = BLOCKS[config.block]
        channels = config.width
        for stage, count in enumerate(config.blocks):
            width = config.width * 2**stage
            layer = nn.ModuleList()
            for position in range(count):
                layer.append(block(channels, width, 2 if stage > 0 and position == 0 else 1))
                channels = width * block.expansion
            self.add_module(f"layer{stage + 1}", layer)
        statistics = 2 * channels * -(-config.mel_bins // STRIDES[-1])
        self.seg_1 = nn.Linear(statistics, config.embedding)

    @property
    def layers(self) -> tuple[nn.ModuleList, ...]:
        """The blocks of each stage."""
        return tuple(getattr(self, f"layer{stage}") for stage in (1, 2, 3, 4))

    @property
    def taps(self) -> tuple[Tap, ...]:
        """Where each stage's saliency map is taken.

        The gradient through a strided convolution contains a 2x2 grid, as the authors of LayerCAM warn; at the input of
        the last block it is weaker (docs/decisions/0003-taps.md). The last stage feeds no strided convolution, and in a
        stage of one block that input is the output of the stage before.
        """
        return tuple(
            "last-block-input" if stage < len(STAGES) - 1 and len(blocks) > 1 else "stage-output"
            for stage, blocks in enumerate(self.layers)
        )

    def forward(self, features: Tensor, frames: Tensor, masked: bool) -> Activations:
        """Encode features [batch, mel, frames], of which `frames` [batch] are valid; with `masked` False, all are."""
        mask = time_mask(frames, features.shape[2])[:, None, None, :] if masked else None
        x = _masked(F.relu(self.bn1(self.conv1(features.unsqueeze(1)))), mask)
        stages, block_inputs, stage_frames = [], [], []
        columns = frames
        for stage, blocks in enumerate(self.layers):
            before = mask
            if stage > 0:
                columns = (columns + 1) // 2
                mask = None if mask is None else mask[..., ::2]
            for block in blocks:
                block_input = x
                x = block(x, before, mask)
                before = mask
            stages.append(x)
            block_inputs.append(block_input)
            stage_frames.append(columns)
        statistics = pool_statistics(x, columns)
        embedding = self.seg_1(statistics)
        return Activations(
            features, frames, tuple(stages), tuple(block_inputs), tuple(stage_frames), statistics, embedding
        )


class SpeakerNetwork(nn.Module):
    """From waveforms to speaker logits and embeddings.

    Args:
        network: sizes of the encoder.
        head: kind of classification head.
        classes: number of speakers; 0 for a network that only embeds.
    """

    def __init__(self, network: NetworkConfig, head: HeadConfig, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.front_end = LogMel(network.mel_bins)
        self.encoder = ResNet(network)
        self.head = make_head(head, network.embedding, classes)

    def activations(self, audio: Tensor, lengths: Tensor | None = None) -> Activations:
        """Encode 16 kHz audio, float32 [batch, samples], of which `lengths` [batch] are valid (None: all)."""
        with torch.no_grad(), torch.autocast(audio.device.type, enabled=False):
            features, frames = self.front_end(audio, lengths)
        activations: Activations = self.encoder(features, frames, masked=lengths is not None)
        return activations

    def logits(self, embedding: Tensor) -> Tensor:
        """Return logits without margin, [batch, embedding] -> [batch, classes]."""
        logits: Tensor = self.head(embedding)
        return logits

    def training_logits(self, embedding: Tensor, labels: Tensor, margin: float) -> Tensor:
        """Return logits [batch, classes] with the margin (radians) on the true class, for cross-entropy."""
        return self.head.training_logits(embedding, labels, margin)

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits [batch, classes] and embeddings [batch, size] of 16 kHz audio [batch, samples]."""
        embedding = self.activations(audio, lengths).embedding
        return self.logits(embedding), embedding


def pool_statistics(x: Tensor, columns: Tensor) -> Tensor:
    """Return mean and standard deviation over the valid columns.

    The variance is unbiased, zero for a single column, and raised by `VARIANCE_FLOOR`.

    Args:
        x: [batch, channels, rows, columns], zero beyond the valid columns.
        columns: valid columns, [batch].

    Returns:
        float32 [batch, 2 x channels x rows].
    """
    x = x.float()  # sums over time lose too much in bfloat16
    count = columns.to(x.dtype)[:, None, None]
    mean = x.sum(dim=3) / count
    mask = time_mask(columns, x.shape[3])[:, None, None, :]
    deviation = (x - mean.unsqueeze(3)) * mask
    variance = deviation.square().sum(dim=3) / (count - 1).clamp_min(1)
    return torch.cat([mean.flatten(1), (variance + VARIANCE_FLOOR).sqrt().flatten(1)], dim=1)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask
