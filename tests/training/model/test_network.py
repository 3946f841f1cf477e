"""The network's parameter names, its sizes, and its promise about padding."""

import dataclasses
from typing import Literal

import pytest
import torch

from speakerlens.training.config import HeadConfig, NetworkConfig
from speakerlens.training.model.inference import for_inference
from speakerlens.training.model.network import SpeakerNetwork, pool_statistics

RESNET34 = NetworkConfig((3, 4, 6, 3), 32, 256)


def wespeaker_names(blocks: tuple[int, ...], convolutions: int = 2) -> set[str]:
    """Names in the state dict of WeSpeaker's ResNet with one embedding layer, written out from its definition.

    A block has two convolutions, a bottleneck three.
    """

    def norm(name: str) -> set[str]:
        return {f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}

    names = {"conv1.weight", "seg_1.weight", "seg_1.bias"} | norm("bn1")
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            for number in range(1, convolutions + 1):
                names |= {f"{prefix}.conv{number}.weight"} | norm(f"{prefix}.bn{number}")
            if block == 0 and (stage > 1 or convolutions == 3):
                names |= {f"{prefix}.shortcut.0.weight"} | norm(f"{prefix}.shortcut.1")
    return names


def test_resnet34_has_the_names_and_size_of_wespeaker() -> None:
    encoder = SpeakerNetwork(RESNET34, HeadConfig(), 10).encoder
    assert set(encoder.state_dict()) == wespeaker_names((3, 4, 6, 3))
    assert sum(p.numel() for p in encoder.parameters()) == 6_634_336  # "6.6 M" in WeSpeaker's tables
    assert encoder.seg_1.weight.shape == (256, 2 * 256 * 10)


def test_resnet50_has_the_names_and_size_of_wespeaker() -> None:
    encoder = SpeakerNetwork(dataclasses.replace(RESNET34, block="bottleneck"), HeadConfig(), 10).encoder
    assert set(encoder.state_dict()) == wespeaker_names((3, 4, 6, 3), convolutions=3)
    assert sum(p.numel() for p in encoder.parameters()) == 11_131_360  # "11.13 M" in WeSpeaker's tables
    assert encoder.seg_1.weight.shape == (256, 2 * 4 * 256 * 10)
    strides = [encoder.get_submodule(f"layer2.0.conv{number}").stride for number in (1, 2, 3)]
    assert strides == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_copy_for_inference_has_the_same_outputs(block: Literal["basic", "bottleneck"]) -> None:
    torch.manual_seed(0)
    network = SpeakerNetwork(NetworkConfig((1, 1, 2, 1), 4, 8, block=block), HeadConfig(), 5)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training: no two channels are normalised alike
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                assert values is not None
                torch.nn.init.uniform_(values, 0.5, 1.5)
    network.eval()
    copied = for_inference(network)
    audio, lengths = 0.1 * torch.randn(3, 12_000), torch.tensor([12_000, 9000, 5000])
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in copied.modules())
    with torch.no_grad():
        for ours, theirs in zip(copied(audio, lengths), network(audio, lengths), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_statistics_are_those_of_the_valid_columns() -> None:
    x = torch.randn(2, 3, 4, 9, generator=torch.Generator().manual_seed(0))
    x[1, :, :, 5:] = 0
    pooled = pool_statistics(x, torch.tensor([9, 5]))
    for row, count in enumerate((9, 5)):
        valid = x[row, :, :, :count]
        expected = torch.cat([valid.mean(-1).flatten(), (torch.var(valid, dim=-1) + 1e-7).sqrt().flatten()])
        torch.testing.assert_close(pooled[row], expected)


def test_deviation_of_one_column_is_zero() -> None:
    pooled = pool_statistics(torch.ones(1, 2, 3, 1), torch.tensor([1]))
    assert torch.isfinite(pooled).all()
    assert pooled[0, 6:].max() < 1e-3


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("kind", ["aam", "softmax"])
def test_output_does_not_depend_on_the_batch(
    kind: Literal["aam", "softmax"], block: Literal["basic", "bottleneck"]
) -> None:
    torch.manual_seed(0)
    network = SpeakerNetwork(NetworkConfig((1, 2, 1, 1), 4, 8, 20, block), HeadConfig(kind=kind), 5)
    network.train()
    for _ in range(3):
        network(0.1 * torch.randn(4, 8000))  # gives batch normalisation statistics of its own
    network.eval()
    lengths = torch.tensor([8000, 3111, 5555])
    audio = 0.1 * torch.randn(3, 8000)
    together, _ = network(audio, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, _ = network(audio[row : row + 1, :length])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)
