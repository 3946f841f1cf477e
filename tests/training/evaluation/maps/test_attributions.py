"""Attribution methods against derivatives, captum, and utterances explained alone."""

from pathlib import Path

import pytest
import torch
from captum.attr import InputXGradient

from speakerlens.training.checkpoint import load_run
from speakerlens.training.evaluation.maps.attributions import (
    ENERGY,
    FUSED,
    FUSIONS,
    GRAD_CAM_PLUS_PLUS,
    GRADIENT_X_INPUT,
    METHODS,
    RANDOM,
    RANDOM_COARSE,
    attribute,
    fuse,
    grad_cam_plus_plus,
    random_maps,
)
from speakerlens.training.model.network import STAGES, SpeakerNetwork
from speakerlens.training.model.saliency import display, fused, layercam


@pytest.fixture(scope="module")
def network(toy_runs: dict[str, Path]) -> SpeakerNetwork:
    return load_run(toy_runs["act-da"]).network


@pytest.fixture(scope="module")
def audio() -> torch.Tensor:
    return 0.1 * torch.randn(2, 12_000, generator=torch.Generator().manual_seed(0))


def test_grad_cam_plus_plus_matches_autograd() -> None:
    """Equation 19: alpha = d2Y / (2 d2Y + sum(A) d3Y), Y = exp(S), here with S linear, by three rounds of autograd."""
    generator = torch.Generator().manual_seed(0)
    activation = torch.rand(1, 2, 2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(1, 2, 2, 3, generator=generator, dtype=torch.float64)
    score = torch.exp((weight * activation).sum())
    (first,) = torch.autograd.grad(score, activation, create_graph=True)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for k in range(2):
        total = torch.zeros((), dtype=torch.float64)
        for i in range(2):
            for j in range(3):
                (row,) = torch.autograd.grad(first[0, k, i, j], activation, create_graph=True)
                second = row[0, k, i, j]
                (third,) = torch.autograd.grad(second, activation, retain_graph=True)
                alpha = second / (2 * second + activation[0, k].sum() * third[0, k, i, j])
                total = total + alpha * first[0, k, i, j].relu()
        expected = expected + total * activation[0, k]
    found = grad_cam_plus_plus(weight, activation.detach())[0]
    torch.testing.assert_close(found * score.detach(), expected.relu().detach())


def test_grad_cam_plus_plus_of_zeros_is_zero() -> None:
    assert not grad_cam_plus_plus(torch.zeros(1, 2, 3, 3), torch.rand(1, 2, 3, 3)).any()


def test_layercam_is_that_of_the_reference(network: SpeakerNetwork, audio: torch.Tensor) -> None:
    features, frames = network.front_end(audio)
    found, reference = attribute(network, features, frames, False), layercam(network, audio)
    mel, width = features.shape[1:]
    for stage, stage_map, columns in zip(STAGES, reference.maps, reference.columns, strict=True):
        torch.testing.assert_close(found.maps[stage], display(stage_map, columns, frames, mel, width))
    torch.testing.assert_close(found.maps[FUSED], fused(reference))
    torch.testing.assert_close(fuse(found.maps, (0, 3)), (found.maps["s1"] + found.maps["s4"]) / 2)


def test_gradient_x_input_agrees_with_captum(network: SpeakerNetwork, audio: torch.Tensor) -> None:
    features, frames = network.front_end(audio)
    target = torch.tensor([2, 0])

    def score(inputs: torch.Tensor) -> torch.Tensor:
        return network.logits(network.encoder(inputs, frames, masked=False).embedding)

    expected = InputXGradient(score).attribute(features.clone().requires_grad_(), target=target)
    found = attribute(network, features, frames, False, target).maps[GRADIENT_X_INPUT]
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)


def test_a_map_does_not_depend_on_its_batch(network: SpeakerNetwork, audio: torch.Tensor) -> None:
    lengths = torch.tensor([12_000, 8_000])
    features, frames = network.front_end(audio, lengths)
    together = attribute(network, features, frames, True)
    drawn = random_maps(together.saliency, [5, 6])
    alone_features, alone_frames = network.front_end(audio[1:, :8_000])
    alone = attribute(network, alone_features, alone_frames, False)
    count = int(alone_frames)
    for name, expected in {**alone.maps, **random_maps(alone.saliency, [6])}.items():
        found = {**together.maps, **drawn}[name][1]
        assert not found[:, count:].any()
        assert (found[:, :count] - expected[0]).norm() <= 1e-3 * expected.norm(), name


def test_random_maps_depend_on_their_seed_only(network: SpeakerNetwork, audio: torch.Tensor) -> None:
    features, frames = network.front_end(audio)
    saliency = attribute(network, features, frames, False).saliency
    first, again = random_maps(saliency, [1, 2]), random_maps(saliency, [1, 3])
    for name in (RANDOM, RANDOM_COARSE):
        assert torch.equal(first[name][0], again[name][0])
        assert not torch.equal(first[name][1], again[name][1])


def test_all_fusions_of_four_stages() -> None:
    assert len(FUSIONS) == 15
    assert FUSIONS["s2+s3+s4"] == (1, 2, 3)
    assert FUSIONS["s1"] == (0,)
    assert set(METHODS) == {*STAGES, FUSED, GRAD_CAM_PLUS_PLUS, GRADIENT_X_INPUT, ENERGY, RANDOM, RANDOM_COARSE}
