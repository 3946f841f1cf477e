"""The sound of maps, from the client and the command line."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from speakerlens import Explain, SpeakerClient
from speakerlens.cli.files import show_tables
from speakerlens.cli.identify import LEAST_SEGMENTS
from speakerlens.identification import Identification
from speakerlens.results import Answer, AudioInfo, Segment, SpeakerScore, Timings
from tests.client.conftest import Command
from tests.serving.harness import talk


def test_client_returns_sound_and_scores(toy_address: str) -> None:
    samples = talk(1.2)
    with SpeakerClient(toy_address) as client:
        answer = client.identify(samples, rate=16_000, variants="da", explain=Explain(("s4",), listen=True))["da"]
    assert answer.explanation is not None
    listening = answer.explanation.listening["s4"]
    parts = [sf.read(io.BytesIO(sound), dtype="float32")[0] for sound in (listening.kept, listening.removed)]
    np.testing.assert_allclose(parts[0] + parts[1], samples, atol=2e-4)
    assert listening.score == pytest.approx(answer.best.probability, abs=1e-4)
    assert len(repr(listening)) < 100


def test_command_writes_one_file_and_prints_the_scores(command: Command, toy_address: str, tmp_path: Path) -> None:
    sf.write(tmp_path / "talk.flac", talk(1.2), 16_000)
    out = tmp_path / "out.flac"
    words = ("identify", tmp_path / "talk.flac", "--variants", "da,clean", "--listen", out, "--server", toy_address)
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("for what the fused map keeps") == 2
    samples, rate = sf.read(out)
    assert (len(samples), rate) == (4 * 19_200 + 4 * 8_000, 16_000)
    document = json.loads(command(*words, "--json").stdout)
    assert document["sound"] == str(out)
    for answer in document["answers"]:
        assert answer["explanation"]["listening"]["fused"].keys() == {
            "score",
            "kept_score",
            "removed_score",
            "drop",
            "increase",
        }


def test_another_kind_of_file_is_refused(command: Command, toy_address: str, tmp_path: Path) -> None:
    done = command("identify", "talk.flac", "--listen", tmp_path / "out.mp3", "--server", toy_address)
    assert done.returncode == 2
    assert "the name must end in .flac" in done.stderr


@pytest.mark.parametrize("segments", [1, 2])
def test_a_timeline_of_one_segment_is_not_printed(segments: int, capsys: pytest.CaptureFixture[str]) -> None:
    timeline = tuple(Segment(number, number + 1.0, f"speaker-{number}", 0.9, True) for number in range(segments))
    answer = Answer("da", 1, (SpeakerScore("speaker-0", 0.9, 3.0),), True, None, None, timeline)
    result = Identification((answer,), AudioInfo(2.0, 16_000, 1), Timings(0, 0, 0, 0))
    show_tables(LEAST_SEGMENTS)("talk.flac", result, {})
    assert ("da@1: timeline" in capsys.readouterr().out) == (segments > 1)
