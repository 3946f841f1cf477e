"""Residual blocks with folded batch normalisation, and their gradients as plain forward operators."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speakerlens.training.model.network import BasicBlock, Bottleneck, Tap


class FoldedBlock(nn.Module):
    """Common part of both kinds of block: the tap and the shortcut.

    `tap` says whether a saliency map is taken at the block's input, its output, or (None) nowhere.
    """

    stride: Final[int]
    projects: Final[bool]
    maps_input: Final[bool]
    maps_output: Final[bool]

    def __init__(self, block: BasicBlock | Bottleneck, tap: Tap | None) -> None:
        super().__init__()
        self.maps_input = tap == "last-block-input"
        self.maps_output = tap == "stage-output"
        self.stride = block.stride
        self.projects = len(block.shortcut) > 0
        self.shortcut: nn.Identity | nn.Conv2d = nn.Identity()
        if self.projects:
            convolution, normalisation = block.shortcut
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(normalisation, nn.BatchNorm2d)
            self.shortcut = fold(convolution, normalisation)

    def add_shortcut_gradient(self, main: Tensor, upstream: Tensor) -> Tensor:
        """Add the shortcut's part to the gradient by the block's input.

        Args:
            main: gradient through the convolutions, [batch, channels, rows, columns] of the input.
            upstream: gradient by the block's sum, [batch, channels, rows, columns] of the output.

        Returns:
            [batch, channels, rows, columns] of the input.
        """
        if not self.projects:
            return main + upstream
        weight: Tensor = self.shortcut.weight  # type: ignore[assignment]
        if self.stride == 1:
            return main + F.conv2d(upstream, weight.transpose(0, 1))
        side = F.conv_transpose2d(upstream, weight, stride=2, output_padding=1)
        return main + side[:, :, : main.shape[2], : main.shape[3]]


class FoldedBasicBlock(FoldedBlock):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, block: BasicBlock, tap: Tap | None) -> None:
        super().__init__(block, tap)
        self.conv1 = fold(block.conv1, block.bn1)
        self.conv2 = fold(block.conv2, block.bn2)

    def forward(self, x: Tensor, before: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the hidden activations and the output, all after their ReLU and zero in the padding.

        Args:
            x: [batch, channels, rows, columns].
            before: mask of the input, [batch, 1, 1, columns].
            mask: mask of the output, likewise.
        """
        hidden = F.relu(self.conv1(x)) * mask
        return [hidden], F.relu(self.conv2(hidden) + self.shortcut(x)) * mask

    def gradient(self, upstream: Tensor, hidden: list[Tensor], output: Tensor, rows: int, columns: int) -> Tensor:
        """Return the gradient of the score by the block's input, [batch, channels, rows, columns].

        Args:
            upstream: gradient by the block's output, of its shape.
            hidden: from `forward`.
            output: from `forward`.
            rows: of the input; columns: likewise. A strided convolution maps an odd size and the next even one to the
                same output size.
        """
        # A ReLU passes the gradient where its output is positive; the padding is zero, so it is masked as well.
        upstream = upstream * (output > 0)
        inner = _transposed_3x3(upstream, self.conv2.weight, 1, rows, columns) * (hidden[0] > 0)
        main = _transposed_3x3(inner, self.conv1.weight, self.stride, rows, columns)
        return self.add_shortcut_gradient(main, upstream)


class FoldedBottleneck(FoldedBlock):
    """A 3x3 convolution between two 1x1 ones, and a shortcut."""

    def __init__(self, block: Bottleneck, tap: Tap | None) -> None:
        super().__init__(block, tap)
        self.conv1 = fold(block.conv1, block.bn1)
        self.conv2 = fold(block.conv2, block.bn2)
        self.conv3 = fold(block.conv3, block.bn3)

    def forward(self, x: Tensor, before: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return activations as `FoldedBasicBlock.forward`; the first hidden one has the size of the input."""
        first = F.relu(self.conv1(x)) * before
        second = F.relu(self.conv2(first)) * mask
        return [first, second], F.relu(self.conv3(second) + self.shortcut(x)) * mask

    def gradient(self, upstream: Tensor, hidden: list[Tensor], output: Tensor, rows: int, columns: int) -> Tensor:
        """Return the gradient as `FoldedBasicBlock.gradient`."""
        upstream = upstream * (output > 0)
        inner = F.conv2d(upstream, self.conv3.weight.transpose(0, 1)) * (hidden[1] > 0)
        inner = _transposed_3x3(inner, self.conv2.weight, self.stride, rows, columns) * (hidden[0] > 0)
        main = F.conv2d(inner, self.conv1.weight.transpose(0, 1))
        return self.add_shortcut_gradient(main, upstream)


def fold_block(block: nn.Module, tap: Tap | None) -> FoldedBlock:
    """Return the block with folded batch normalisation; `tap` as in `FoldedBlock`."""
    if isinstance(block, Bottleneck):
        return FoldedBottleneck(block, tap)
    assert isinstance(block, BasicBlock)
    return FoldedBasicBlock(block, tap)


def fold(convolution: nn.Conv2d, normalisation: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution with bias that computes a convolution and its normalisation."""
    fused: nn.Conv2d = torch.nn.utils.fusion.fuse_conv_bn_eval(convolution.eval(), normalisation.eval())
    return fused


def _transposed_3x3(upstream: Tensor, weight: Tensor, stride: int, rows: int, columns: int) -> Tensor:
    """Return the gradient of a padded 3x3 convolution by its input, [batch, channels, rows, columns]."""
    if stride == 1:
        # Equal to a transposed convolution, but faster in the runtimes.
        return F.conv2d(upstream, weight.flip(2, 3).transpose(0, 1), padding=1)
    return F.conv_transpose2d(upstream, weight, stride=2, padding=1, output_padding=1)[:, :, :rows, :columns]
