"""Spectra of known maps, and of a toy run against autograd and numpy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from speakerlens.training.checkpoint import Run
from speakerlens.training.evaluation.conditions import CLEAN, mixtures
from speakerlens.training.evaluation.maps.probes import Probes
from speakerlens.training.evaluation.maps.spectrum import cell_spread, grid_decibels, map_spectra, stretches_power
from speakerlens.training.model.network import SpeakerNetwork
from speakerlens.training.model.saliency import layercam

ROWS, COLUMNS = 20, 64


def checkerboard() -> np.ndarray:
    return np.power(-1.0, np.add.outer(np.arange(ROWS), np.arange(COLUMNS)))


def stripes(axis: int) -> np.ndarray:
    line = np.power(-1.0, np.arange((ROWS, COLUMNS)[axis]))
    return np.broadcast_to(line[:, None] if axis == 0 else line, (ROWS, COLUMNS))


def blob() -> np.ndarray:
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    bump: np.ndarray = np.exp(-((rows - 8) ** 2) / 30 - (columns - 30) ** 2 / 200)
    return bump


def test_period_two_is_in_the_corners() -> None:
    for pattern, corner in ((checkerboard(), (0, 32)), (stripes(0), (0, 0)), (stripes(1), (ROWS // 2, 32))):
        power, count = stretches_power(5.0 + pattern, COLUMNS)
        assert count == 1
        assert power[corner] == pytest.approx(1.0)
        assert power.sum() == pytest.approx(1.0)


def test_a_slow_wave_is_at_its_frequency() -> None:
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    power, _ = stretches_power(np.cos(2 * np.pi * (3 * rows / ROWS + 8 * columns / COLUMNS)), COLUMNS)
    assert np.argwhere(power == power.max()).tolist() == [[ROWS // 2 + 3, 8]]


def test_constant_stretches_are_left_out() -> None:
    long = np.concatenate([checkerboard(), np.ones((ROWS, COLUMNS)), blob(), blob()[:, :10]], axis=1)
    power, count = stretches_power(long, COLUMNS)
    assert count == 2
    expected = stretches_power(checkerboard(), COLUMNS)[0] + stretches_power(blob(), COLUMNS)[0]
    np.testing.assert_allclose(power, expected, atol=1e-12)


def test_grid_decibels_follow_its_power() -> None:
    """White noise of variance 1 and a checkerboard of height h: h^2 N beside 1 in the corner bin, before the mean."""
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal((ROWS, COLUMNS)) for _ in range(200)]
    flat = sum(stretches_power(n, COLUMNS)[0] for n in noise)
    assert grid_decibels(np.asarray(flat)) == pytest.approx(0.0, abs=0.15)
    height = 0.2
    gridded = sum(stretches_power(n + height * checkerboard(), COLUMNS)[0] for n in noise)
    # A corner takes in a sixteenth of a cycle, here 3 rows (of which 2 stand at the other end) and 5 columns. Three
    # corners are averaged, one has the grid.
    in_corner = height**2 * ROWS * COLUMNS / 15
    assert grid_decibels(np.asarray(gridded)) == pytest.approx(10 * math.log10((3 + in_corner) / 3), abs=0.3)


def test_a_smooth_map_has_no_grid_and_a_modulated_one_has() -> None:
    smooth, _ = stretches_power(blob(), COLUMNS)
    modulated, _ = stretches_power(blob() * (1 + 0.5 * stripes(0)) * (1 + 0.5 * stripes(1)), COLUMNS)
    assert grid_decibels(smooth) < 0
    assert grid_decibels(modulated) > 6


def test_spread_by_hand() -> None:
    cells = np.tile([[1.0, 2.0], [3.0, 2.0]], (3, 4))
    assert cell_spread(np.pad(cells, ((0, 1), (0, 1)))) == pytest.approx((3 - 1) / 2)
    assert cell_spread(np.ones((4, 6))) == 0.0
    assert math.isnan(cell_spread(np.zeros((4, 6))))


def test_spectra_of_a_toy_run(toy_run: Run, toy_probes: Probes) -> None:
    found = {(s.stage, s.tap): s for s in map_spectra({"toy": toy_run.network}, toy_probes, lambda done, total: None)}
    # Its stages have one block each, and that block's input is the stage before.
    assert set(found) == {(f"s{stage}", "stage-output") for stage in (1, 2, 3, 4)}
    assert all(spectrum.used for spectrum in found.values())
    power = []
    for batch in mixtures(toy_probes.corpus, "test", toy_run.speakers, [CLEAN], 1, toy_probes.clips):
        stage_map = layercam(toy_run.network, batch.mixture.audio, None, batch.labels).maps[0][0].numpy()
        whole = np.abs(np.fft.fft2(stage_map[:, :64] - stage_map[:, :64].mean())) ** 2
        half = np.roll(whole, 8, axis=0)[:, :33]
        power.append(half / half.sum())
    np.testing.assert_allclose(found["s1", "stage-output"].power, np.mean(power, axis=0), rtol=2e-2, atol=1e-5)
    for spectrum in found.values():
        assert len(spectrum.power) == {"s1": 16, "s2": 8, "s3": 4, "s4": 2}[spectrum.stage]
        assert torch.tensor(spectrum.power).sum() == pytest.approx(1.0, abs=1e-2)


def test_a_stage_of_two_blocks_has_two_taps(toy_run: Run, toy_probes: Probes) -> None:
    torch.manual_seed(0)
    network = SpeakerNetwork(replace(toy_run.config.network, blocks=(1, 2, 1, 1)), toy_run.config.head, 3).eval()
    found = {(s.stage, s.tap): s for s in map_spectra({"new": network}, toy_probes, lambda done, total: None)}
    assert len(found) == 5
    output, before = found["s2", "stage-output"], found["s2", "last-block-input"]
    assert (output.used, before.used) == (False, True)
    assert len(output.power) == len(before.power) == 8
    batch = next(mixtures(toy_probes.corpus, "test", toy_run.speakers, [CLEAN], 1, toy_probes.clips))
    features, frames = network.front_end(batch.mixture.audio)
    activations = network.encoder(features.requires_grad_(), frames, masked=False)
    score = network.logits(activations.embedding)[0, batch.labels[0]]
    for tap, tensor in (("stage-output", activations.stages[1]), ("last-block-input", activations.block_inputs[1])):
        (gradient,) = torch.autograd.grad(score, tensor, retain_graph=True)
        stage_map = (gradient.relu() * tensor).sum(dim=1)[0].detach().double().numpy()
        spread = cell_spread(stage_map)
        one = map_spectra({"new": network}, replace(toy_probes, clips=batch.clips), lambda done, total: None)
        assert next(s.spread for s in one if (s.stage, s.tap) == ("s2", tap)) == pytest.approx(spread, rel=1e-3)
