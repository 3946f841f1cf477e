"""WeSpeaker's ResNet as its papers and its weights' names have it, in plain torch: it shares no code with `training`.

Features come from kaldi-native-fbank. Widths are small; names, strides, and shapes relative to the width are theirs.
"""

from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training.model.test_frontend import kaldi_log_mel

SCALE = 24.0


class Block(nn.Module):
    """Basic: 3x3, 3x3. Bottleneck: 1x1, 3x3, 1x1 to four times the width. The first 3x3 has the stride."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        self.conv1 = nn.Conv2d(channels, width, 1 if bottleneck else 3, 1 if bottleneck else stride, bias=False)
        if not bottleneck:
            self.conv1.padding = (1, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride if bottleneck else 1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.bottleneck = bottleneck
        if bottleneck:
            self.conv3 = nn.Conv2d(width, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.bottleneck:
            y = self.bn3(self.conv3(y.relu()))
        return torch.as_tensor((y + self.shortcut(x)).relu())


class Projection(nn.Module):
    def __init__(self, classes: int, embedding: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, embedding))


class ReferenceResNet(nn.Module):
    """The network with `classes` in its projection; 0 means that it has none."""

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        bottleneck: bool,
        classes: int,
        width: int = 4,
        mel: int = 80,
        embedding: int = 12,
    ) -> None:
        super().__init__()
        self.blocks, self.expansion, self.mel = blocks, 4 if bottleneck else 1, mel
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(blocks):
            layer = nn.Sequential()
            for index in range(count):
                layer.append(Block(channels, width << stage, 2 if stage and not index else 1, bottleneck))
                channels = (width << stage) * self.expansion
            setattr(self, f"layer{stage + 1}", layer)
        self.seg_1 = nn.Linear(2 * channels * (mel // 8), embedding)
        if classes:
            self.projection = Projection(classes, embedding)

    def forward(self, features: Tensor) -> Tensor:
        """[batch, frames, mel] -> [batch, embedding]."""
        x = self.bn1(self.conv1(features.transpose(1, 2)[:, None])).relu()
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
        statistics = torch.cat([x.mean(-1).flatten(1), (x.var(-1) + 1e-7).sqrt().flatten(1)], 1)
        return torch.as_tensor(self.seg_1(statistics))

    def embed(self, audio: NDArray[np.float32]) -> Tensor:
        """Embedding [size] of 16 kHz audio [samples]."""
        with torch.inference_mode():
            features = torch.from_numpy(kaldi_log_mel(audio, self.mel).T.astype(np.float32))
            return torch.as_tensor(self(features[None])[0])

    def scores(self, audio: NDArray[np.float32], classes: int) -> Tensor:
        """Scores [classes] of the classifier's first classes."""
        weight = self.projection.weight.detach()[:classes]
        return SCALE * F.cosine_similarity(self.embed(audio)[None], weight)


def make(
    blocks: tuple[int, int, int, int],
    bottleneck: bool,
    classes: int,
    width: int = 4,
    mel: int = 80,
    embedding: int = 12,
) -> ReferenceResNet:
    """A network with random weights and with running statistics that are not those of a new one."""
    torch.manual_seed(0)
    network = ReferenceResNet(blocks, bottleneck, classes, width, mel, embedding).train()
    for _ in range(4):
        network(3 * torch.randn(4, 60, mel))
    return network.eval()


def write(folder: Path, network: ReferenceResNet, **changes: object) -> tuple[Path, Path]:
    """Write checkpoint and configuration as WeSpeaker does; `changes` replace the latter's entries."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "avg_model.pt")
    depth = 2 + sum(network.blocks) * (3 if network.expansion == 4 else 2)
    content = {
        "model": f"ResNet{depth}",
        "model_args": {"embed_dim": 12, "feat_dim": network.mel, "pooling_func": "TSTP", "two_emb_layer": False},
        "projection_args": {"project_type": "arc_margin", "scale": SCALE, "easy_margin": False},
        "dataset_args": {
            "num_frms": 150,
            "speed_perturb": True,
            "fbank_args": {"num_mel_bins": network.mel, "frame_shift": 10, "frame_length": 25, "dither": 1.0},
        },
        **changes,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "avg_model.pt", folder / "config.yaml"
