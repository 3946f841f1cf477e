import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speakerlens.training.config import Band, Codec, Config, PerturbationConfig
from speakerlens.training.data.audio import SAMPLE_RATE, read_audio, without_offset
from speakerlens.training.data.batches import Batch, BatchSource
from speakerlens.training.data.crops import CropReader
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.data.perturbation import (
    change_speed,
    draw_channel,
    draw_codec,
    draw_speeds,
    limit_band,
    round_trip,
    samples_at_speed,
    transmit,
)
from speakerlens.training.variants import VARIANTS
from tests.training.toy import make_corpus

CODECS: tuple[Codec, ...] = get_args(Codec)
NARROW = ("mu-law", "a-law", "gsm")


def buzz(pitch: float = 120.0) -> NDArray[np.float32]:
    """A vowel-like sound that comes and goes, with some noise over it so that no two stretches are alike."""
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tone = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 50))
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.1 * (tone + 0.1 * noise) * (1 + 0.8 * np.sin(2 * np.pi * 3 * time))).astype(np.float32)


def energy_above(samples: NDArray[np.float32], hertz: float) -> float:
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float(power[np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE) > hertz].sum() / power.sum())


@settings(max_examples=25, deadline=None)
@given(speed=st.floats(0.9, 1.1), samples=st.integers(1600, 30_000), hertz=st.integers(200, 3000))
def test_speed_scales_frequencies_and_keeps_the_length(speed: float, samples: int, hertz: int) -> None:
    time = np.arange(samples_at_speed(samples, speed)) / SAMPLE_RATE
    played = change_speed(np.sin(2 * np.pi * hertz * time).astype(np.float32), speed, samples)
    assert played.shape == (samples,)
    expected = np.sin(2 * np.pi * hertz * speed * np.arange(samples) / SAMPLE_RATE)
    np.testing.assert_allclose(played[200:-200], expected[200:-200], atol=0.01)


def test_speed_one_changes_nothing() -> None:
    audio = buzz()
    assert change_speed(audio, 1.0, len(audio)) is audio


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("samples", [16_000, 15_999, 4801])
def test_codecs_keep_length_range_and_alignment(codec: Codec, samples: int) -> None:
    sent = buzz()[:samples]
    received = round_trip(sent, codec)
    assert received.shape == (samples,)
    assert received.dtype == np.float32
    assert np.abs(received).max() <= 1.0
    size = 1 << 16
    spectra = np.fft.rfft(np.stack([sent, received]).astype(np.float64), size)
    correlation = np.fft.irfft(spectra[1] * spectra[0].conj(), size)
    assert int(correlation.argmax()) in (0, 1, size - 1)
    assert correlation.max() > 0.85 * np.linalg.norm(sent) * np.linalg.norm(received)
    assert not np.array_equal(sent, received)


def gains(band: Band, hertz: Sequence[int]) -> list[float]:
    """What a band leaves of tones, in dB."""
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tones = [(0.5 * np.sin(2 * np.pi * h * time)).astype(np.float32) for h in hertz]
    return [20 * float(np.log10(np.std(limit_band(tone, band)) / np.std(tone) + 1e-9)) for tone in tones]


def test_bands_pass_and_stop_what_they_should() -> None:
    assert gains("narrow", [100, 1000, 3500]) == pytest.approx([0, 0, 0], abs=0.2)
    assert max(gains("narrow", [4500, 7000])) < -40
    assert gains("telephone", [350, 1000, 3300]) == pytest.approx([0, 0, 0], abs=0.2)
    assert max(gains("telephone", [100, 150, 3800, 7000])) < -40


def test_band_is_drawn_for_copies_without_a_codec() -> None:
    config = PerturbationConfig(codec=0.5, band=0.5, codecs=("gsm",), bands=("telephone",))
    rng = np.random.default_rng(0)
    drawn = Counter(draw_channel(config, rng) for _ in range(2000))
    assert drawn["gsm"] == pytest.approx(1000, abs=80)
    assert drawn["telephone"] == pytest.approx(500, abs=80)
    audio = torch.from_numpy(np.stack([buzz(), buzz()]))
    passed = transmit(audio, [None, "telephone"])
    assert torch.equal(passed[0], audio[0])
    np.testing.assert_array_equal(passed[1], limit_band(buzz(), "telephone"))


@pytest.mark.parametrize("codec", CODECS)
def test_codec_is_deterministic(codec: Codec) -> None:
    np.testing.assert_array_equal(round_trip(buzz(), codec), round_trip(buzz(), codec))


@pytest.mark.parametrize("codec", CODECS)
def test_only_telephone_codecs_are_limited_to_4_khz(codec: Codec) -> None:
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    share = energy_above(round_trip(noise, codec), 4100)
    assert share < 1e-3 if codec in NARROW else share > 0.1


def test_mu_law_equals_the_standard() -> None:
    """Against the companding formula, to which G.711's straight segments come near: see its table 2a."""
    time = np.arange(32_000) / SAMPLE_RATE
    sent = (0.7 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    received = round_trip(sent, "mu-law")[500:-500]
    compressed = np.sign(sent) * np.log1p(255 * np.abs(sent)) / np.log(256)
    expected = np.sign(compressed) * np.expm1(np.abs(np.round(compressed * 127) / 127) * np.log(256)) / 255
    errors = [float(np.sqrt(np.mean((other - sent[500:-500]) ** 2))) for other in (received, expected[500:-500])]
    assert errors[0] == pytest.approx(errors[1], rel=0.5)
    assert errors[0] < 0.02


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_pass_silence_and_full_scale(codec: Codec) -> None:
    assert np.abs(round_trip(np.zeros(8000, dtype=np.float32), codec)).max() < 2e-3
    loud = np.sign(np.sin(np.arange(16_000) / 9.0)).astype(np.float32)
    assert np.isfinite(round_trip(loud, codec)).all()
    assert np.abs(round_trip(loud, codec)).max() <= 1.0


def test_each_row_has_its_own_codec() -> None:
    audio = torch.from_numpy(np.stack([buzz(pitch=pitch) for pitch in (100, 130, 160)]))
    before = audio.clone()
    received = transmit(audio, ["gsm", None, "vorbis"])
    assert torch.equal(audio, before)
    np.testing.assert_array_equal(received[0].numpy(), round_trip(audio[0].numpy(), "gsm"))
    assert torch.equal(received[1], audio[1])
    np.testing.assert_array_equal(received[2].numpy(), round_trip(audio[2].numpy(), "vorbis"))
    assert transmit(audio, [None] * 3) is audio


def test_draws_follow_the_configured_shares() -> None:
    config = PerturbationConfig(speed=0.3, factors=(0.95, 1.1), codec=0.25, codecs=("gsm", "a-law"))
    speeds = Counter(draw_speeds(4000, config, np.random.default_rng(0)))
    assert speeds[1.0] == pytest.approx(2800, abs=150)
    assert speeds[0.95] == pytest.approx(600, abs=100)
    assert set(speeds) == {0.95, 1.0, 1.1}
    codecs = Counter(draw_codec(config, np.random.default_rng(seed)) for seed in range(4000))
    assert codecs[None] == pytest.approx(3000, abs=150)
    assert codecs["gsm"] == pytest.approx(500, abs=100)
    assert set(codecs) == {None, "gsm", "a-law"}
    off = PerturbationConfig()
    assert set(draw_speeds(50, off, np.random.default_rng(0))) == {1.0}
    assert {draw_codec(off, np.random.default_rng(seed)) for seed in range(50)} == {None}


def batch(corpus: Corpus, config: Config, perturbation: PerturbationConfig, variant: str = "act-pair") -> Batch:
    perturbed = replace(config, perturbation=perturbation)
    return BatchSource(corpus, perturbed, VARIANTS[variant], torch.device("cpu")).batch(2)


def test_both_rows_of_a_pair_have_the_same_speed(corpus: Corpus, config: Config) -> None:
    clean = batch(corpus, config, PerturbationConfig(speed=1.0), "clean")
    pairs = batch(corpus, config, PerturbationConfig(speed=1.0))
    assert torch.equal(pairs.audio[:6], clean.audio)
    for row in range(6):
        assert re.search(r" s, speed (0\.95|1\.05)$", pairs.names[row])
        assert pairs.names[6 + row].startswith(pairs.names[row])
    assert not torch.equal(clean.audio, batch(corpus, config, PerturbationConfig(), "clean").audio)


def test_codecs_apply_only_to_copies(corpus: Corpus, config: Config) -> None:
    plain = batch(corpus, config, PerturbationConfig())
    coded = batch(corpus, config, PerturbationConfig(codec=1.0, codecs=("mu-law",)))
    assert torch.equal(plain.audio[:6], coded.audio[:6])
    for row in range(6, 12):
        np.testing.assert_array_equal(coded.audio[row].numpy(), round_trip(plain.audio[row].numpy(), "mu-law"))
        assert coded.names[row] == plain.names[row] + ", through mu-law"


def test_crop_at_a_speed_reads_more_or_fewer_samples(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    clip = corpus.utterances("train")[0]
    reader = CropReader([clip], 8000, 0)
    whole = read_audio(clip.path)
    for speed in (0.9, 1.1):
        audio, start = reader.read(clip, 0.4, speed)
        first = round(start * SAMPLE_RATE)
        stretch = whole[first : first + samples_at_speed(8000, speed)]
        np.testing.assert_array_equal(audio, change_speed(without_offset(stretch), speed, 8000))
    last, start = reader.read(clip, np.nextafter(1.0, 0.0), 1.1)
    assert start * SAMPLE_RATE + samples_at_speed(8000, 1.1) <= len(whole)
    assert last.shape == (8000,)
