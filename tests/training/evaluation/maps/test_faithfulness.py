"""Curves of a toy run against explicit masking; ranking of made-up results."""

from collections.abc import Sequence

import pytest
import torch

from speakerlens.training.checkpoint import Run
from speakerlens.training.evaluation.conditions import CLEAN, Condition, mixtures
from speakerlens.training.evaluation.maps.attributions import METHODS, attribute
from speakerlens.training.evaluation.maps.curves import local_mean, order
from speakerlens.training.evaluation.maps.faithfulness import BINS, CELLS, Curve, Faithfulness, Masking, faithfulness
from speakerlens.training.evaluation.maps.probes import Probes
from speakerlens.training.evaluation.maps.ranking import rank, recommend
from speakerlens.training.model.network import SpeakerNetwork

SHARES = (0.0, 0.3, 1.0)


def probability(network: SpeakerNetwork, features: torch.Tensor, label: int) -> float:
    with torch.no_grad():
        logits = network.logits(network.encoder(features[None], torch.tensor([features.shape[1]]), False).embedding)
    return float(logits.softmax(dim=1)[0, label])


@pytest.mark.parametrize("cell", [BINS, CELLS])
def test_curves_are_those_of_masking_by_hand(toy_run: Run, toy_probes: Probes, cell: tuple[int, int]) -> None:
    network, methods = toy_run.network, ("s3", "s1+s4")
    conditions = (CLEAN, Condition("noise", 5.0))
    networks = {"toy": network}
    found = faithfulness(networks, toy_probes, conditions, lambda done, total: None, methods, Masking(SHARES, cell))
    assert [(row.kind, row.method) for row in found] == [(c.kind, m) for c in conditions for m in methods]
    for condition in conditions:
        rows = {row.method: row for row in found if row.kind == condition.kind}
        areas: dict[str, list[tuple[float, float]]] = {m: [(0.0, 0.0)] * len(toy_probes.clips) for m in methods}
        for batch in mixtures(toy_probes.corpus, "test", toy_run.speakers, [condition], 1, toy_probes.clips):
            at, label = int(batch.indices), int(batch.labels)
            features, frames = network.front_end(batch.mixture.audio)
            maps = attribute(network, features, frames, False, batch.labels).maps
            inputs, fill = features[0], local_mean(features[0])
            whole, nothing = probability(network, inputs, label), probability(network, fill, label)
            for method, stage_map in (("s3", maps["s3"][0]), ("s1+s4", (maps["s1"][0] + maps["s4"][0]) / 2)):
                top = order(stage_map, cell, at) < round(0.3 * inputs.numel())
                without = probability(network, torch.where(top, fill, inputs), label)
                only = probability(network, torch.where(top, inputs, fill), label)
                areas[method][at] = (
                    0.15 * (whole + without) + 0.35 * (without + nothing),
                    0.15 * (nothing + only) + 0.35 * (only + whole),
                )
        for method, row in rows.items():
            assert row.deletion.areas == pytest.approx([a for a, _ in areas[method]], abs=2e-4)
            assert row.insertion.areas == pytest.approx([a for _, a in areas[method]], abs=2e-4)
            assert row.deletion.probability[0] == row.insertion.probability[-1]
            assert row.deletion.logit[-1] == row.insertion.logit[0]


def test_all_methods_are_measured_by_default(toy_run: Run, toy_probes: Probes) -> None:
    masking = Masking(SHARES)
    found = faithfulness({"toy": toy_run.network}, toy_probes, [CLEAN], lambda done, total: None, masking=masking)
    assert tuple(row.method for row in found) == METHODS
    assert {row.cell for row in found} == {CELLS}
    assert {row.deletion.probability[0] for row in found} == {found[0].deletion.probability[0]}


def result(method: str, deletion: Sequence[float], insertion: Sequence[float], network: str = "a") -> Faithfulness:
    curves = (Curve((), (), tuple(areas), ()) for areas in (deletion, insertion))
    return Faithfulness(network, "clean", None, method, CELLS, SHARES, *curves)


def test_the_most_faithful_comes_first() -> None:
    results = [
        result("s1", [0.5, 0.7], [0.6, 0.8]),
        result("s1", [0.3, 0.5], [0.6, 0.8], "b"),
        result("s2+s4", [0.1, 0.2], [0.8, 0.9]),
        result("s2+s4", [0.2, 0.3], [0.8, 0.9], "b"),
        result("energy", [0.0, 0.0], [1.0, 1.0]),
        result("energy", [0.0, 0.0], [1.0, 1.0], "b"),
    ]
    ranked = rank(results)
    assert [row.method for row in ranked] == ["energy", "s2+s4", "s1"]
    assert (ranked[1].deletion, ranked[1].insertion) == pytest.approx((0.2, 0.85))
    assert ranked[1].faithfulness == pytest.approx(0.65)
    assert ranked[1].behind == pytest.approx(0.35)
    assert ranked[1].interval == pytest.approx((0.65, 0.65))  # both utterances gain as much
    assert (ranked[0].behind, ranked[0].behind_interval) == (0.0, (0.0, 0.0))
    assert recommend(results) == (1, 3)


def test_methods_measured_on_different_networks_are_not_ranked() -> None:
    with pytest.raises(ValueError, match="same networks"):
        rank([result("s1", [0.5], [0.5]), result("s2", [0.5], [0.5], "b")])
    with pytest.raises(ValueError, match="same networks"):
        rank([])
