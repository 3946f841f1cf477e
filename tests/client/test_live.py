"""Long and live audio through the clients and the command, against a real server."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from PIL import Image

from speakerlens import (
    AsyncSpeakerClient,
    Explain,
    Identification,
    InvalidRequestError,
    SpeakerClient,
    StreamOptions,
    WindowResult,
)
from speakerlens.responses import png_levels
from speakerlens.serving.pipeline.explain import png
from tests.serving import toy
from tests.serving.harness import ServerProcess, talk

from .conftest import Command

OPTIONS = StreamOptions(rate=16_000, variants="da", with_embedding=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("bundles")
    toy.write_bundle(root, "da", 1)
    with ServerProcess(root, "--window-seconds=1") as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[SpeakerClient]:
    with SpeakerClient(server.ready["grpc"]) as client:
        yield client


def chunks(samples: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(samples), 3001):
        yield samples[start : start + 3001]


def check(whole: Identification, answers: list[WindowResult | Identification]) -> None:
    *windows, last = answers
    assert isinstance(last, Identification)
    assert all(isinstance(each, WindowResult) for each in windows)
    assert last.audio == whole.audio
    one, other = last["da"], whole["da"]
    assert [score.speaker for score in one.speakers] == [score.speaker for score in other.speakers]
    assert [(s.start_s, s.end_s, s.speaker) for s in one.timeline] == [
        (s.start_s, s.end_s, s.speaker) for s in other.timeline
    ]
    assert one.embedding is not None
    assert other.embedding is not None
    np.testing.assert_allclose(one.embedding, other.embedding, rtol=1e-4, atol=1e-6)
    assert len(windows) >= len(one.timeline) >= 1


def test_stream_answers_as_the_whole_does(client: SpeakerClient) -> None:
    audio = talk(4.2, seed=1)
    whole = client.identify(audio, rate=16_000, variants="da", with_embedding=True)
    check(whole, list(client.identify_stream(chunks(audio), OPTIONS)))
    integers = (audio * 32767).astype("<i2")
    whole = client.identify(integers, rate=16_000, variants="da", with_embedding=True)
    data = integers.tobytes()
    check(whole, list(client.identify_stream((data[i : i + 777] for i in range(0, len(data), 777)), OPTIONS)))


def test_async_client_streams(server: ServerProcess) -> None:
    async def run() -> None:
        audio = talk(3.1, seed=2)

        async def source() -> AsyncIterator[np.ndarray]:
            for each in chunks(audio):
                await asyncio.sleep(0)
                yield each

        async def broken() -> AsyncIterator[np.ndarray]:
            yield audio[:100]
            raise OSError("the microphone is gone")

        async with AsyncSpeakerClient(server.ready["grpc"]) as client:
            whole = await client.identify(audio, rate=16_000, variants="da", with_embedding=True)
            check(whole, [each async for each in client.identify_stream(source(), OPTIONS)])
            with pytest.raises(OSError, match="the microphone is gone"):
                [each async for each in client.identify_stream(broken(), OPTIONS)]

    asyncio.run(asyncio.wait_for(run(), 60))


def test_errors_of_the_source_are_raised_unchanged(client: SpeakerClient) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield talk(0.1)
        raise OSError("the microphone is gone")

    with pytest.raises(OSError, match="the microphone is gone"):
        list(client.identify_stream(broken(), OPTIONS))
    with pytest.raises(ValueError, match="all must be floats, or all 16-bit"):
        list(client.identify_stream([talk(0.1), bytes(100)], OPTIONS))
    with pytest.raises(InvalidRequestError, match="samples: silent"):
        list(client.identify_stream([bytes(64_000)], OPTIONS))


@pytest.mark.parametrize("encoding", ["float16", "uint8", "png"])
@pytest.mark.parametrize("resolution", ["features", "native"])
def test_every_encoding_is_decoded(client: SpeakerClient, encoding: str, resolution: str) -> None:
    def identify(encoding: str) -> Identification:
        explain = Explain(stages=("s1", "s3"), resolution=resolution, encoding=encoding)  # type: ignore[arg-type]
        return client.identify(talk(2.3), rate=16_000, explain=explain)

    exact, coarse = identify("float32")["da"].explanation, identify(encoding)["da"].explanation
    assert exact is not None
    assert exact.log_mel is not None
    assert coarse is not None
    assert coarse.log_mel is not None
    pairs = [*zip(exact.maps.values(), coarse.maps.values(), strict=True), (exact.log_mel, coarse.log_mel)]
    for one, other in pairs:
        step = float(np.ptp(one.values) / 255 * 0.51 if encoding != "float16" else np.abs(one.values).max() / 2000)
        np.testing.assert_allclose(other.values, one.values, atol=step + 1e-7)
        np.testing.assert_array_equal(other.times_s, one.times_s)
        np.testing.assert_array_equal(other.frequencies_hz, one.frequencies_hz)
        assert (other.picture is not None) == (encoding == "png")
    if encoding == "png":
        assert coarse.maps["s1"].picture is not None
        assert coarse.log_mel.picture is not None
        shown = Image.open(io.BytesIO(coarse.maps["s1"].picture))
        assert (shown.mode, shown.size) == ("P", exact.maps["s1"].values.shape[::-1])
        assert Image.open(io.BytesIO(coarse.log_mel.picture)).mode == "L"


def test_png_has_high_frequencies_on_top() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    grey = np.asarray(Image.open(io.BytesIO(png(values, coloured=False))))
    np.testing.assert_array_equal(grey, values[::-1])
    colours = np.asarray(Image.open(io.BytesIO(png(values, coloured=True))).convert("RGB")).astype(int)
    brightness = colours @ [299, 587, 114]
    assert (np.diff(brightness[::-1].ravel()) > 0).all(), "more is brighter"
    for coloured in (False, True):
        np.testing.assert_array_equal(png_levels(png(values, coloured), 3, 4), values)
        with pytest.raises(ValueError, match="a picture of 3 x 4 pixels"):
            png_levels(png(values, coloured), 4, 4)
    with pytest.raises(ValueError, match="not a PNG"):
        png_levels(b"\x89PNG\r\n\x1a\n", 3, 4)


def test_listen_to_raw_samples_and_to_a_file(command: Command, server: ServerProcess, tmp_path: Path) -> None:
    audio = talk(3.3, seed=1)
    data = (audio * 32767).astype("<i2").tobytes()
    done = command("listen", "-", "--json", "--server", server.ready["grpc"], stdin=data)
    assert done.returncode == 0, done.stderr
    *windows, whole = map(json.loads, done.stdout.splitlines())
    assert [each["window"]["start_s"] for each in windows][:2] == [0.0, 0.48]
    assert all(each["answers"][0]["variant"] == "da" for each in windows)
    assert whole["file"] == "-"
    assert whole["answers"][0]["timeline"][-1]["end_s"] == pytest.approx(3.3)
    path = tmp_path / "talk.flac"
    sf.write(path, audio, 16_000)
    text = command("listen", path, "--server", server.ready["grpc"]).stdout
    assert "    0.00 to     1.00 s  da@1: speaker-" in text
    assert "da@1: timeline" in text


def test_listen_refuses_what_is_not_audio(command: Command, server: ServerProcess, tmp_path: Path) -> None:
    path = tmp_path / "talk.flac"
    path.write_bytes(b"nothing")
    for arguments, data, code in (
        ([str(path)], b"", 3),
        ([str(tmp_path / "none.wav")], b"", 3),
        (["-"], bytes(64_000), 3),
        (["-", "--variants=none-such"], bytes(64_000), 4),
        (["-", "--variants=a@b"], bytes(64_000), 2),
    ):
        done = command("listen", *arguments, "--server", server.ready["grpc"], stdin=data)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith("speakerlens: ")
        assert done.stderr.count("\n") == 1


def test_listen_names_a_file_that_is_sent_as_samples(command: Command, server: ServerProcess, tmp_path: Path) -> None:
    """As by `ffmpeg -f flac - | speakerlens listen -`."""
    for suffix, name in (("mp3", "MP3"), ("ogg", "OGG"), ("flac", "FLAC"), ("aiff", "AIFF")):
        path = tmp_path / f"talk.{suffix}"
        sf.write(path, talk(3.0), 16_000)
        done = command("listen", "-", "--server", server.ready["grpc"], stdin=path.read_bytes())
        assert done.returncode == 3
        assert f"a whole {name} file, where samples without a header are expected" in done.stderr
    sf.write(tmp_path / "talk.wav", talk(3.0), 16_000)
    wave = (tmp_path / "talk.wav").read_bytes()
    path.write_bytes(wave[:36] + b"LIST\x0c\x00\x00\x00INFOIZZZ\xf8\xff\xff\xff" + wave[36:])
    done = command("listen", path, "--server", server.ready["grpc"])
    assert done.returncode == 3
    assert "damaged WAV: in its chunk 'LIST'" in done.stderr


def listened(command: Command, server: ServerProcess, source: object, stdin: bytes = b"") -> dict[str, Any]:
    done = command("listen", source, "--json", "--server", server.ready["grpc"], stdin=stdin)
    assert done.returncode == 0, done.stderr
    whole: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"audio": whole["audio"], "best": [each["speakers"][0]["speaker"] for each in whole["answers"]]}


@pytest.mark.parametrize(("rate", "subtype"), [(44_100, "PCM_16"), (22_050, "PCM_24"), (8_000, "FLOAT")])
def test_listen_follows_the_header_of_a_wav(
    command: Command, server: ServerProcess, tmp_path: Path, rate: int, subtype: str
) -> None:
    """As by `ffmpeg -f wav -`: the sizes are not known, and tags come before or after the samples."""
    path = tmp_path / "talk.wav"
    sf.write(path, np.repeat(talk(3.2, rate)[:, None], 2, axis=1), rate, subtype=subtype)
    expected = listened(command, server, path)
    assert (expected["audio"]["sample_rate"], expected["audio"]["channels"]) == (rate, 2)
    wave = path.read_bytes()
    at = wave.index(b"data")
    tags = b"LIST\x1a\x00\x00\x00INFOISFT\x0e\x00\x00\x00Lavf60.16.100\x00"
    for stream in (
        wave[:at] + tags + b"data\xff\xff\xff\xff" + wave[at + 8 :],
        wave[:at] + b"data\x00\x00\x00\x00" + wave[at + 8 :],
        wave + tags,
    ):
        assert listened(command, server, "-", stream) == expected


def test_listen_to_a_file_sends_what_it_holds(command: Command, server: ServerProcess, tmp_path: Path) -> None:
    """MP3 whose header promises more than there is; FLAC without a length."""
    sf.write(tmp_path / "talk.mp3", talk(3.0, 44_100), 44_100)
    sf.write(tmp_path / "talk.flac", talk(3.0), 16_000)
    flac = bytearray((tmp_path / "talk.flac").read_bytes())
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    (tmp_path / "pipe.flac").write_bytes(flac)
    mp3 = (tmp_path / "talk.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(mp3[: len(mp3) * 2 // 3])
    seconds = {
        name: listened(command, server, tmp_path / name)["audio"]["seconds"] for name in ("cut.mp3", "pipe.flac")
    }
    assert seconds["pipe.flac"] == 3.0
    assert 1.8 < seconds["cut.mp3"] < 2.1


def test_table_of_a_long_recording_has_a_timeline(command: Command, server: ServerProcess, tmp_path: Path) -> None:
    path = tmp_path / "talk.flac"
    sf.write(path, talk(5.0), 16_000)
    done = command("identify", path, "--server", server.ready["grpc"])
    assert done.returncode == 0
    document = json.loads(command("identify", path, "--json", "--server", server.ready["grpc"]).stdout)
    timeline = document["answers"][0]["timeline"]
    assert timeline
    assert ("da@1: timeline" in done.stdout) == (len(timeline) > 1)
