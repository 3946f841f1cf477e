from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.data.interference import RESPONSE_SAMPLES, InterferenceSource
from speakerlens.training.errors import UserError
from tests.training.sounds import FREQUENCIES, Builder, audible_speakers, tone


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def test_kinds_are_those_the_split_can_supply(builder: Builder) -> None:
    builder.speakers("ab")
    builder.add("n", tone(100), "noise", "test")
    builder.add("m", tone(100), "music")
    assert builder.source("train").kinds == ("music", "speaker")
    builder.speakers("cd")
    builder.add("r", [0.5, *[0.0] * 100, 0.1], "rir")
    assert builder.source("train").kinds == ("music", "babble", "speaker", "reverb")
    assert builder.source("test").kinds == ("noise",)


def test_missing_kind_is_refused(builder: Builder) -> None:
    builder.speakers("ab")
    with pytest.raises(UserError, match="no interference of kind noise; it has speaker"):
        builder.source().draw("noise", 100, np.random.default_rng(0), "a")


def test_target_is_never_an_interfering_talker(builder: Builder) -> None:
    builder.speakers("abcdefgh")
    source = builder.source()
    rng = np.random.default_rng(0)
    alone = set()
    for _ in range(40):
        talkers = audible_speakers(source.draw("speaker", 8000, rng, "c"))
        assert len(talkers) == 1
        alone |= talkers
        babble = audible_speakers(source.draw("babble", 8000, rng, "c"))
        assert 3 <= len(babble) <= 7
        assert "c" not in babble
    assert alone == set("abdefgh")


def test_babble_has_three_to_seven_equally_loud_talkers(builder: Builder) -> None:
    builder.speakers("abcdefghijkl")
    source = builder.source()
    rng = np.random.default_rng(1)
    counts = [len(audible_speakers(source.draw("babble", 16_000, rng, "a"))) for _ in range(60)]
    assert set(counts) == {3, 4, 5, 6, 7}


def test_number_of_talkers_is_configurable(builder: Builder) -> None:
    builder.speakers("abcdef")
    source = builder.source(talkers=(2, 4))
    rng = np.random.default_rng(1)
    counts = [len(audible_speakers(source.draw("babble", 16_000, rng, "a"))) for _ in range(30)]
    assert set(counts) == {2, 3, 4}
    assert "babble" not in builder.source(talkers=(6, 7)).kinds  # with the target they are six


def test_out_of_set_talkers_are_preferred(builder: Builder) -> None:
    builder.speakers("abcd")
    for name in "jkl":
        builder.add(name, tone(FREQUENCIES[name]), "speech", "train", name)
    source = builder.source()
    rng = np.random.default_rng(2)
    for _ in range(20):
        assert audible_speakers(source.draw("speaker", 8000, rng, "a")) <= set("jkl")
        # Babble of three voices contains all three.
        assert audible_speakers(source.draw("babble", 8000, rng, "a")) == set("jkl")


def test_draws_depend_on_the_generator(builder: Builder) -> None:
    builder.speakers("abcdef")
    for number in range(3):
        builder.add(f"n{number}", np.random.default_rng(number).uniform(-0.5, 0.5, 20_000), "noise")
    one, other = builder.source(), builder.source()
    for kind in one.kinds:
        other.draw(kind, 500, np.random.default_rng(99), "a")  # what was drawn before must not matter
        first = one.draw(kind, 4000, np.random.default_rng(5), "a")
        np.testing.assert_array_equal(first, other.draw(kind, 4000, np.random.default_rng(5), "a"))
        assert not np.array_equal(first, one.draw(kind, 4000, np.random.default_rng(6), "a"))


def test_source_is_thread_safe(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where hardly anything fits into memory, and clips come and go."""
    monkeypatch.setattr("speakerlens.training.data.interference._CACHE_BYTES", 100_000)
    builder.speakers("abcdefgh")
    for number in range(4):
        builder.add(f"n{number}", np.random.default_rng(number).uniform(-0.5, 0.5, 20_000), "noise")
    alone, shared = builder.source(), builder.source()

    def draw(source: InterferenceSource, seed: int) -> NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        return np.stack([source.draw(kind, 4000, rng, "a") for kind in ("noise", "speaker", "babble")])

    expected = [draw(alone, seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as threads:
        drawn = list(threads.map(lambda seed: draw(shared, seed), range(40)))
    np.testing.assert_array_equal(drawn, expected)


def test_long_clip_is_cropped_with_its_mean_subtracted(builder: Builder) -> None:
    builder.speakers("ab")
    places = np.arange(32_000) / 32_000
    builder.add("n", places**2, "noise")
    source = builder.source()
    rng = np.random.default_rng(0)
    starts = []
    for _ in range(50):
        crop = source.draw("noise", 8000, rng, "a")
        starts.append(round((2 * (crop[-1] - crop[0]) - 0.125) * 32_000))  # the steeper, the later
        expected = places[max(0, starts[-1]) :][:8000] ** 2
        np.testing.assert_allclose(crop, expected - expected.mean(), atol=1e-3)
    assert min(starts) < 4000
    assert max(starts) > 20_000


def test_very_long_clip_is_read_by_seeking(builder: Builder) -> None:
    builder.speakers("ab")
    seconds = np.arange(40 * SAMPLE_RATE) / SAMPLE_RATE
    builder.add("n", (seconds / 41) ** 2, "noise")
    crop = builder.source().draw("noise", 16_000, np.random.default_rng(3), "a")
    middle = (crop[-1] - crop[0]) * 41**2 / 2  # the steeper, the later
    first = round((middle - 0.5) * SAMPLE_RATE)
    expected = (seconds[first:][:16_000] / 41) ** 2
    np.testing.assert_allclose(crop, expected - expected.mean(), atol=1e-3)


def test_short_clip_loops_without_a_click(builder: Builder) -> None:
    builder.speakers("ab")
    # Starts at 0 and ends near its peak: a bare repetition would jump by 0.5.
    builder.add("n", tone(100, 0.2525, 0.5), "noise")
    source = builder.source()
    for seed in range(5):
        waveform = source.draw("noise", 40_000, np.random.default_rng(seed), "a")
        assert waveform.shape == (40_000,)
        assert np.abs(np.diff(waveform)).max() < 0.03
        assert np.sqrt(np.mean(waveform**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_silence_is_drawn_again(builder: Builder) -> None:
    builder.speakers("ab")
    builder.add("silent", np.zeros(8000), "noise")
    mostly = np.zeros(80_000)
    mostly[40_000:48_000] = tone(500, 0.5)
    builder.add("mostly", mostly, "noise")
    source = builder.source()
    rng = np.random.default_rng(0)
    assert all(np.abs(source.draw("noise", 4000, rng, "a")).max() > 1e-4 for _ in range(30))


def test_silence_beside_an_offset_is_drawn_again(builder: Builder) -> None:
    """A constant would be scaled to the ratio that is asked for, and be no interference at all."""
    builder.speakers("ab")
    padded = np.zeros(80_000)
    padded[:40_000] = 0.05 + tone(500, 2.5)
    for name, offset in (("padded", 0.0), ("recorder", -0.08)):
        builder.add(name, padded + offset, "noise")
    source = builder.source()
    rng = np.random.default_rng(0)
    for _ in range(60):
        drawn = source.draw("noise", 4000, rng, "a")
        assert drawn.std() > 1e-4
        assert abs(drawn.mean()) < 1e-6


def test_only_silence_is_an_error(builder: Builder) -> None:
    builder.speakers("ab")
    builder.add("silent", np.zeros(8000), "noise")
    builder.add("dead", [1.0, *[0.0] * 500], "rir")
    source = builder.source()
    with pytest.raises(UserError, match=r"silent\.flac: all of 100 crops .* were silent"):
        source.draw("noise", 4000, np.random.default_rng(0), "a")
    with pytest.raises(UserError, match="only the direct sound"):
        source.draw("reverb", 4000, np.random.default_rng(0), "a")


@pytest.mark.parametrize(("lead", "length"), [(0, 500), (3000, 500), (9000, 20_000)])
def test_response_starts_just_before_its_direct_sound(builder: Builder, lead: int, length: int) -> None:
    builder.speakers("ab")
    rng = np.random.default_rng(0)
    response = np.concatenate([np.zeros(lead), [0.9], 0.1 * rng.standard_normal(length)])
    builder.add("r", response, "rir")
    drawn = builder.source().draw("reverb", 123, rng, "a")
    assert drawn.shape == (RESPONSE_SAMPLES,)
    direct = int(np.argmax(drawn))
    assert direct == min(lead, 40)
    expected = np.zeros(RESPONSE_SAMPLES)
    kept = response[lead - direct :][:RESPONSE_SAMPLES]
    expected[: len(kept)] = kept
    np.testing.assert_allclose(drawn, expected, atol=1e-4)
