"""Turns, areas against counting, and a toy run measured utterance by utterance."""

import numpy as np
import pytest
import torch

from speakerlens.training.checkpoint import Run
from speakerlens.training.data.audio import SAMPLE_RATE, read_sound
from speakerlens.training.evaluation.maps.attributions import (
    ENERGY,
    FUSED,
    GRAD_CAM_PLUS_PLUS,
    RANDOM,
    attribute,
    log_energy,
)
from speakerlens.training.evaluation.maps.localisation import (
    MAPS,
    OTHER_SPEAKER,
    areas_of,
    in_turn,
    join,
    localisation,
    talking_frames,
)
from speakerlens.training.evaluation.maps.probes import Probes
from speakerlens.training.model.front_end import FRAME_LENGTH, FRAME_SHIFT, LogMel


def test_interferer_gets_the_level_of_the_target() -> None:
    rng = np.random.default_rng(0)
    first, other, last = (level * rng.standard_normal(8_000).astype(np.float32) for level in (0.1, 3.0, 0.2))
    other[3_200:] *= 1e-3  # a pause
    joined = join(first, other, last)
    inside = slice(200, 7_800)  # not where it fades
    np.testing.assert_allclose(joined[:8_000][inside], first[inside], rtol=1e-6)
    np.testing.assert_allclose(joined[16_000:][inside], last[inside], rtol=1e-6)
    level = np.sqrt((np.square(first).mean() + np.square(last).mean()) / 2)
    assert np.sqrt(np.square(joined[8_200:11_000]).mean()) == pytest.approx(level, rel=0.03)
    assert np.abs(joined[[0, 8_000, 16_000]]).max() == 0.0  # no click at a join


def test_talking_frames_exclude_pauses() -> None:
    turn = 16_000
    rng = np.random.default_rng(0)
    audio = rng.standard_normal(3 * turn) * np.repeat([0.1, 1e-4, 0.02, 0.002, 0.1, 0.05], turn // 2)
    energy = log_energy(LogMel(16), torch.from_numpy(audio).float()[None], torch.tensor([3 * turn]))[0]
    target, other = talking_frames(torch.nn.functional.pad(energy, (0, 9)), turn)
    assert len(target) == len(other) == energy.shape[1]
    times = (np.arange(len(target)) * FRAME_SHIFT + FRAME_LENGTH / 2) / turn
    clear = np.abs(times * 2 - np.round(times * 2)) > 0.06  # no frame over a change
    assert np.array_equal(target[clear], ((times < 0.5) | (times > 2))[clear])
    assert np.array_equal(other[clear], ((times > 1) & (times < 2))[clear])  # 20 dB below its loudest is still talk


def test_join_handles_silence_and_overload() -> None:
    loud = np.full(4_000, 0.9, dtype=np.float32)
    assert np.isfinite(join(loud, np.zeros(4_000, dtype=np.float32), loud)).all()
    spiky = np.zeros(4_000, dtype=np.float32)
    spiky[2_000] = 1.0
    assert np.abs(join(loud, spiky, loud)).max() <= 1.0


def test_turns_are_beginning_other_and_end(toy_probes: Probes) -> None:
    made = list(in_turn(toy_probes, 2))
    assert [len(turns.indices) for turns in made] == [2, 1]
    for turns in made:
        for at, label, audio, length, turn in zip(
            turns.indices, turns.labels, turns.audio, turns.lengths, turns.turns, strict=True
        ):
            clip = toy_probes.clips[int(at)]
            assert toy_probes.speakers[int(label)] == clip.speaker
            speech = read_sound(clip.path, clip.start, clip.duration)
            assert int(turn) == SAMPLE_RATE // 2  # half of the second they last
            assert int(length) == 3 * int(turn)
            np.testing.assert_allclose(audio[200:7_800], speech[200:7_800], atol=1e-6)
            np.testing.assert_allclose(audio[16_200:23_800], speech[8_200:15_800], atol=1e-6)
    again = next(in_turn(toy_probes, 4))
    for row, at in enumerate(made[0].indices.tolist()):
        assert torch.equal(again.audio[again.indices.tolist().index(at)], made[0].audio[row])


def test_areas_count_pairs_of_frames_and_bins() -> None:
    rng = np.random.default_rng(0)
    target, other = rng.random(40) < 0.5, rng.random(40) < 0.5
    other &= ~target
    stage_map = torch.rand(3, 47, generator=torch.Generator().manual_seed(0))
    values = stage_map[:, :40].numpy()
    profile = values.sum(axis=0)
    by_frame, by_bin = areas_of(stage_map, target, other)
    assert by_frame == pytest.approx(np.mean(profile[target][:, None] > profile[other]))
    assert by_bin == pytest.approx(np.mean(values[:, target].reshape(-1, 1) > values[:, other].ravel()))
    assert areas_of(torch.from_numpy(np.tile(target, (3, 1))).float(), target, other) == (1.0, 1.0)


def test_utterances_are_measured_independently(toy_run: Run, toy_probes: Probes) -> None:
    network = toy_run.network
    (found,) = localisation({"toy": network}, toy_probes, lambda done, total: None)
    assert found.turn_seconds == pytest.approx(0.5)
    assert set(found.frames) == set(found.bins) == set(MAPS)
    assert all(len(values) == len(toy_probes.clips) for values in found.frames.values())
    for turns in in_turn(toy_probes, 1):
        at, labels = int(turns.indices), turns.labels
        features, frames = network.front_end(turns.audio)
        energy = log_energy(network.front_end, turns.audio, turns.lengths)
        talks = talking_frames(energy[0], int(turns.turns))
        maps = {**attribute(network, features, frames, False, labels).maps, ENERGY: energy}
        for name in (FUSED, GRAD_CAM_PLUS_PLUS, ENERGY):
            expected = areas_of(maps[name][0], *talks)
            assert (found.frames[name][at], found.bins[name][at]) == pytest.approx(expected, abs=2e-3)
        other = attribute(network, features, frames, False, (labels + 1) % 3).maps[FUSED][0]
        expected = areas_of(other, *talks)
        assert found.frames[OTHER_SPEAKER][at] == pytest.approx(expected[0], abs=2e-3)
    assert np.mean(found.bins[RANDOM]) == pytest.approx(0.5, abs=0.05)
