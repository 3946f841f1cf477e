import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from speakerlens.training.config import Distance, HeadConfig, NetworkConfig, ObjectiveConfig
from speakerlens.training.errors import UserError
from speakerlens.training.model.network import SpeakerNetwork
from speakerlens.training.model.objectives import align, compute_loss, distance
from speakerlens.training.variants import VARIANTS, find_variant

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
def test_distance_equals_its_formula(shape: tuple[int, ...], kind: Distance) -> None:
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


def leaf(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(math.prod(shape))).requires_grad_()


@pytest.mark.parametrize("clean_gradient", [False, True])
def test_clean_side_gets_a_gradient_only_if_configured(clean_gradient: bool) -> None:
    clean, copy = leaf(4, 5), leaf(4, 5, 2)[..., 0]
    copy.retain_grad()
    align([(clean, copy)], ObjectiveConfig(clean_gradient=clean_gradient)).sum().backward()  # type: ignore[no-untyped-call]
    assert copy.grad is not None
    assert copy.grad.abs().sum() > 0
    assert (clean.grad is not None) == clean_gradient


def test_alignment_is_the_mean_over_the_chosen_activations() -> None:
    rows = [leaf(4, 1, 8, 6), leaf(4, 8, 1, 6), leaf(4, 10)]
    by_hand = np.mean([written_out(*halves(both), "l1") for both in rows], axis=0)
    computed = align([(both[:2], both[2:]) for both in rows], ObjectiveConfig(distance="l1"))
    np.testing.assert_allclose(computed.detach().numpy(), by_hand, rtol=1e-5)


@pytest.fixture
def network() -> SpeakerNetwork:
    torch.manual_seed(1)
    return SpeakerNetwork(NetworkConfig((1, 1, 1, 1), 2, 8, 16), HeadConfig("softmax"), 3)


NONE = torch.zeros(0, 4800)


def by_hand(network: SpeakerNetwork, embedding: Tensor, labels: Tensor) -> NDArray[np.float64]:
    scores = network.logits(embedding).detach().double().numpy()
    log_softmax = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    cross_entropy: NDArray[np.float64] = -log_softmax[np.arange(len(labels)), labels]
    return cross_entropy


def test_loss_of_pairs_is_cross_entropy_plus_alignment(network: SpeakerNetwork) -> None:
    audio, labels = torch.randn(6, 4800) * 0.1, torch.tensor([0, 1, 2, 0, 1, 2])
    loss = compute_loss(network, audio, labels, NONE, VARIANTS["act-pair"], ObjectiveConfig(weight=3.0), 0.0)
    embedding = network.activations(audio).embedding
    cross_entropy = by_hand(network, embedding, labels)
    pairs = written_out(*halves(embedding), "mse")
    np.testing.assert_allclose(loss.cross_entropy.detach().numpy(), cross_entropy, rtol=1e-4)
    np.testing.assert_allclose(loss.alignment.detach().numpy(), pairs, rtol=1e-4)
    assert loss.total.item() == pytest.approx(cross_entropy.mean() + 3.0 * np.mean(pairs), rel=1e-4)
    assert loss.correct.tolist() == (network.logits(embedding).argmax(dim=1) == labels).tolist()


def test_copies_are_aligned_with_separate_originals(network: SpeakerNetwork) -> None:
    audio, labels = torch.randn(5, 4800) * 0.1, torch.tensor([0, 1, 2, 0, 1])
    originals = audio[:2] + 0.1 * torch.randn(2, 4800)
    objective = ObjectiveConfig(align=("s4", "embedding"), weight=3.0)
    loss = compute_loss(network, audio, labels, originals, VARIANTS["act-da"], objective, 0.0)
    copies, clean_side = network.activations(audio), network.activations(originals)
    distances = [
        written_out(clean.detach().double().numpy(), copy[:2].detach().double().numpy(), "mse")
        for clean, copy in ((clean_side.stages[3], copies.stages[3]), (clean_side.embedding, copies.embedding))
    ]
    np.testing.assert_allclose(loss.alignment.detach().numpy(), np.mean(distances, axis=0), rtol=1e-4)
    expected = by_hand(network, copies.embedding, labels).mean() + 3.0 * np.mean(distances)
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)


def test_originals_as_fixed_target_have_no_gradient(network: SpeakerNetwork) -> None:
    audio, labels, originals = torch.randn(4, 4800) * 0.1, torch.tensor([0, 1, 2, 0]), torch.randn(2, 4800) * 0.1
    gradients = []
    for clean_gradient in (False, True):
        network.zero_grad()
        objective = ObjectiveConfig(weight=10.0, clean_gradient=clean_gradient)
        loss = compute_loss(network, audio, labels, originals, VARIANTS["act-da"], objective, 0.0)
        loss.total.backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert not torch.allclose(gradients[0], gradients[1])


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if not variant.aligned])
def test_other_variants_do_not_align(network: SpeakerNetwork, name: str) -> None:
    audio, labels = torch.randn(4, 4800) * 0.1, torch.tensor([0, 1, 0, 1])
    loss = compute_loss(network, audio, labels, NONE, VARIANTS[name], ObjectiveConfig(weight=100.0), 0.0)
    assert len(loss.alignment) == 0
    assert loss.total.item() == pytest.approx(loss.cross_entropy.mean().item())


def test_margin_reaches_the_loss() -> None:
    torch.manual_seed(1)
    network = SpeakerNetwork(NetworkConfig((1, 1, 1, 1), 2, 8, 16), HeadConfig("aam"), 3)
    audio, labels = torch.randn(3, 4800) * 0.1, torch.tensor([0, 1, 2])
    clean = VARIANTS["clean"]
    without, with_margin = (
        compute_loss(network, audio, labels, NONE, clean, ObjectiveConfig(), margin) for margin in (0.0, 0.2)
    )
    assert (with_margin.cross_entropy > without.cross_entropy).all()
    assert with_margin.correct.tolist() == without.correct.tolist()


def test_controls_differ_in_one_property() -> None:
    act_pair, pair, da, double = (VARIANTS[name] for name in ("act-pair", "da-pair", "da", "da-2x"))
    assert (pair.crops, pair.copies, pair.aligned) == (act_pair.crops, act_pair.copies, False)
    assert (double.crops, double.copies, double.aligned) == (2 * da.crops, da.copies, da.aligned)


def test_passes_of_an_update() -> None:
    """A row costs 1 forward and 2 back, an original that is only listened to 1: three thirds of a pass, and one."""
    passes = {name: variant.passes(0.5) for name, variant in VARIANTS.items()}
    assert passes == {
        "clean": 1,
        "da": 1,
        "act-da": pytest.approx(1.75 + 1.75 * 0.5 / 3),
        "act-pair": 2,
        "da-pair": 2,
        "da-2x": 2,
    }


def test_clean_gradient_costs_a_backward_pass() -> None:
    """Only where the originals are not in the batch anyway: a pair learns from both of its sides as it is."""
    forward_only, back_too = (
        {name: variant.passes(0.8, clean_gradient) for name, variant in VARIANTS.items()}
        for clean_gradient in (False, True)
    )
    assert forward_only.pop("act-da") == pytest.approx(1.75 + 0.8 * 1.75 / 3)
    assert back_too.pop("act-da") == pytest.approx(1.75 + 0.8 * 1.75)
    assert back_too == forward_only


def test_unknown_variant_is_refused_with_the_list() -> None:
    there_are = "the variants are clean, da, act-da, act-pair, da-pair, da-2x"
    with pytest.raises(UserError, match=f'unknown variant "dada"; {there_are}'):
        find_variant("dada")
