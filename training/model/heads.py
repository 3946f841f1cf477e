"""Classification heads: from the speaker embedding to one logit per speaker."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerlens.training.config import HeadConfig


class AAMHead(nn.Module):
    """Additive-angular-margin softmax (Deng et al., "ArcFace", CVPR 2019).

    A speaker's logit is `scale x cos(angle between embedding and the speaker's weight)`; in training, a margin is added
    to the angle of the true speaker.
    """

    def __init__(self, embedding: int, classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(classes, embedding))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights."""
        nn.init.xavier_uniform_(self.weight)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return logits without margin, [batch, embedding] -> float32 [batch, classes]."""
        return self.scale * self._cosine(embedding)

    def training_logits(self, embedding: Tensor, labels: Tensor, margin: float) -> Tensor:
        """Return logits [batch, classes] with the margin (radians) on each row's true class `labels` [batch]."""
        cosine = self._cosine(embedding)
        sine = (1.0 - cosine * cosine).clamp_min(1e-7).sqrt()
        widened = cosine * math.cos(margin) - sine * math.sin(margin)
        # Beyond pi the cosine rises again; it is continued linearly, so that the penalty is monotonic.
        limit = math.cos(math.pi - margin)
        widened = torch.where(cosine > limit, widened, cosine - 1.0 - limit)
        is_target = F.one_hot(labels, cosine.shape[1]).bool()
        return self.scale * torch.where(is_target, widened, cosine)

    def _cosine(self, embedding: Tensor) -> Tensor:
        # In float32 even under autocast: bfloat16 cannot represent the differences that the margin makes.
        with torch.autocast(embedding.device.type, enabled=False):
            return F.linear(F.normalize(embedding.float()), F.normalize(self.weight))


class SoftmaxHead(nn.Module):
    """Softmax head: an affine map of the embedding."""

    scale = 1.0

    def __init__(self, embedding: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding, classes)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return logits, [batch, embedding] -> float32 [batch, classes]."""
        logits: Tensor = self.linear(embedding)
        return logits.float()

    def training_logits(self, embedding: Tensor, labels: Tensor, margin: float) -> Tensor:
        """Return the same logits; softmax has no margin."""
        return self(embedding)  # type: ignore[no-any-return]


class NoHead(nn.Module):
    """No head: an imported network that only embeds has no speakers of its own, and no logits."""

    scale = 1.0

    def forward(self, embedding: Tensor) -> Tensor:
        """Return no logits, [batch, embedding] -> float32 [batch, 0]."""
        return embedding[:, :0].float()

    def training_logits(self, embedding: Tensor, labels: Tensor, margin: float) -> Tensor:
        """Return no logits either."""
        return self(embedding)  # type: ignore[no-any-return]


def make_head(config: HeadConfig, embedding: int, classes: int) -> AAMHead | SoftmaxHead | NoHead:
    """Return the configured head; without classes there is none."""
    if classes == 0:
        return NoHead()
    if config.kind == "aam":
        return AAMHead(embedding, classes, config.scale)
    return SoftmaxHead(embedding, classes)
