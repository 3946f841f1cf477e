"""Classification heads: from the speaker embedding to one score per speaker."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerlens.training.config import HeadConfig


class AAMHead(nn.Module):
    """Additive-angular-margin softmax (Deng et al., "ArcFace", CVPR 2019).

    The score of a speaker is `scale x cos(angle between embedding and the speaker's weight)`; in training, the angle to
    the true speaker is widened by a margin.
    """

    def __init__(self, embedding: int, classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(classes, embedding))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial weights, as torch's own layers do under this name."""
        nn.init.xavier_uniform_(self.weight)

    def forward(self, embedding: Tensor) -> Tensor:
        """Scores without margin, [batch, embedding] -> [batch, classes]."""
        return self.scale * self._cosine(embedding)

    def training_logits(self, embedding: Tensor, labels: Tensor, margin: float) -> Tensor:
        """Scores with the margin (radians) applied to each row's true class `labels` [batch]."""
        cosine = self._cosine(embedding)
        sine = (1.0 - cosine * cosine).clamp_min(1e-7).sqrt()
        widened = cosine * math.cos(margin) - sine * math.sin(margin)
        # Past pi the cosine would rise again; a straight line continues it from there, so that the penalty never falls.
        limit = math.cos(math.pi - margin)
        widened = torch.where(cosine > limit, widened, cosine - 1.0 - limit)
        is_target = F.one_hot(labels, cosine.shape[1]).bool()
        return self.scale * torch.where(is_target, widened, cosine)

    def _cosine(self, embedding: Tensor) -> Tensor:
        # In float32 even under autocast: the margin acts on differences that bfloat16 cannot hold.
        with torch.autocast(embedding.device.type, enabled=False):
            return F.linear(F.normalize(embedding.float()), F.normalize(self.weight))


class SoftmaxHead(nn.Module):
    """Plain softmax: an affine map of the embedding."""

    scale = 1.0

    def __init__(self, embedding: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding, classes)

    def forward(self, embedding: Tensor) -> Tensor:
        """Scores, [batch, embedding] -> [batch, classes]."""
        logits: Tensor = self.linear(embedding)
        return logits.float()

    def training_logits(self, embedding: Tensor, labels: Tensor, margin: float) -> Tensor:
        """The same scores: plain softmax knows no margin."""
        return self(embedding)  # type: ignore[no-any-return]


def make_head(config: HeadConfig, embedding: int, classes: int) -> AAMHead | SoftmaxHead:
    """The head that the configuration names."""
    if config.kind == "aam":
        return AAMHead(embedding, classes, config.scale)
    return SoftmaxHead(embedding, classes)
