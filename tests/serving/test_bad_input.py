"""Bad and odd input over the wire: each gets the answer it deserves, and the server answers a good request after it."""

import io
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice

METHOD = "/speakerlens.v1.SpeakerIdentification/Identify"
INVALID, NOT_FOUND, OK = "INVALID_ARGUMENT", "NOT_FOUND", "OK"
VOICE = voice(1.5)
RATE_AT, CHANNELS_AT, BITS_AT, DATA_SIZE_AT = 24, 22, 34, 40  # in the header that libsndfile writes


def file(
    samples: NDArray[np.floating] = VOICE, rate: int = 16_000, kind: str = "WAV", subtype: str | None = "PCM_16"
) -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def patched(data: bytes, offset: int, code: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(code, changed, offset, value)
    return bytes(changed)


def flac_claiming(frames: int, data: bytes) -> bytes:
    """A FLAC whose STREAMINFO claims another number of frames (36 bits at byte 21.5)."""
    changed = bytearray(data)
    word = int.from_bytes(changed[18:26], "big") & ~(2**36 - 1)
    changed[18:26] = (word | frames).to_bytes(8, "big")
    return bytes(changed)


def with_tags(data: bytes) -> bytes:
    """A WAV with a LIST chunk, in which a chunk of no bytes claims to be 4 GB long."""
    return data[:36] + struct.pack("<4sI4s4sI", b"LIST", 12, b"INFO", b"IZZZ", 0xFFFF_FFF8) + data[36:]


def channels(count: int) -> NDArray[np.float32]:
    return np.repeat(VOICE[:, None], count, axis=1)


def encoded(data: bytes) -> pb.IdentifyRequest:
    return pb.IdentifyRequest(audio=pb.Audio(encoded=data))


def samples(
    data: bytes,
    rate: int = 16_000,
    count: int = 1,
    kind: pb.SampleFormat.ValueType = pb.SAMPLE_FORMAT_FLOAT32,
) -> pb.IdentifyRequest:
    message = pb.RawAudio(samples=data, format=kind, sample_rate=rate, channels=count)
    return pb.IdentifyRequest(audio=pb.Audio(raw=message))


def floats(values: NDArray[np.floating], rate: int = 16_000) -> pb.IdentifyRequest:
    return pb.IdentifyRequest(audio=raw(values.astype(np.float32), rate))


def good(**fields: object) -> pb.IdentifyRequest:
    return pb.IdentifyRequest(audio=raw(VOICE), **fields)  # type: ignore[arg-type]


def explained(**fields: object) -> pb.IdentifyRequest:
    return good(explain=pb.ExplainOptions(**fields))  # type: ignore[arg-type]


def models(*selectors: tuple[str, int]) -> pb.IdentifyRequest:
    return good(models=[pb.ModelSelector(variant=variant, version=version) for variant, version in selectors])


def with_value(value: float) -> NDArray[np.float32]:
    changed = VOICE.copy()
    changed[777] = value
    return changed


@dataclass(frozen=True)
class Case:
    """What is sent, the status it gets, and words that the message must hold."""

    name: str
    request: Callable[[], pb.IdentifyRequest | bytes]
    code: str
    words: tuple[str, ...] = ()


CASES = [
    # Files that are no audio, or not whole.
    Case("no audio at all", pb.IdentifyRequest, INVALID, ("audio", "no source")),
    Case("empty file", lambda: encoded(b""), INVALID, ("audio.encoded", "empty")),
    Case(
        "text",
        lambda: encoded(b"To whom it may concern. " * 99),
        INVALID,
        ("audio.encoded", "not audio in a container that is read"),
    ),
    Case("a picture", lambda: encoded(b"\x89PNG\r\n\x1a\n" + bytes(5000)), INVALID, ("a PNG picture, not audio",)),
    Case("zero bytes", lambda: encoded(bytes(9999)), INVALID, ("9,999 zero bytes and nothing else",)),
    Case("header only", lambda: encoded(file()[:44]), INVALID, ("audio.encoded", "no samples")),
    Case("half a header", lambda: encoded(file()[:20]), INVALID, ("damaged WAV", "'fmt ' says 16 bytes and 0 follow")),
    Case("WAV of 0 samples", lambda: encoded(file(np.zeros(0))), INVALID, ("no samples",)),
    Case("truncated WAV, long enough", lambda: encoded(file()[: 44 + 2 * 12_345]), OK),
    Case("truncated WAV, too short", lambda: encoded(file()[: 44 + 2 * 999]), INVALID, ("0.062 s", "0.500 s")),
    Case("WAV cut within a sample", lambda: encoded(file()[:-1]), OK),
    Case("truncated FLAC", lambda: encoded(file(kind="FLAC")[:9999]), INVALID, ("damaged FLAC",)),
    Case("truncated OGG", lambda: encoded(file(kind="OGG", subtype=None)[:5000]), INVALID, ("audio.encoded",)),
    Case("truncated MP3", lambda: encoded(file(voice(3.0), kind="MP3", subtype=None)[:9000]), OK),
    Case("noise behind a FLAC header", lambda: encoded(file(kind="FLAC")[:100] + b"\x5a" * 9000), INVALID),
    Case("WAV that hangs libsndfile", lambda: encoded(with_tags(file())), INVALID, ("damaged WAV", "'LIST'", "'IZZZ'")),
    Case("two WAVs in one", lambda: encoded(file() * 2), INVALID, ("two WAV files in one",)),
    Case("two OGGs in one", lambda: encoded(file(kind="OGG", subtype=None) * 2), INVALID, ("several Ogg streams",)),
    Case("Git LFS pointer", lambda: encoded(b"version https://git-lfs.github.com/spec/v1\n"), INVALID, ("Git LFS",)),
    Case("web page", lambda: encoded(b"<!DOCTYPE html><html>"), INVALID, ("an HTML page, not audio",)),
    Case("M4A", lambda: encoded(b"\0\0\0\x20ftypM4A " + bytes(99)), INVALID, ("M4A audio", "ffmpeg -i")),
    Case("WAV of unknown size", lambda: encoded(patched(file(), DATA_SIZE_AT, "<I", 0)), OK),
    # Headers that lie.
    Case("WAV claiming 2 GB", lambda: encoded(patched(file(), DATA_SIZE_AT, "<I", 0x7FFFFFFF)), OK),
    Case("WAV claiming 50 samples", lambda: encoded(patched(file(), DATA_SIZE_AT, "<I", 100)), INVALID, ("0.003 s",)),
    Case(
        "WAV claiming 0 Hz",
        lambda: encoded(patched(file(), RATE_AT, "<I", 0)),
        INVALID,
        ("damaged WAV", "'fmt '", "0 Hz"),
    ),
    Case("WAV claiming 1 Hz", lambda: encoded(patched(file(), RATE_AT, "<I", 1)), INVALID, ("1 Hz", "4000")),
    Case("WAV claiming 2 GHz", lambda: encoded(patched(file(), RATE_AT, "<I", 2 * 10**9)), INVALID, ("192000",)),
    Case(
        "WAV claiming 0 channels",
        lambda: encoded(patched(file(), CHANNELS_AT, "<H", 0)),
        INVALID,
        ("damaged WAV", "'fmt '", "0 channels"),
    ),
    Case("WAV claiming 900 channels", lambda: encoded(patched(file(), CHANNELS_AT, "<H", 900)), INVALID, ("1 to 8",)),
    Case(
        "WAV claiming 77 bits",
        lambda: encoded(patched(file(), BITS_AT, "<H", 77)),
        INVALID,
        ("damaged WAV", "'fmt '", "77 bits"),
    ),
    Case("FLAC claiming 50 days", lambda: encoded(flac_claiming(2**36 - 1, file(kind="FLAC"))), INVALID, ("60 s",)),
    Case("FLAC of unknown length", lambda: encoded(flac_claiming(0, file(kind="FLAC"))), OK),
    Case(
        "FLAC of 3 minutes that claims one second",
        lambda: encoded(flac_claiming(16_000, file(np.tile(voice(60.0), 3), kind="FLAC"))),
        OK,
    ),
    # Forms that are fine.
    Case("8-bit", lambda: encoded(file(subtype="PCM_U8")), OK),
    Case("24-bit", lambda: encoded(file(subtype="PCM_24")), OK),
    Case("mu-law", lambda: encoded(file(subtype="ULAW")), OK),
    Case("double", lambda: encoded(file(subtype="DOUBLE")), OK),
    Case("44.1 kHz stereo", lambda: encoded(file(channels(2), 44_100)), OK),
    Case("7 channels", lambda: encoded(file(channels(7))), OK),
    Case("9 channels", lambda: encoded(file(channels(9))), INVALID, ("audio.encoded", "9 channels", "1 to 8")),
    Case("4 kHz", lambda: encoded(file(voice(1.5, 4000), 4000)), OK),
    Case("192 kHz", lambda: encoded(file(voice(0.6, 192_000), 192_000)), OK),
    Case("3999 Hz", lambda: encoded(file(rate=3999)), INVALID, ("audio.encoded", "3999 Hz", "4000 to 192000")),
    Case("clipped", lambda: floats(np.clip(VOICE * 40, -1, 1)), OK),
    Case("a little over full scale", lambda: floats(VOICE / np.abs(VOICE).max() * 1.5), OK),
    Case("one click in silence", lambda: floats(np.eye(1, 16_000, 8000)[0]), OK),
    # Samples that are not sound.
    Case("1 s of silence", lambda: encoded(file(np.zeros(16_000))), INVALID, ("audio.encoded", "silent")),
    Case("DC", lambda: floats(np.full(16_000, 0.25)), INVALID, ("audio.raw.samples", "silent")),
    Case("DC at another rate", lambda: floats(np.full(48_000, 0.25), 48_000), INVALID, ("silent",)),
    Case("channels that cancel", lambda: encoded(file(np.stack([VOICE, -VOICE], 1), subtype="FLOAT")), INVALID),
    Case("one NaN", lambda: floats(with_value(np.nan)), INVALID, ("audio.raw.samples", "NaN")),
    Case("one infinity", lambda: floats(with_value(-np.inf)), INVALID, ("infinite",)),
    Case(
        "NaN in a file", lambda: encoded(file(with_value(np.nan), subtype="FLOAT")), INVALID, ("audio.encoded", "NaN")
    ),
    Case("16-bit values as floats", lambda: floats(VOICE * 32768), INVALID, ("full scale is 1.0", "32768")),
    Case("huge floats", lambda: floats(VOICE * 1e37), INVALID, ("peak",)),
    # Length.
    Case("too short", lambda: floats(VOICE[:7999]), INVALID, ("0.500 s",)),
    Case("just long enough", lambda: floats(VOICE[:8000]), OK),
    Case("too long by a sample", lambda: floats(voice(60.0 + 1 / 4000, 4000), 4000), INVALID, ("60 s",)),
    Case(
        "3 hours",
        lambda: encoded(file(np.zeros(3 * 3600 * 16_000, np.int16), kind="FLAC")),
        INVALID,
        ("longer than 60 s", "10800.0 s"),
    ),
    # Raw samples that do not fit their description.
    Case("WAV as samples", lambda: samples(file()[:40_000]), INVALID, ("audio.raw.samples", "a whole WAV file")),
    Case("no samples", lambda: samples(b""), INVALID, ("audio.raw.samples", "empty")),
    Case("7 bytes", lambda: samples(bytes(7)), INVALID, ("audio.raw.samples", "7 bytes")),
    Case("odd frames", lambda: samples(bytes(4 * 16_001), count=2), INVALID, ("whole frames of 8 bytes",)),
    Case("no rate", lambda: samples(VOICE.tobytes(), rate=0), INVALID, ("audio.raw.sample_rate", "0 Hz")),
    Case("negative rate", lambda: samples(VOICE.tobytes(), rate=-16_000), INVALID, ("audio.raw.sample_rate",)),
    Case("negative channels", lambda: samples(VOICE.tobytes(), count=-1), INVALID, ("audio.raw.channels",)),
    Case("9 raw channels", lambda: samples(bytes(36 * 16_000), count=9), INVALID, ("audio.raw.channels", "1 to 8")),
    Case("no format", lambda: samples(VOICE.tobytes(), kind=pb.SAMPLE_FORMAT_UNSPECIFIED), INVALID, ("raw.format",)),
    Case("format 42", lambda: samples(VOICE.tobytes(), kind=42), INVALID, ("audio.raw.format: 42",)),  # type: ignore[arg-type]
    # Models.
    Case("unknown variant", lambda: models(("none-such", 0)), NOT_FOUND, ("none-such", "act-da, clean, da")),
    Case("one unknown of two", lambda: models(("da", 0), ("x" * 5000, 0)), NOT_FOUND, ("models[1].variant",)),
    Case("variant with control codes", lambda: models(("a\r\nb\x00", 0)), NOT_FOUND, (r"a\r\nb\x00",)),
    Case("unknown version", lambda: models(("clean", 7)), NOT_FOUND, ("no version 7 of clean", "1, 2")),
    Case("negative version", lambda: models(("clean", -1)), INVALID, ("models[0].version",)),
    Case("empty variant", lambda: models(("", 0)), INVALID, ("models[0].variant",)),
    Case("a model twice", lambda: models(("da", 0), ("clean", 0), ("clean", 2)), INVALID, ("models[2]", "twice")),
    Case(
        "a million models",
        lambda: good().SerializeToString() + b"\x12\x00" * 1_000_000,
        INVALID,
        ("models: 1000000 are", "at most 64"),
    ),
    # Options.
    Case("negative top-k", lambda: good(top_k=-1), INVALID, ("top_k: -1", "1 to 12")),
    Case("top-k above the speakers", lambda: good(top_k=13), INVALID, ("top_k: 13", "1 to 12")),
    Case("top-k of all speakers", lambda: good(top_k=12), OK),
    Case("unknown target", lambda: explained(target_speaker="eve"), NOT_FOUND, ("target_speaker", "eve", "speaker-00")),
    Case("stage unspecified", lambda: explained(stages=[0]), INVALID, ("explain.stages[0]",)),
    Case("stage 42", lambda: explained(stages=[1, 42]), INVALID, ("explain.stages[1]: 42",)),
    Case("a stage twice", lambda: explained(stages=[1, 2, 1]), INVALID, ("explain.stages", "twice")),
    Case("a million stages", lambda: explained(stages=[5] * 1_000_000), INVALID, ("explain.stages: 1000000",)),
    Case("native fused", lambda: explained(resolution=2), INVALID, ("explain.stages", "native")),
    Case("resolution 9", lambda: explained(resolution=9), INVALID, ("explain.resolution: 9",)),
    Case("encoding 9", lambda: explained(encoding=9), INVALID, ("explain.encoding: 9",)),
    # Messages.
    Case("not a message", lambda: b"\xff\xff\xff\xff\x00garbage", INVALID, ("not of the method's request type",)),
    Case("an empty message", lambda: b"", INVALID, ("no source",)),
    Case("too large a message", lambda: samples(bytes(33 * 1024 * 1024)), "RESOURCE_EXHAUSTED", ("larger",)),
]


def test_there_are_enough_kinds_of_bad_input() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.fixture(scope="module", autouse=True)
def logged_before(toy_server: ServerProcess) -> int:
    """How much other tests have made the shared server log."""
    return len(toy_server.log)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_bad_input_gets_its_status_and_service_goes_on(toy_server: ServerProcess, case: Case) -> None:
    request = case.request()
    data = request if isinstance(request, bytes) else request.SerializeToString()
    call: grpc.UnaryUnaryMultiCallable[bytes, pb.IdentifyResponse] = toy_server.channel.unary_unary(
        METHOD, response_deserializer=pb.IdentifyResponse.FromString
    )
    code, details = OK, ""
    try:
        answer = call(data, timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        code, details = error.code().name, error.details() or ""
    else:
        assert np.isfinite([score.logit for each in answer.answers for score in each.speakers]).all()
        assert np.isfinite([score.probability for each in answer.answers for score in each.speakers]).all()
    assert code == case.code, details
    assert len(details) < 2500
    for word in case.words:
        assert word in details

    audio = voice(0.8, seed=7)
    after = toy_server.identify(
        pb.IdentifyRequest(audio=raw(audio), models=[pb.ModelSelector(variant="da")], explain=pb.ExplainOptions())
    )
    expected = toy.expected(toy.weights(2), audio)["logits"].max()
    assert after.answers[0].speakers[0].logit == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (samples(bytes(64_000), rate=0), "audio.raw.sample_rate: sample rate 0 Hz"),
        (samples(bytes(64_000), rate=-5), "audio.raw.sample_rate: sample rate -5 Hz"),
        (samples(bytes(64_000), rate=1), "audio.raw.sample_rate: sample rate 1 Hz"),
        (encoded(flac_claiming(2**36 - 1, file(kind="FLAC"))), "audio.encoded: longer than"),
    ],
)
def test_reason_is_the_audio_however_soon_the_deadline(
    toy_server: ServerProcess, request_: pb.IdentifyRequest, words: str
) -> None:
    """By its header the audio would last hours: no reason to speak of the deadline, as it is refused when opened."""
    toy_server.identify(floats(voice(6.0)))  # what a window costs is known then
    done = threading.Event()

    def parts() -> Iterator[pb.IdentifyStreamRequest]:
        yield pb.IdentifyStreamRequest(start=pb.StreamStart(format=pb.SAMPLE_FORMAT_INT16, sample_rate=16_000))
        done.wait(30)

    # An idle server tries a call against the estimate, so it must not be idle.
    stream = toy_server.stub.IdentifyStream(parts(), timeout=CALL_SECONDS)
    toy_server.wait_for_metric("speakerlens_requests_in_flight", 1)
    try:
        with pytest.raises(grpc.RpcError) as caught:
            toy_server.identify(request_, timeout=3.0)
    finally:
        done.set()
        stream.cancel()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in (caught.value.details() or "")


def test_bad_input_leaves_no_traceback_in_the_log(toy_server: ServerProcess, logged_before: int) -> None:
    """Runs after the table: refusals are not incidents, and a client's line break does not start a line of the log."""
    logged = toy_server.log[logged_before:]
    assert "Traceback" not in logged
    assert all(line[:2] == "20" for line in logged.splitlines() if "Warning: Xing" not in line)
