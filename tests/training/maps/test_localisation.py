"""Turns as they are put together, areas by counting, and a toy run measured utterance by utterance."""

import numpy as np
import pytest
import torch

from training.audio import SAMPLE_RATE, read_audio
from training.checkpoint import Run
from training.frontend import FRAME_LENGTH, FRAME_SHIFT
from training.maps.attributions import GRAD_CAM_PLUS_PLUS, RANDOM, attribute
from training.maps.localisation import MAPS, OTHER_SPEAKER, areas_of, in_turn, join, localisation
from training.maps.probes import Probes
from training.measure import FUSED


def test_the_other_is_as_loud_as_the_target() -> None:
    rng = np.random.default_rng(0)
    first, other, last = (level * rng.standard_normal(8_000).astype(np.float32) for level in (0.1, 3.0, 0.2))
    joined = join(first, other, last)
    inside = slice(200, 7_800)  # not where it fades
    np.testing.assert_allclose(joined[:8_000][inside], first[inside], rtol=1e-6)
    np.testing.assert_allclose(joined[16_000:][inside], last[inside], rtol=1e-6)
    level = np.sqrt((np.square(first).mean() + np.square(last).mean()) / 2)
    assert np.sqrt(np.square(joined[8_000:16_000]).mean()) == pytest.approx(level, rel=0.02)
    assert np.abs(joined[[0, 8_000, 16_000]]).max() == 0.0  # no click at a join


def test_silence_and_overload_do_not_break_a_join() -> None:
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
            speech = read_audio(clip.path, clip.start, clip.duration)
            assert int(turn) == SAMPLE_RATE // 2  # half of the second they last
            assert int(length) == 3 * int(turn)
            np.testing.assert_allclose(audio[200:7_800], speech[200:7_800], atol=1e-6)
            np.testing.assert_allclose(audio[16_200:23_800], speech[8_200:15_800], atol=1e-6)
    again = next(in_turn(toy_probes, 4))
    for row, at in enumerate(made[0].indices.tolist()):
        assert torch.equal(again.audio[again.indices.tolist().index(at)], made[0].audio[row])


def test_areas_count_pairs_of_frames_and_bins() -> None:
    turn = 4_000
    frames = (3 * turn - FRAME_LENGTH) // FRAME_SHIFT + 1
    stage_map = torch.rand(3, frames + 7, generator=torch.Generator().manual_seed(0))
    centres = np.arange(frames) * FRAME_SHIFT + FRAME_LENGTH / 2
    his = (centres < turn) | (centres > 2 * turn)
    values = stage_map[:, :frames].numpy()
    profile = values.sum(axis=0)
    by_frame, by_bin = areas_of(stage_map, 3 * turn, turn)
    assert by_frame == pytest.approx(np.mean(profile[his][:, None] > profile[~his]))
    assert by_bin == pytest.approx(np.mean(values[:, his].reshape(-1, 1) > values[:, ~his].ravel()))
    perfect = torch.from_numpy(np.tile(his, (3, 1))).float()
    assert areas_of(perfect, 3 * turn, turn) == (1.0, 1.0)


def test_each_utterance_is_measured_as_if_alone(toy_run: Run, toy_probes: Probes) -> None:
    network = toy_run.network
    (found,) = localisation({"toy": network}, toy_probes, lambda done, total: None)
    assert found.turn_seconds == pytest.approx(0.5)
    assert set(found.frames) == set(found.bins) == set(MAPS)
    assert all(len(values) == len(toy_probes.clips) for values in found.frames.values())
    for turns in in_turn(toy_probes, 1):
        at, labels = int(turns.indices), turns.labels
        features, frames = network.front_end(turns.audio)
        maps = attribute(network, features, frames, False, labels).maps
        for name in (FUSED, GRAD_CAM_PLUS_PLUS):
            expected = areas_of(maps[name][0], int(turns.lengths), int(turns.turns))
            assert (found.frames[name][at], found.bins[name][at]) == pytest.approx(expected, abs=2e-3)
        other = attribute(network, features, frames, False, (labels + 1) % 3).maps[FUSED][0]
        expected = areas_of(other, int(turns.lengths), int(turns.turns))
        assert found.frames[OTHER_SPEAKER][at] == pytest.approx(expected[0], abs=2e-3)
    assert np.mean(found.bins[RANDOM]) == pytest.approx(0.5, abs=0.05)
