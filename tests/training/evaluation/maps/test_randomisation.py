"""What each step of the cascade randomises, and that the maps show it."""

import numpy as np
import pytest
import torch

from speakerlens.training.checkpoint import Run
from speakerlens.training.evaluation.maps.probes import Probes
from speakerlens.training.evaluation.maps.randomisation import INPUT, MAPS, STEPS, cascade, prepare, randomisation


def test_each_step_randomises_one_more_part(toy_run: Run) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    original = {name: value.clone() for name, value in toy_run.network.state_dict().items()}
    steps = cascade(toy_run.network)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, original[name]) for name, value in toy_run.network.state_dict().items())
    prefixes = {"head": "head.", "embedding": "encoder.seg_1.", "stem": "encoder.conv1."}
    prefixes |= {f"s{stage}": f"encoder.layer{stage}." for stage in (1, 2, 3, 4)}
    drawn: tuple[str, ...] = ()
    last = None
    for step in STEPS:
        drawn += (prefixes[step],)
        found = steps[step].state_dict()
        for name, value in found.items():
            if name.endswith("weight") and value.dim() > 1:
                assert torch.equal(value, original[name]) != name.startswith(drawn), (step, name)
                if last is not None and name.startswith(drawn[:-1]):
                    assert torch.equal(value, last[name]), (step, name)  # what an earlier step drew
        last = found
        assert not steps[step].training
    assert last is not None
    for name, value in last.items():
        if name.endswith("running_mean"):
            assert not value.any(), name
        if name.endswith("running_var"):
            assert (value == 1).all(), name


def test_similarity_of_equal_reversed_and_constant_maps() -> None:
    one = torch.rand(10, 20, generator=torch.Generator().manual_seed(0))
    assert prepare(one).similarity(prepare(one)) == pytest.approx((1.0, 1.0))
    correlation, similarity = prepare(one).similarity(prepare(-one))
    assert correlation == pytest.approx(-1.0)
    assert similarity < 0
    assert np.isnan(prepare(one).similarity(prepare(torch.zeros(10, 20)))).all()


def test_maps_change_with_the_weights(toy_run: Run, toy_probes: Probes) -> None:
    found = randomisation({"toy": toy_run.network}, toy_probes, lambda done, total: None)
    assert [(row.step, row.map) for row in found] == [(step, name) for step in (*STEPS, INPUT) for name in MAPS]
    for row in found:
        assert len(row.rank_correlation) == len(row.similarity) == len(toy_probes.clips)
        assert np.nanmean(row.rank_correlation) < 0.999, (row.step, row.map)
    again = randomisation({"toy": toy_run.network}, toy_probes, lambda done, total: None)
    for row, same in zip(found, again, strict=True):
        assert row.similarity == pytest.approx(same.similarity, abs=1e-6, nan_ok=True)


def test_identical_weights_give_similarity_one(
    toy_run: Run, toy_probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = toy_run.network
    monkeypatch.setattr(
        "speakerlens.training.evaluation.maps.randomisation.cascade", lambda _: dict.fromkeys(STEPS, network)
    )
    for row in randomisation({"toy": network}, toy_probes, lambda done, total: None):
        if row.step != INPUT:
            assert row.rank_correlation == pytest.approx([1.0] * len(toy_probes.clips), abs=1e-6, nan_ok=True)
            assert row.similarity == pytest.approx([1.0] * len(toy_probes.clips), abs=1e-4, nan_ok=True)
