"""Both sides of a call, and telephone bytes, from Python and from the command line, against a real server."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from speakerlens import Channel, ClientError, RawSamples, SpeakerClient, StreamOptions
from tests.client.conftest import Command
from tests.serving.harness import voice


def sides() -> list[np.ndarray]:
    return [(0.5 * voice(1.5, rate=8_000, seed=seed)).astype(np.float32) for seed in (1, 2)]


@pytest.fixture(scope="module")
def call_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("call") / "call.wav"
    sf.write(path, np.stack(sides(), axis=1), 8_000, subtype="ULAW")
    return path


@pytest.fixture(scope="module")
def mulaw() -> bytes:
    """The first side as a telephone line sends it."""
    raw = io.BytesIO()
    sf.write(raw, sides()[0], 8_000, format="RAW", subtype="ULAW")
    return raw.getvalue()


def test_each_side_of_a_call_has_its_own_answer(toy_address: str, call_file: Path, mulaw: bytes) -> None:
    with SpeakerClient(toy_address) as client:
        one, other = client.identify_batch([Channel(call_file, 1), Channel(call_file, 2)], variants="da")
        assert not isinstance(one, ClientError)
        assert not isinstance(other, ClientError)
        assert (one.audio.channel, other.audio.channel, one.audio.channels) == (1, 2, 2)
        assert one["da"].best.logit != other["da"].best.logit
        bytes_alone = client.identify(RawSamples(mulaw), variants="da")
        assert bytes_alone["da"].best == one["da"].best
        assert bytes_alone.audio.bandwidth_hz == one.audio.bandwidth_hz == pytest.approx(4000, abs=260)
        *_, whole = client.identify_stream([mulaw[:5000], mulaw[5000:]], StreamOptions(8_000, encoding="mulaw"))
        assert whole["da"].best.logit == pytest.approx(one["da"].best.logit, rel=1e-4)  # type: ignore[index]
        assert client.verify(Channel(call_file, 1), RawSamples(mulaw), variant="da").score == pytest.approx(1, abs=1e-4)
        with pytest.raises(ClientError, match="channel 3 is asked for, and it has 2 channels"):
            client.identify(Channel(call_file, 3))
        with pytest.raises(ValueError, match="channels count from 1"):
            client.identify(Channel(call_file, 0))
        with pytest.raises(ValueError, match="encoding: 'gsm' is not one of"):
            client.identify(RawSamples(mulaw, "gsm"))  # type: ignore[arg-type]


def test_command_answers_for_each_channel(
    command: Command, toy_address: str, call_file: Path, mulaw: bytes, tmp_path: Path
) -> None:
    where = ("--variants", "da", "--json", "--server", toy_address)
    done = command("identify", call_file, "--channel", "each", *where)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["audio"]["channel"] for answer in answers] == [1, 2]
    assert answers[0]["audio"]["bandwidth_hz"] == pytest.approx(4000, abs=260)
    second = json.loads(command("identify", call_file, "--channel", 2, *where).stdout)
    assert second["answers"][0]["speakers"] == answers[1]["answers"][0]["speakers"]
    (tmp_path / "a.ulaw").write_bytes(mulaw)
    raw = json.loads(command("identify", tmp_path / "a.ulaw", "--format", "mulaw", *where).stdout)
    assert raw["answers"][0]["speakers"] == answers[0]["answers"][0]["speakers"]
    table = command("identify", call_file, "--channel", 2, "--server", toy_address).stdout
    assert "(1.50 s, 8000 Hz, channel 2 of 2, sound up to 4" in table


def test_command_listens_to_telephone_bytes(command: Command, toy_address: str, mulaw: bytes) -> None:
    where = ("--json", "--server", toy_address, "--variants", "da")
    done = command("listen", "-", "--format", "mulaw", "--rate", 8000, *where, stdin=mulaw)
    assert done.returncode == 0, done.stderr
    whole = json.loads(done.stdout.splitlines()[-1])
    assert whole["audio"]["seconds"] == pytest.approx(1.5)
    with SpeakerClient(toy_address) as client:
        expected = client.identify(RawSamples(mulaw), variants="da")["da"].best
    assert whole["answers"][0]["speakers"][0]["speaker"] == expected.speaker


def test_contradicting_options_are_refused(command: Command, toy_address: str, call_file: Path) -> None:
    for options, words in (
        (("--rate", 8000), "--rate and --channels are of raw samples: name their --format"),
        (("--format", "mulaw", "--plot", "a.png"), "samples without a header have none"),
        (("--channel", "0"), "is not a whole number of 1 or more"),
    ):
        done = command("identify", call_file, *options, "--server", toy_address)
        assert done.returncode == 2
        assert words in done.stderr
