import json
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from speakerlens.training.cli import main
from speakerlens.training.data.audio import SAMPLE_RATE, read_audio
from speakerlens.training.data.interference import InterferenceSource
from speakerlens.training.data.manifest import MANIFEST, Kind, Split, load_corpus
from speakerlens.training.data.prepare.pieces import share_out
from speakerlens.training.data.prepare.speakers import default_outsiders


def chirp(number: int, seconds: float, rate: int = SAMPLE_RATE) -> NDArray[np.float64]:
    """A sound by whose frequency a clip is known again."""
    wave: NDArray[np.float64] = 0.3 * np.sin(2 * np.pi * (200 + 10 * number) * np.arange(round(seconds * rate)) / rate)
    return wave


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Two speakers of 20 one-second clips: 16 kHz FLAC, and 22.05 kHz stereo WAV in nested folders; and other files."""
    folder = tmp_path / "speech"
    for name in ("ana", "bo"):
        (folder / name / "session").mkdir(parents=True)
    for number in range(20):
        soundfile.write(folder / "ana" / f"{number:02d}.flac", chirp(number, 1.0), SAMPLE_RATE)
        stereo = np.stack([chirp(number, 1.0, 22_050)] * 2, axis=1)
        soundfile.write(folder / "bo" / "session" / f"{number:02d}.wav", stereo, 22_050)
    (folder / "ana" / "notes.txt").write_text("passed over")
    (folder / "ana" / "._00.flac").write_bytes(b"left by a file manager")
    return folder


def prepare(*arguments: object) -> int:
    return main(["prepare", "folder", *map(str, arguments)])


def clip_numbers(samples: NDArray[np.float32]) -> list[int]:
    """Which clips an utterance was joined from, by the frequency of each of its seconds."""
    numbers = []
    for second in range(len(samples) // SAMPLE_RATE):
        piece = samples[second * SAMPLE_RATE :][:SAMPLE_RATE]
        spectrum = np.abs(np.fft.rfft(piece * np.hanning(len(piece))))
        numbers.append((int(np.argmax(spectrum)) - 200 + 5) // 10)
    return numbers


def test_clips_are_used_in_place(tmp_path: Path, speech: Path) -> None:
    assert prepare("--speech", speech, "--out", tmp_path / "out") == 0
    corpus = load_corpus(tmp_path / "out")
    assert corpus.speakers == ("ana", "bo")
    for speaker in corpus.speakers:
        counts = [
            sum(clip.speaker == speaker for clip in corpus.utterances(split)) for split in ("train", "dev", "test")
        ]
        assert counts == [14, 2, 4]
    for clip in corpus.clips:
        assert clip.duration == pytest.approx(1.0, abs=1e-3)
        in_place = clip.speaker == "ana"
        assert clip.path.is_relative_to(speech if in_place else tmp_path / "out")
        assert len(read_audio(clip.path)) == pytest.approx(SAMPLE_RATE, abs=1)


def test_joined_utterances_are_long_and_disjoint(tmp_path: Path, speech: Path) -> None:
    assert prepare("--speech", speech, "--min-seconds", 2.5, "--out", tmp_path / "out") == 0
    corpus = load_corpus(tmp_path / "out")
    seen: dict[str | None, list[int]] = defaultdict(list)
    for clip in corpus.clips:
        samples = read_audio(clip.path)
        assert clip.duration == pytest.approx(len(samples) / SAMPLE_RATE)
        assert clip.duration >= 2.5
        numbers = clip_numbers(samples)
        assert numbers == sorted(numbers)
        seen[clip.speaker] += numbers
    assert {speaker: sorted(numbers) for speaker, numbers in seen.items()} == {
        "ana": list(range(20)),
        "bo": list(range(20)),
    }
    for split in ("train", "dev", "test"):
        assert {clip.speaker for clip in corpus.utterances(split)} == {"ana", "bo"}


def test_clips_of_different_offsets_join_without_a_step(tmp_path: Path) -> None:
    """What the reader takes from a whole utterance would leave a part of each, which counts as speech."""
    for place, name in enumerate(("ana", "bo")):
        (tmp_path / "speech" / name).mkdir(parents=True)
        for number in range(9):
            wave = chirp(number + 20 * place, 1.0) + (-0.1 if number % 2 else 0.1)
            soundfile.write(tmp_path / "speech" / name / f"{number}.flac", wave, SAMPLE_RATE)
    assert prepare("--speech", tmp_path / "speech", "--min-seconds", 2, "--out", tmp_path / "out") == 0
    for clip in load_corpus(tmp_path / "out").clips:
        seconds = read_audio(clip.path).reshape(-1, SAMPLE_RATE)
        assert len(seconds) >= 2
        np.testing.assert_allclose(seconds.mean(axis=1), 0.0, atol=1e-4)


def test_splits_depend_on_the_seed(tmp_path: Path, speech: Path) -> None:
    texts = []
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert prepare("--speech", speech, "--seed", seed, "--out", tmp_path / out) == 0
        texts.append((tmp_path / out / MANIFEST).read_text())
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """Nine speakers of nine half-second clips each; a speaker's clips are the same chirp, at other levels."""
    folder = tmp_path / "crowd"
    for number in range(9):
        (folder / f"s{number}").mkdir(parents=True)
        for clip in range(9):
            wave = (1 - 0.01 * clip) * chirp(10 * number, 0.5)
            soundfile.write(folder / f"s{number}" / f"{clip}.flac", wave, SAMPLE_RATE)
    return folder


def test_outsiders_are_talkers_of_one_split_each(tmp_path: Path, crowd: Path) -> None:
    arguments = ("--speech", crowd, "--outsiders", 7, "--min-seconds", 1.2)
    assert prepare(*arguments, "--out", tmp_path / "out") == 0
    corpus = load_corpus(tmp_path / "out")
    splits: tuple[Split, ...] = ("train", "dev", "test")
    talkers = [{clip.speaker for clip in corpus.interference("speech", split)} for split in splits]
    assert [len(names) for names in talkers] == [1, 3, 3]
    outside = set.union(*talkers)
    assert len(outside) == 7
    assert outside | set(corpus.speakers) == {f"s{number}" for number in range(9)}
    assert not outside & set(corpus.speakers)
    for split in splits:
        clips = corpus.interference("speech", split)
        # Nine clips of half a second are three utterances of 1.5 s.
        assert sorted(clip.duration for clip in clips) == pytest.approx([1.5] * 3 * len({c.speaker for c in clips}))
        source = InterferenceSource(corpus, split)
        assert ("babble" in source.kinds) == (len({clip.speaker for clip in clips}) >= 3)
        spectrum = np.abs(
            np.fft.rfft(source.draw("speaker", SAMPLE_RATE, np.random.default_rng(0), corpus.speakers[0]))
        )
        assert f"s{round((int(spectrum.argmax()) - 200) / 100)}" in {clip.speaker for clip in clips}
    assert prepare(*arguments, "--out", tmp_path / "again") == 0
    assert prepare(*arguments, "--seed", 1, "--out", tmp_path / "other") == 0
    assert load_corpus(tmp_path / "again").digest == corpus.digest
    assert load_corpus(tmp_path / "other").speakers != corpus.speakers


def test_default_holds_out_enough_for_calibration_or_none() -> None:
    assert [default_outsiders(count) for count in (2, 11, 12, 19, 20, 30, 40, 1000)] == [0, 0, 6, 6, 6, 9, 12, 60]


def test_speakers_are_held_out_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for speaker in range(12):
        folder = tmp_path / "speech" / f"s{speaker:02}"
        folder.mkdir(parents=True)
        for index in range(3):
            soundfile.write(folder / f"{index}.wav", chirp(5 * speaker + index, 0.6), SAMPLE_RATE)
    assert prepare("--speech", tmp_path / "speech", "--out", tmp_path / "out") == 0
    corpus = load_corpus(tmp_path / "out")
    splits: tuple[Split, ...] = ("train", "dev", "test")
    held_out = [{clip.speaker for clip in corpus.interference("speech", split)} for split in splits]
    assert [len(names) for names in held_out] == [0, 3, 3]
    assert len(corpus.speakers) == 6
    assert "6 speakers are held out for the threshold (--outsiders 0 holds out none): " in " ".join(
        capsys.readouterr().out.split()
    )


def test_outsiders_and_interfering_speech_are_both_talkers(tmp_path: Path, crowd: Path) -> None:
    (tmp_path / "talk").mkdir()
    for number in range(3):
        soundfile.write(tmp_path / "talk" / f"{number}.flac", chirp(number, 0.5), SAMPLE_RATE)
    arguments = ("--speech", crowd, "--outsiders", 3, "--interfering-speech", tmp_path / "talk")
    assert prepare(*arguments, "--out", tmp_path / "out") == 0
    corpus = load_corpus(tmp_path / "out")
    for split in ("train", "dev", "test"):
        clips = corpus.interference("speech", split)
        assert sum(clip.speaker is None for clip in clips) == 1
        assert sum(clip.speaker is not None for clip in clips) == 9


def test_impossible_numbers_of_outsiders_are_refused(
    tmp_path: Path, crowd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "out")
    for count in (-1, 1, 2):
        error = refused(capsys, "--speech", crowd, "--outsiders", count, *out)
        assert f"--outsiders must be 0, or at least 3, one each for train, dev and test, not {count}" in error
    error = refused(capsys, "--speech", crowd, "--outsiders", 8, *out)
    assert "at least 2 speakers beside the 8 outsiders, not 9 folder(s)" in error
    for number in range(9):
        soundfile.write(crowd / f"s{number}" / "0.flac", np.zeros(8000), SAMPLE_RATE)
    error = refused(capsys, "--speech", crowd, "--outsiders", 7, *out)
    assert "9 of 81 utterances cannot be used" in error  # an outsider's as well as a speaker's


def test_interference_is_split_by_file_and_converted(tmp_path: Path, speech: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("noise", "music", "talk", "rooms"):
        (tmp_path / kind / "sub").mkdir(parents=True)
    for number in range(10):
        soundfile.write(tmp_path / "noise" / "sub" / f"{number}.ogg", rng.uniform(-0.3, 0.3, 8000), 16_000)
        # A floating-point file may be louder than full scale.
        soundfile.write(tmp_path / "music" / f"{number}.wav", 3.0 * chirp(number, 0.5), 16_000, subtype="FLOAT")
        soundfile.write(tmp_path / "talk" / f"{number}.aiff", chirp(number, 0.5), 16_000)
        # Two microphones whose mean would cancel; so quiet that 16 bits would leave nothing of the tail.
        room = 1e-3 * np.r_[1.0, 0.2 * rng.standard_normal(3000) * np.exp(-np.arange(3000) / 500)]
        soundfile.write(tmp_path / "rooms" / f"{number}.wav", np.stack([room, -room], 1), 16_000, subtype="FLOAT")
    folders = ("--noise", "noise", "--music", "music", "--interfering-speech", "talk", "--rir", "rooms")
    arguments = [tmp_path / word if not word.startswith("--") else word for word in folders]
    assert prepare("--speech", speech, *arguments, "--out", tmp_path / "out") == 0
    corpus = load_corpus(tmp_path / "out")
    kinds: tuple[Kind, ...] = ("noise", "music", "speech", "rir")
    for kind in kinds:
        parts = [corpus.interference(kind, split) for split in ("train", "dev", "test")]
        assert [len(part) for part in parts] == [7, 1, 2]
        paths = [clip.path for part in parts for clip in part]
        assert len({path.name.split("-")[-1] for path in paths}) == 10
        for path in paths:
            assert 0.1 < np.abs(read_audio(path)).max() <= 1.0
    music = read_audio(corpus.interference("music", "train")[0].path)
    assert np.abs(np.fft.rfft(music)[900:]).max() < 0.02 * np.abs(np.fft.rfft(music)).max()  # scaled, not clipped
    room = read_audio(corpus.interference("rir", "test")[0].path)
    number = int(corpus.interference("rir", "test")[0].path.stem.split("-")[-1])
    source = soundfile.read(tmp_path / "rooms" / f"{number}.wav")[0][:, 0]
    np.testing.assert_allclose(room / room[0], source / source[0], atol=1e-3)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert prepare(*arguments) == 2
    return capsys.readouterr().err


def test_unreadable_files_are_named_and_nothing_written(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (speech / "ana" / "07.flac").write_bytes(b"fLaC but no more")
    soundfile.write(speech / "bo" / "empty.wav", np.zeros(0), 16_000)
    error = refused(capsys, "--speech", speech, "--out", tmp_path / "out")
    assert "2 of 41 files cannot be used" in error
    assert str(speech / "ana" / "07.flac") in error
    assert f"{speech / 'bo' / 'empty.wav'}: holds no audio" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speech"]


def test_undecodable_file_is_named_and_nothing_left(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(speech / "bo" / "bad.wav", np.r_[chirp(0, 0.5), np.inf, 0.1], 16_000, subtype="FLOAT")
    error = refused(capsys, "--speech", speech, "--out", tmp_path / "out")
    assert f"{speech / 'bo' / 'bad.wav'}: contains NaN or infinity" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speech"]


def test_short_and_silent_utterances_are_named(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(speech / "ana" / "03.flac", chirp(3, 0.19), SAMPLE_RATE)
    soundfile.write(speech / "bo" / "session" / "04.wav", chirp(4, 0.01, 22_050), 22_050)
    soundfile.write(speech / "bo" / "session" / "05.wav", np.zeros((22_050, 2)), 22_050)
    arguments = ("--speech", speech, "--out", tmp_path / "out")
    error = refused(capsys, *arguments)
    assert error.count("\n") == 1
    assert "3 of 40 utterances cannot be used" in error
    assert f"{speech / 'ana' / '03.flac'}: lasts 0.19 s, and must last at least 0.2 s" in error
    assert f"{speech / 'bo' / 'session' / '04.wav'}: lasts 0.00997732 s" in error
    assert f"{speech / 'bo' / 'session' / '05.wav'}: is digital silence" in error
    assert "--min-seconds" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speech"]
    assert prepare(*arguments, "--min-seconds", 1.5) == 0  # each of them is joined with another


def test_utterances_short_or_silent_after_conversion_are_named(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--speech", speech, "--out", tmp_path / "out")
    soundfile.write(speech / "bo" / "faint.wav", np.full(8820, 1e-6), 44_100, subtype="FLOAT")
    assert f"{speech / 'bo' / 'faint.wav'}: is digital silence as 16-bit mono" in refused(capsys, *arguments)
    (speech / "bo" / "faint.wav").unlink()
    (speech / "cy").mkdir()
    for number in range(39):  # 13 of them last 0.2002 s, but each loses a third of a sample to resampling
        soundfile.write(speech / "cy" / f"{number:02d}.wav", chirp(number, 1.0)[:679], 44_100)
    error = refused(capsys, *arguments, "--min-seconds", 0.2)
    assert "lasts 0.199875 s, and must last at least 0.2 s" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speech"]


def test_too_few_files_seconds_or_speakers_are_named(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "out")
    error = refused(capsys, "--speech", speech, "--min-seconds", 8, *out)
    assert "too little for one utterance of 8 s" in error
    assert "ana (4.0 s for train)" in error
    (speech / "cy").mkdir()
    soundfile.write(speech / "cy" / "1.wav", chirp(1, 1.0), 16_000)
    assert "at least 3 audio files, one each for train, dev and test, and every outsider one; fewer: cy (1)" in refused(
        capsys, "--speech", speech, *out
    )
    assert "at least 2 speakers, not 1 folder(s)" in refused(capsys, "--speech", speech / "bo", *out)
    (speech / "cy").rename(tmp_path / "noise")
    error = refused(capsys, "--speech", speech, "--noise", tmp_path / "noise", *out)
    assert f"{tmp_path / 'noise'}: needs at least 3 audio files, one each for train, dev and test, and has 1" in error


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--dev", "0"), "--dev and --test must be above 0"),
        (("--dev", "0.5", "--test", "0.5"), "together below 1"),
        (("--min-seconds", "-1"), "--min-seconds must be at least 0"),
        (("--seed", "-1"), "--seed must be at least 0, not -1"),
        (("--noise", "nowhere"), "nowhere: is not a folder"),
    ],
)
def test_wrong_settings_are_named(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], complaint: str
) -> None:
    assert complaint in refused(capsys, "--speech", speech, "--out", tmp_path / "out", *arguments)


def test_names_that_are_not_utf8_are_refused(tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--speech", speech, "--out", tmp_path / "out")
    odd = speech / "ana" / os.fsdecode(b"03\xff.flac")
    (speech / "ana" / "03.flac").rename(odd)
    assert f"{str(odd)!r}: the name is not UTF-8" in refused(capsys, *arguments)
    (speech / "ana").rename(speech / os.fsdecode(b"ana\xe9"))
    error = refused(capsys, *arguments)
    assert r"'ana\udce9': the name is not UTF-8" in error
    assert error.count("\n") == 1


def test_long_names_of_converted_files_are_cut(tmp_path: Path, speech: Path) -> None:
    (tmp_path / "noise").mkdir()
    for number in range(3):
        soundfile.write(tmp_path / "noise" / f"{number}{'ü' * 120}.wav", chirp(number, 0.5), 8_000)
    assert prepare("--speech", speech, "--noise", tmp_path / "noise", "--out", tmp_path / "out") == 0
    names = [clip.path.name for clip in load_corpus(tmp_path / "out").clips if clip.kind == "noise"]
    assert len(set(names)) == 3
    assert all("ü" * 40 in name for name in names)


def test_folder_that_is_not_empty_is_refused(tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("do not lose")
    assert "is not empty" in refused(capsys, "--speech", speech, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "do not lose"


def test_remains_of_an_interrupted_run_are_replaced(tmp_path: Path, speech: Path) -> None:
    left = tmp_path / ".out.unfinished" / "speech" / "old.flac"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"")
    assert prepare("--speech", speech, "--out", tmp_path / "out") == 0
    assert not left.exists()
    assert not (tmp_path / "out" / "speech" / "old.flac").exists()
    assert json.loads((tmp_path / "out" / MANIFEST).read_text().splitlines()[0])["speaker"] == "ana"


def test_splits_get_their_shares_and_minimum_length() -> None:
    shares: dict[Split, float] = {"test": 0.2, "dev": 0.1}
    parts = share_out([1.0] * 100, shares)
    assert [len(parts[split]) for split in ("train", "dev", "test")] == [70, 10, 20]
    assert sorted(index for part in parts.values() for index in part) == list(range(100))
    assert [len(part) for part in share_out([1.0] * 3, shares).values()] == [1, 1, 1]
    assert [len(part) for part in share_out([1.0] * 30, shares, min_seconds=7.0).values()] == [16, 7, 7]


@pytest.mark.parametrize("kind", ["speech", "noise"])
def test_truncated_files_are_named(kind: str, tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their headers promise more than there is, as after a copy that broke off; libsndfile reads them as they are."""
    cut = {"speech": speech / "bo" / "session" / "03.wav", "noise": tmp_path / "noise" / "a.wav"}[kind]
    cut.parent.mkdir(exist_ok=True)
    soundfile.write(cut, np.stack([chirp(3, 1.0, 22_050)] * 2, axis=1), 22_050)
    if kind == "noise":
        for number in range(3):
            soundfile.write(cut.parent / f"b{number}.wav", chirp(number, 1.0), SAMPLE_RATE)
    content = cut.read_bytes()
    cut.write_bytes(content[: 44 + (len(content) - 44) // 2])
    noise = ("--noise", cut.parent) if kind == "noise" else ()
    assert prepare("--speech", speech, *noise, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"{cut}: cut short, holds 0.5 s of 1 s" in error
    assert "1 of " in error
    assert not (tmp_path / "out").exists()


def report(out: Path) -> str:
    return (out / "report.txt").read_text()


def test_21_bad_files_are_21_names(tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [speech / "ana" / f"bad{number:02d}.flac" for number in range(21)]
    for path in bad:
        path.write_bytes(b"fLaC but no more")
    error = refused(capsys, "--speech", speech, "--out", tmp_path / "out")
    assert all(str(path) in error for path in bad)
    assert "leave the bad files out with --allow-bad 21" in error
    error = refused(capsys, "--speech", speech, "--allow-bad", 20, "--out", tmp_path / "out")
    assert all(str(path) in error for path in bad)
    assert not (tmp_path / "out").exists()
    assert prepare("--speech", speech, "--allow-bad", 21, "--out", tmp_path / "out") == 0
    assert all(f"  {path}: cannot be read as audio" in report(tmp_path / "out") for path in bad)
    assert len(load_corpus(tmp_path / "out").clips) == 40


def test_bad_speech_and_noise_are_left_out_and_reported(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noise").mkdir()
    for number in range(5):
        soundfile.write(tmp_path / "noise" / f"{number}.ogg", chirp(number, 1.0), SAMPLE_RATE)
    whole = (tmp_path / "noise" / "0.ogg").read_bytes()
    (tmp_path / "noise" / "0.ogg").write_bytes(whole[: len(whole) * 6 // 10])
    soundfile.write(speech / "ana" / "short.flac", chirp(3, 0.1), SAMPLE_RATE)
    soundfile.write(speech / "bo" / "session" / "zeros.wav", np.zeros((22_050, 2)), 22_050)
    (speech / "cy").mkdir()
    for number in range(3):  # a speaker of whom one bad file leaves too little
        soundfile.write(speech / "cy" / f"{number}.wav", chirp(40 + number, 0.1 if number else 1.0), SAMPLE_RATE)
    arguments = ("--speech", speech, "--noise", tmp_path / "noise", "--out", tmp_path / "out")
    assert "1 of 5 files cannot be used" in refused(capsys, *arguments)
    assert prepare(*arguments, "--allow-bad", "all") == 0
    corpus = load_corpus(tmp_path / "out")
    assert corpus.speakers == ("ana", "bo")
    assert sum(clip.kind == "noise" for clip in corpus.clips) == 4
    for line in (
        "\nunreadable: 1\n",
        f"  {tmp_path / 'noise' / '0.ogg'}: ",
        f"  {speech / 'ana' / 'short.flac'}: lasts 0.1 s, and must last at least 0.2 s",
        f"  {speech / 'bo' / 'session' / 'zeros.wav'}: is digital silence",
        "speakers without enough usable files, left out: 1\n  cy (1: 0.wav)",
    ):
        assert line in report(tmp_path / "out")
    assert "cy (1: 0.wav)" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["-1", "some", "2.5"])
def test_allow_bad_takes_a_number_or_all(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    with pytest.raises(SystemExit):
        prepare("--speech", speech, "--out", tmp_path / "out", f"--allow-bad={value}")
    assert f"must be a number, or all, not {value}" in capsys.readouterr().err


def test_flac_without_a_length_is_measured(tmp_path: Path, speech: Path) -> None:
    """As ffmpeg writes it to a pipe: 0 samples in its header, which libsndfile takes for the largest number."""
    path = speech / "ana" / "00.flac"
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert prepare("--speech", speech, "--out", tmp_path / "out") == 0
    corpus = load_corpus(tmp_path / "out")
    assert sum(clip.duration for clip in corpus.clips) == pytest.approx(40.0, abs=0.01)
    (converted,) = (clip for clip in corpus.clips if clip.path.is_relative_to(tmp_path / "out" / "speech" / "ana"))
    np.testing.assert_array_equal(read_audio(converted.path), read_audio(path))


def test_what_is_no_file_is_counted(tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (speech / "bo" / "gone.wav").symlink_to("nowhere.wav")
    (speech / "bo" / "loop").symlink_to("..")
    (speech / "bo" / "zero.wav").symlink_to("/dev/zero")
    os.mkfifo(speech / "ana" / "pipe.wav")
    assert prepare("--speech", speech, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    for words in ("2 links that lead to no file", "1 links to folders", "1 pipes, sockets or devices"):
        assert words in said


def test_files_of_other_suffixes_are_counted(
    tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speakerlens.training.data.prepare.inspection.has_ffmpeg", lambda: False)
    for number in range(8):
        (speech / "bo" / f"{number}.m4a").write_bytes(b"\0\0\0\x18ftypM4A ")
    (speech / "bo" / "README").write_text("about")
    left = speech / "bo" / "__MACOSX" / "session"
    left.mkdir(parents=True)
    (left / "._00.wav").write_bytes(b"\0\5\x16\7")
    (left / "00.wav").write_bytes(b"\0\5\x16\7")
    (speech / "__MACOSX").mkdir()
    (speech / "ana" / ".DS_Store").write_bytes(b"\0")
    assert prepare("--speech", speech, "--out", tmp_path / "out") == 0
    told = "passed over, by suffix: 8 .m4a, 1 .txt, 1 without a suffix; pip install 'speakerlens[formats]' for .m4a\n"
    assert told in capsys.readouterr().out
    assert told in report(tmp_path / "out")
    assert load_corpus(tmp_path / "out").speakers == ("ana", "bo")
    (speech / "cy").mkdir()
    (speech / "cy" / "a.webm").write_bytes(b"\x1a\x45\xdf\xa3")
    assert "fewer: cy (0) (passed over: 8 .m4a, 1 .txt, 1 without a suffix, 1 .webm; pip" in refused(
        capsys, "--speech", speech, "--out", tmp_path / "again"
    )
    shutil.rmtree(speech / "cy")
    monkeypatch.setattr("speakerlens.training.data.prepare.inspection.has_ffmpeg", lambda: True)
    assert "8 of 48 files cannot be used" in refused(capsys, "--speech", speech, "--out", tmp_path / "again")
