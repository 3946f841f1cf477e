from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from speakerlens.training.config import InterferenceConfig, InterferenceKind
from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.data.corruption import Corruption, Layer, corrupt, draw_corruption
from speakerlens.training.data.interference import InterferenceSource
from speakerlens.training.data.mixing import DIRECT_SAMPLES, KINDS, Mixture
from tests.training.sounds import Builder, audible_speakers, tone

ALL: tuple[InterferenceKind, ...] = ("noise", "music", "babble", "speaker", "reverb")
ROOM = np.r_[0.9, 0.05 * np.random.default_rng(5).standard_normal(4000)]
SAMPLES = 8000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> InterferenceSource:
    return make_source(tmp_path_factory.mktemp("corpus"))


def make_source(folder: Path) -> InterferenceSource:
    builder = Builder(folder)
    builder.speakers("abcdef")
    builder.add("n", np.random.default_rng(0).uniform(-0.5, 0.5, 30_000), "noise")
    builder.add("m", tone(150), "music")
    builder.add("r", ROOM, "rir")
    return builder.source()


def speech(rows: int) -> Tensor:
    return torch.tensor(0.2 * np.random.default_rng(7).standard_normal((rows, SAMPLES)), dtype=torch.float32)


def generators(rows: int) -> list[np.random.Generator]:
    return [np.random.default_rng([1, row]) for row in range(rows)]


def decibels(wanted: ArrayLike, unwanted: ArrayLike) -> float:
    energies = [float(np.sum(np.asarray(part, np.float64) ** 2)) for part in (wanted, unwanted)]
    return float(10 * np.log10(energies[0] / energies[1]))


def test_each_row_has_its_kind_at_its_snr(source: InterferenceSource, tmp_path: Path) -> None:
    assert source.kinds == KINDS
    ratios = np.random.default_rng(0).uniform(-5, 20, 10)
    corruptions: list[Corruption] = [(Layer(kind, snr),) for kind, snr in zip([*KINDS, *KINDS], ratios, strict=True)]
    clean = speech(10)
    clean[7] = 0.0  # a silent row is harmless
    mixture = corrupt(clean, ["a"] * 10, corruptions, source, generators(10))
    again = corrupt(clean, ["a"] * 10, corruptions, make_source(tmp_path), generators(10))
    for part, same in zip(mixture, again, strict=True):
        assert torch.isfinite(part).all()
        assert torch.equal(part, same)
    dry, added = mixture.speech.numpy(), mixture.interference.numpy()
    for row in (0, 1, 2, 3, 4, 5, 6, 8, 9):
        assert decibels(dry[row], added[row]) == pytest.approx(ratios[row], abs=0.1)
    assert not mixture.audio[7].any()
    assert np.argmax(np.abs(np.fft.rfft(added[1]))) == 150 * SAMPLES // SAMPLE_RATE  # the music's one tone
    assert "a" not in audible_speakers(added[3])
    assert np.corrcoef(added[4], reverberation(dry[4]))[0, 1] > 0.999


def reverberation(dry: NDArray[np.float32]) -> NDArray[np.float64]:
    tail = ROOM.copy()
    tail[: DIRECT_SAMPLES + 1] = 0
    return np.convolve(dry, tail)[:SAMPLES]


def parts(source: InterferenceSource, layers: Corruption) -> Mixture:
    return Mixture(*(part[0] for part in corrupt(speech(1), ["a"], [layers], source, generators(1))))


@settings(max_examples=20, deadline=None)
@given(kinds=st.permutations(KINDS), ratios=st.tuples(st.floats(-10, 20), st.floats(-10, 20)))
def test_two_kinds_have_their_own_snr_to_the_speech(
    source: InterferenceSource, kinds: list[str], ratios: tuple[float, float]
) -> None:
    """What is added is the least-squares sum of the first kind alone and a rest that is the second kind."""
    both = parts(source, (Layer(kinds[0], ratios[0]), Layer(kinds[1], ratios[1])))
    torch.testing.assert_close(both.audio, both.speech + both.interference)
    assert both.audio.abs().max() <= 1.0
    first = parts(source, (Layer(kinds[0], ratios[0]),))  # its random numbers come first: the same sound
    scales = [float(mixture.speech.norm() / speech(1).norm()) for mixture in (both, first)]
    rest = both.interference / scales[0] - first.interference / scales[1]
    assert decibels(speech(1)[0], rest) == pytest.approx(ratios[1], abs=0.1)


def test_reverberation_with_noise_is_the_sum_of_both(source: InterferenceSource) -> None:
    """The noise comes after the room: it is not reverberated, and set against the direct sound."""
    both = parts(source, (Layer("reverb", 0.0), Layer("noise", 60.0)))
    assert np.corrcoef(both.interference.numpy(), reverberation(both.speech.numpy()))[0, 1] > 0.999
    quiet_room = parts(source, (Layer("reverb", 60.0), Layer("noise", 3.0)))
    assert decibels(quiet_room.speech, quiet_room.interference) == pytest.approx(3.0, abs=0.1)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_rows_are_independent(source: InterferenceSource, data: st.DataObject) -> None:
    """Any choice of rows in any order gives what the whole batch does: a process can make just its own."""
    rows = 8
    config = InterferenceConfig(combine=0.5)
    clean, speakers = speech(rows), ["a", "b", "c", "d"] * 2

    def realise(chosen: list[int]) -> Tensor:
        rngs = [generators(rows)[row] for row in chosen]
        corruptions = [draw_corruption(ALL, config, rng) for rng in rngs]
        return corrupt(clean[chosen], [speakers[row] for row in chosen], corruptions, source, rngs).audio

    chosen = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=rows, unique=True))
    torch.testing.assert_close(realise(chosen), realise(list(range(rows)))[chosen], atol=1e-6, rtol=0)


def test_empty_batch_and_uncorrupted_rows_are_unchanged(source: InterferenceSource) -> None:
    assert corrupt(speech(0), [], [], source, []).audio.shape == (0, SAMPLES)
    mixture = corrupt(speech(2), ["a", "b"], [(), (Layer("noise", 0.0),)], source, generators(2))
    assert torch.equal(mixture.audio[0], speech(2)[0])
    assert not mixture.interference[0].any()


def test_snr_is_uniform_within_its_range() -> None:
    config = InterferenceConfig(snr_db={"noise": (-5.0, 20.0), "reverb": (3.0, 3.0)})
    drawn = [draw_corruption(("noise", "reverb"), config, rng) for rng in generators(6000)]
    assert all(len(layers) == 1 for layers in drawn)
    assert {layer.snr_db for (layer,) in drawn if layer.kind == "reverb"} == {3.0}
    noises = [layer.snr_db for (layer,) in drawn if layer.kind == "noise"]
    counts, _ = np.histogram(noises, bins=5, range=(-5.0, 20.0))
    assert counts.sum() == len(noises)
    assert counts.min() > 500  # of 3,000 / 5


def test_kinds_occur_in_proportion_to_their_weights() -> None:
    config = InterferenceConfig(weights={"babble": 3.0, "reverb": 0.5})
    drawn = Counter(draw_corruption(ALL, config, rng)[0].kind for rng in generators(6500))
    for kind, expected in {"noise": 1000, "music": 1000, "babble": 3000, "speaker": 1000, "reverb": 500}.items():
        assert drawn[kind] == pytest.approx(expected, abs=150)


def test_configured_share_has_two_different_kinds() -> None:
    drawn = [draw_corruption(ALL, InterferenceConfig(combine=0.3), rng) for rng in generators(3000)]
    assert Counter(len({layer.kind for layer in layers}) for layers in drawn)[2] == pytest.approx(900, abs=120)
    assert {len(layers) for layers in drawn} == {1, 2}
    pairs = {frozenset(layer.kind for layer in layers) for layers in drawn if len(layers) == 2}
    assert len(pairs) == 10
    assert {len(draw_corruption(("noise",), InterferenceConfig(combine=1.0), rng)) for rng in generators(9)} == {1}
