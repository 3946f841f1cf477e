import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import Distance, HeadConfig, NetworkConfig, ObjectiveConfig
from training.errors import UserError
from training.network import Activations, SpeakerNetwork
from training.objectives import VARIANTS, align, compute_loss, distance, find_variant

SHAPES = [(3, 7), (3, 4, 5, 6)]


def written_out(clean: NDArray[np.float64], copy: NDArray[np.float64], kind: Distance) -> list[float]:
    """The distances of the docstring, one pair and one number at a time."""
    answers = []
    for a, b in zip(clean, copy, strict=True):
        if kind == "cosine":
            columns = [(a.reshape(len(a), -1)[:, i], b.reshape(len(b), -1)[:, i]) for i in range(a[0].size)]
            pairs = columns if a.ndim > 1 else [(a, b)]
            cosines = [math.fsum(x * y) / math.sqrt(math.fsum(x * x) * math.fsum(y * y)) for x, y in pairs]
            answers.append(1 - sum(cosines) / len(cosines))
            continue
        x, y = (v.ravel() / math.sqrt(math.fsum(v.ravel() ** 2) / v.size) for v in (a, b))
        total = sum((p - q) ** 2 if kind == "mse" else abs(p - q) for p, q in zip(x, y, strict=True))
        answers.append(total / a.size)
    return answers


@pytest.mark.parametrize("kind", ["mse", "l1", "cosine"])
@pytest.mark.parametrize("shape", SHAPES, ids=["vector", "stage"])
def test_distance_is_what_it_says(shape: tuple[int, ...], kind: Distance) -> None:
    rng = np.random.default_rng(5)
    clean, copy = rng.standard_normal(shape) + 0.3, rng.standard_normal(shape) * 4
    computed = distance(torch.from_numpy(clean).float(), torch.from_numpy(copy).float(), kind)
    np.testing.assert_allclose(computed.numpy(), written_out(clean, copy, kind), rtol=2e-5)


@pytest.mark.parametrize("kind", ["mse", "l1", "cosine"])
def test_distance_ignores_scale_and_vanishes_on_equals(kind: Distance) -> None:
    clean = torch.rand(2, 3, 4, 5) + 0.1
    assert distance(clean, 7 * clean, kind).abs().max() < 1e-5


def halves(rows: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    clean, copy = rows.detach().double().chunk(2)
    return clean.numpy(), copy.numpy()


def activations(seed: int = 0) -> Activations:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).requires_grad_()

    stages = tuple(leaf(4, 2**stage, 8 // 2**stage, 6) for stage in range(4))
    frames = torch.full((4,), 6)
    return Activations(leaf(4, 8, 6), frames, stages, stages, (frames,) * 4, leaf(4, 10), leaf(4, 5))


@pytest.mark.parametrize("clean_gradient", [False, True])
def test_gradient_reaches_the_clean_side_only_if_asked(clean_gradient: bool) -> None:
    given = activations()
    align(given, ObjectiveConfig(align=("embedding", "s2"), clean_gradient=clean_gradient)).sum().backward()  # type: ignore[no-untyped-call]
    for leaf in (given.embedding, given.stages[1]):
        assert leaf.grad is not None
        clean, copy = leaf.grad.chunk(2)
        assert copy.abs().sum() > 0
        assert (clean.abs().sum() > 0) == clean_gradient
    assert given.stages[0].grad is None
    assert given.statistics.grad is None


def test_alignment_is_the_mean_over_the_chosen_activations() -> None:
    given = activations()
    chosen = {"s1": given.stages[0], "s4": given.stages[3], "statistics": given.statistics}
    by_hand = np.mean([written_out(*halves(t), "l1") for t in chosen.values()], axis=0)
    computed = align(given, ObjectiveConfig(align=("s1", "s4", "statistics"), distance="l1"))
    np.testing.assert_allclose(computed.detach().numpy(), by_hand, rtol=1e-5)


@pytest.fixture
def network() -> SpeakerNetwork:
    torch.manual_seed(1)
    return SpeakerNetwork(NetworkConfig((1, 1, 1, 1), 2, 8, 16), HeadConfig("softmax"), 3)


def test_loss_is_cross_entropy_of_all_rows_plus_weighted_alignment(network: SpeakerNetwork) -> None:
    audio, labels = torch.randn(6, 4800) * 0.1, torch.tensor([0, 1, 2, 0, 1, 2])
    objective = ObjectiveConfig(weight=3.0)
    loss = compute_loss(network, audio, labels, VARIANTS["act-da"], objective, 0.0)
    embedding = network.activations(audio).embedding
    scores = network.logits(embedding).detach().double().numpy()
    log_softmax = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    cross_entropy = -log_softmax[np.arange(6), labels]
    pairs = written_out(*halves(embedding), "mse")
    np.testing.assert_allclose(loss.cross_entropy.detach().numpy(), cross_entropy, rtol=1e-4)
    np.testing.assert_allclose(loss.alignment.detach().numpy(), pairs, rtol=1e-4)
    assert loss.total.item() == pytest.approx(cross_entropy.mean() + 3.0 * np.mean(pairs), rel=1e-4)
    assert loss.correct.tolist() == (scores.argmax(axis=1) == labels.numpy()).tolist()


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "act-da"])
def test_only_act_da_aligns(network: SpeakerNetwork, name: str) -> None:
    audio, labels = torch.randn(4, 4800) * 0.1, torch.tensor([0, 1, 0, 1])
    loss = compute_loss(network, audio, labels, VARIANTS[name], ObjectiveConfig(weight=100.0), 0.0)
    assert len(loss.alignment) == 0
    assert loss.total.item() == pytest.approx(loss.cross_entropy.mean().item())


def test_margin_reaches_the_loss() -> None:
    torch.manual_seed(1)
    network = SpeakerNetwork(NetworkConfig((1, 1, 1, 1), 2, 8, 16), HeadConfig("aam"), 3)
    audio, labels = torch.randn(3, 4800) * 0.1, torch.tensor([0, 1, 2])
    without, with_margin = (
        compute_loss(network, audio, labels, VARIANTS["clean"], ObjectiveConfig(), margin) for margin in (0.0, 0.2)
    )
    assert (with_margin.cross_entropy > without.cross_entropy).all()
    assert with_margin.correct.tolist() == without.correct.tolist()


def test_the_controls_differ_from_what_they_control_in_one_thing() -> None:
    act_da, pair, da, double = (VARIANTS[name] for name in ("act-da", "da-pair", "da", "da-2x"))
    assert (pair.crops, pair.copies, pair.aligned) == (act_da.crops, act_da.copies, False)
    assert (double.crops, double.copies, double.aligned) == (2 * da.crops, da.copies, da.aligned)


def test_an_unknown_variant_is_named_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r'no variant "dada"; the variants are clean, da, act-da, da-pair, da-2x'):
        find_variant("dada")
