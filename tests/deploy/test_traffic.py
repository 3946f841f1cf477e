"""The traffic generator: scenario, mixtures, and calls to a real server."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile

from deploy.traffic.scenario import DEFAULT, parse
from deploy.traffic.source import RATE, find, mixture, read
from tests.conftest import ROOT
from tests.serving import toy
from tests.serving.harness import ServerProcess, talk, voice


def snr_db(speech: np.ndarray, mixed: np.ndarray) -> float:
    """Return the SNR in dB of a mixture that was not scaled down."""
    rest = mixed - speech
    return 10 * float(np.log10(speech @ speech / (rest @ rest)))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Seven speakers with one test utterance each, and a noise at another rate."""
    clips = []
    for number in range(7):
        soundfile.write(tmp_path / f"{number}.flac", talk(3.0, RATE, number), RATE)
        clip = {"path": f"{number}.flac", "kind": "utterance", "split": "test", "start": 0.5, "duration": 2.0}
        clips.append({**clip, "speaker": f"s{number}"})
    soundfile.write(tmp_path / "noise.wav", voice(1.0, 48_000), 48_000)
    clips.append({"path": "noise.wav", "kind": "noise", "split": "test", "start": 0.0, "duration": 1.0})
    clips.append({"path": "gone.wav", "kind": "utterance", "split": "train", "start": 0.0, "duration": 1.0})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(clip) + "\n" for clip in clips), "utf-8")
    return tmp_path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of act-da with probes, beside one of clean without."""
    folder = tmp_path / "act-da" / "1"
    for name in ("utterances", "probes/noise"):
        (folder / name).mkdir(parents=True)
    soundfile.write(folder / "utterances" / "00-x.flac", talk(2.0), RATE)
    soundfile.write(folder / "probes" / "noise" / "00.flac", voice(2.0), RATE)
    utterances = [{"file": "utterances/00-x.flac", "speaker": "x"}]
    probes = {"utterances": utterances, "interference": ["noise"], "snrs_db": [10, 0], "folder": "probes"}
    (folder / "bundle.json").write_text(json.dumps({"probes": probes}), "utf-8")
    (tmp_path / "a" / "1").mkdir(parents=True)
    (tmp_path / "a" / "1" / "bundle.json").write_text('{"probes": null}', "utf-8")
    return folder


def test_scenario_moves_the_snr() -> None:
    scenario = parse("clean@1 noise:20..-5@2 babble:0@1 clean@1", minutes=2.5)
    assert scenario.seconds == pytest.approx(150)
    assert scenario.kinds == {"noise", "babble"}
    assert scenario.at(0) == (0, None)
    assert scenario.at(30) == (1, 20)
    assert scenario.at(60) == (1, 7.5)
    assert scenario.at(100) == (2, 0)
    assert scenario.at(1000) == (3, None)
    assert parse(DEFAULT).seconds == 300


@pytest.mark.parametrize("text", ["", "noise@1", "clean:3@1", "noise:5", "noise:5@0", "noise:a@1", "noise:1..@1"])
def test_invalid_scenarios_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"phase|clean has no SNR"):
        parse(text)


def test_corpus_yields_its_test_split(corpus: Path) -> None:
    source = find(corpus)
    assert source.count == 7
    assert source.kinds == {"noise", "babble"}
    utterance = source.utterance(3)
    assert utterance.speaker == "s3"
    np.testing.assert_array_equal(utterance.samples, read(corpus / "3.flac")[RATE // 2 :][: 2 * RATE])
    for kind in ("noise", "babble"):
        unwanted = source.interference(kind, utterance, Random(0))  # noqa: S311
        assert unwanted.shape == utterance.samples.shape
        assert unwanted.dtype == np.float32
        mixed = mixture(utterance.samples, unwanted, 5.0)
        assert snr_db(utterance.samples, mixed) == pytest.approx(5.0, abs=0.01)
        assert np.abs(mixture(utterance.samples, unwanted, -60.0)).max() <= 1
    # The noise is half as long as asked for, and was recorded at another rate.
    assert len(read(corpus / "noise.wav")) == RATE


def test_babble_excludes_the_speaker(corpus: Path) -> None:
    source = find(corpus)
    for place in range(source.count):
        utterance = source.utterance(place)
        babble = source.interference("babble", utterance, Random(place))  # noqa: S311
        found = [float(babble @ source.utterance(other).samples) for other in range(source.count)]
        strength = [value / float(np.linalg.norm(source.utterance(other).samples)) for other, value in enumerate(found)]
        assert sum(value > 0.5 for value in strength) == 5
        assert strength[place] < 0.5


@pytest.mark.parametrize("up", [0, 2])
def test_bundle_yields_its_probes(bundle: Path, up: int) -> None:
    source = find(bundle if up == 0 else bundle.parents[1])
    assert source.count == 1
    assert source.kinds == {"noise"}
    utterance = source.utterance(0)
    assert utterance.speaker == "x"
    unwanted = source.interference("noise", utterance, Random(0))  # noqa: S311
    np.testing.assert_array_equal(unwanted, read(bundle / "probes" / "noise" / "00.flac"))


def test_folder_without_audio_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without probes"):
        find(bundle.parents[1] / "a" / "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is neither a corpus"):
        find(tmp_path / "empty")


def play(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SPEAKERLENS_")}
    return subprocess.run(
        [sys.executable, "-m", "deploy.traffic", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
        env=environment,
    )


def test_calls_come_at_the_requested_rate(corpus: Path, tmp_path: Path) -> None:
    for seed, variant in enumerate(("act-da", "clean")):
        toy.write_bundle(tmp_path / "bundles", variant, 1, seed)
    with ServerProcess(tmp_path / "bundles") as server:
        address = ("--server", server.ready["grpc"])
        done = play(corpus, *address, "--scenario", "clean@0.05 noise:10@0.05", "--rate", "5", "--json")
        assert done.returncode == 0, done.stderr
        answered = Counter[str]()
        for line in done.stdout.splitlines():
            answered.update({name: sum(counts.values()) for name, counts in json.loads(line)["outcomes"].items()})
        assert 15 <= answered.total() <= 31  # five a second for six seconds, fewer on a busy machine
        served = server.metrics()
        for variant in ("act-da", "clean"):
            asked = f'speakerlens_requests_total{{code="OK",method="Identify",variant="{variant}"}}'
            assert served[asked] == answered[variant]
        (corpus / "3.flac").unlink()
        broken = play(corpus, *address, "--scenario", "clean@1", "--rate", "20")
        assert broken.returncode == 2
        assert "3.flac" in broken.stderr
        lacking = play(corpus, *address, "--scenario", "music:0@1")
        assert lacking.returncode == 2
        assert "there is no music in the source, but babble, noise" in lacking.stderr


@pytest.mark.parametrize("flags", [("--rate", "0"), ("--callers", "0"), ("--minutes", "nan"), ("--scenario", "x")])
def test_bad_options_are_refused(corpus: Path, flags: tuple[str, str]) -> None:
    done = play(corpus, *flags)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_missing_server_is_reported(corpus: Path) -> None:
    done = play(corpus, "--server", "127.0.0.1:1", "--wait", "0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
