"""Streams over gRPC: the answers are those of `Identify`, however the audio is chunked."""

import asyncio
import gc
import queue
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.pipeline.stream import IdleBudget
from tests.serving import toy
from tests.serving.conftest import SEEDS
from tests.serving.harness import CALL_SECONDS, ServerProcess, plane, raw, talk, voice

WINDOW, HOP = 16_000, 7_680
FLOAT, INT = pb.SAMPLE_FORMAT_FLOAT32, pb.SAMPLE_FORMAT_INT16
STAGES = [pb.STAGE_S1, pb.STAGE_S2, pb.STAGE_S3, pb.STAGE_S4, pb.STAGE_FUSED]
METHOD = 'method="IdentifyStream"'


@pytest.fixture(scope="module")
def server(toy_bundles: Path) -> Iterator[ServerProcess]:
    with ServerProcess(
        toy_bundles, "--window-seconds=1", "--max-seconds=30", "--max-explained-seconds=20", "--stream-idle-seconds=2"
    ) as server:
        yield server


def start(*names: str, **fields: Any) -> pb.IdentifyStreamRequest:
    models = [pb.ModelSelector(variant=name) for name in names or ("da",)]
    fields = {"format": FLOAT, "sample_rate": 16_000, "models": models, **fields}
    return pb.IdentifyStreamRequest(start=pb.StreamStart(**fields))


def chunk(data: bytes) -> pb.IdentifyStreamRequest:
    return pb.IdentifyStreamRequest(samples=data)


def stream(server: ServerProcess, *messages: pb.IdentifyStreamRequest) -> list[pb.IdentifyStreamResponse]:
    return list(server.stub.IdentifyStream(iter(messages), timeout=CALL_SECONDS))


def same(one: pb.ModelAnswer, other: pb.ModelAnswer) -> None:
    """The same but for rounding, which depends on what is computed together."""
    assert [s.speaker for s in one.speakers] == [s.speaker for s in other.speakers]
    np.testing.assert_allclose([s.logit for s in one.speakers], [s.logit for s in other.speakers], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.embedding, other.embedding, rtol=1e-4, atol=1e-6)
    speaker_turns = [[(s.start_s, s.end_s, s.speaker, s.known) for s in each.timeline] for each in (one, other)]
    assert speaker_turns[0] == speaker_turns[1]


@settings(max_examples=25, deadline=None)
@given(
    seconds=st.floats(0.5, 4.0),
    rate=st.sampled_from([16_000, 8_000, 44_100]),
    channels=st.integers(1, 2),
    kind=st.sampled_from([FLOAT, INT]),
    sizes=st.lists(st.sampled_from([1, 2, 3, 5, 7, 640, 4099, 30_001, 65_537, 200_000]), min_size=1, max_size=20),
)
def test_any_chunks_give_the_answers_of_identify(
    server: ServerProcess, seconds: float, rate: int, channels: int, kind: pb.SampleFormat.ValueType, sizes: list[int]
) -> None:
    samples = np.stack([talk(seconds, rate, seed=seed) for seed in range(channels)], axis=1)
    data = samples.astype("<f4").tobytes() if kind == FLOAT else (samples * 32767).astype("<i2").tobytes()
    message = pb.RawAudio(samples=data, format=kind, sample_rate=rate, channels=channels)
    models = [pb.ModelSelector(variant=name) for name in ("clean", "da")]
    whole = server.identify(
        pb.IdentifyRequest(audio=pb.Audio(raw=message), models=models, with_embedding=True, top_k=12)
    )
    chunks: list[pb.IdentifyStreamRequest] = []
    while data:
        size = sizes[len(chunks) % len(sizes)] if len(chunks) < 300 else len(data)
        chunks.append(chunk(data[:size]))
        data = data[size:]
    options = {"format": kind, "sample_rate": rate, "channels": channels, "with_embedding": True, "top_k": 12}
    *windows, last = stream(server, start("clean", "da", **options), *chunks)
    assert last.whole.audio == whole.audio
    for one, other in zip(last.whole.answers, whole.answers, strict=True):
        same(one, other)
    assert len(windows) == len({each.window.start_s for each in windows}) >= 1
    assert windows[0].window.start_s == 0
    assert windows[-1].window.end_s == pytest.approx(whole.audio.seconds, abs=1e-3)


def test_each_window_is_answered_once_filled(server: ServerProcess) -> None:
    """The next audio is sent only after the answer has come; every answer is that of the window's audio alone."""
    audio = talk(3.3, seed=4)
    waiting: queue.SimpleQueue[pb.IdentifyStreamRequest | None] = queue.SimpleQueue()
    answers = server.stub.IdentifyStream(iter(waiting.get, None), timeout=CALL_SECONDS)
    waiting.put(start("clean", top_k=12))
    sent, weights = 0, toy.weights(SEEDS["clean", 2])
    for end in range(WINDOW, len(audio), HOP):
        waiting.put(chunk(audio[sent:end].tobytes()))
        sent = end
        window = next(answers).window
        assert (window.start_s, window.end_s) == ((end - WINDOW) / 16_000, end / 16_000)
        assert window.speech
        logits = np.sort(toy.expected(weights, audio[end - WINDOW : end])["logits"])[::-1]
        np.testing.assert_allclose([s.logit for s in window.answers[0].speakers], logits, rtol=1e-3, atol=1e-6)
        timings = window.timings
        assert timings.inference_s > 0
        assert timings.encode_s > 0
    waiting.put(chunk(audio[sent:].tobytes()))
    waiting.put(None)
    last, whole = list(answers)
    assert last.window.end_s == pytest.approx(3.3)
    assert whole.whole.audio.seconds == pytest.approx(3.3)
    assert whole.whole.answers[0].timeline


def test_window_without_speech_has_no_answers_and_no_vote(server: ServerProcess) -> None:
    pause = 1e-3 * np.random.default_rng(0).normal(size=32_000).astype(np.float32)
    *windows, last = stream(server, start(), chunk(np.concatenate([talk(1.0), pause, talk(1.0)]).tobytes()))
    speech = [each.window.speech for each in windows]
    assert speech[0]
    assert speech[-1]
    assert not all(speech)
    assert all(bool(each.window.answers) == each.window.speech for each in windows)
    assert len(last.whole.answers[0].timeline) == 2


def test_maps_of_windows_and_of_the_whole(server: ServerProcess) -> None:
    audio = talk(3.0, seed=2)
    options = pb.ExplainOptions(stages=[pb.STAGE_FUSED, pb.STAGE_S1])
    *windows, last = stream(server, start("clean", explain=options), chunk(audio.tobytes()))
    message = pb.RawAudio(samples=audio.tobytes(), format=FLOAT, sample_rate=16_000)
    models = [pb.ModelSelector(variant="clean")]
    whole = server.identify(pb.IdentifyRequest(audio=pb.Audio(raw=message), models=models, explain=options))
    one, other = last.whole.answers[0].explanation, whole.answers[0].explanation
    assert one.target_speaker == other.target_speaker
    for mine, theirs in zip([*one.saliency, one.log_mel], [*other.saliency, other.log_mel], strict=True):
        np.testing.assert_allclose(plane(mine), plane(theirs), atol=1e-4)
    assert [each.window.speech for each in windows] == [True] * 5 + [False], "the last has 0.2 s"
    for each in windows[:-1]:
        start_s = each.window.start_s
        for shown in each.window.answers[0].explanation.saliency:
            np.testing.assert_allclose(shown.times_s, start_s + (np.arange(98) * 160 + 200) / 16_000, atol=1e-5)


def with_nan() -> NDArray[np.float32]:
    audio = voice(1.5)
    audio[20_000] = np.nan
    return audio


SOUND = voice(1.5).tobytes()
BAD: list[tuple[str, list[pb.IdentifyStreamRequest], str]] = [
    ("nothing at all", [], "start: missing"),
    ("samples first", [chunk(SOUND), start()], "start: missing"),
    ("an empty message first", [pb.IdentifyStreamRequest()], "start: missing"),
    ("two starts", [start(), chunk(SOUND), start()], "start: sent twice"),
    ("an empty message later", [start(), chunk(SOUND), pb.IdentifyStreamRequest()], "samples: missing"),
    ("no samples", [start()], "samples: holds no samples"),
    ("no format", [start(format=0), chunk(SOUND)], "start.format: 0"),
    ("format 42", [start(format=42), chunk(SOUND)], "start.format: 42"),
    ("no rate", [start(sample_rate=0), chunk(SOUND)], "start.sample_rate: sample rate 0 Hz"),
    ("9 channels", [start(channels=9), chunk(SOUND)], "start.channels: 9 channels"),
    ("negative top-k", [start(top_k=-1), chunk(SOUND)], "top_k: -1"),
    ("NaN", [start(), chunk(with_nan().tobytes())], "samples: holds NaN"),
    ("16-bit values as floats", [start(), chunk((voice(1.5) * 32768).tobytes())], "samples: peak"),
    ("silence", [start(), chunk(bytes(80_000))], "samples: silent"),
    (
        "an end within a frame",
        [start(channels=2), chunk(SOUND[:-6])],
        "samples: the stream ends within a frame: 2 of 8",
    ),
    ("too short", [start(), chunk(SOUND[:4000])], "audio: 0.062 s long"),
    ("too long", [start(), *[chunk(voice(10.0).tobytes())] * 4], "samples: longer than 30 s"),
    (
        "too long for maps",
        [start(explain=pb.ExplainOptions()), *[chunk(talk(10.0).tobytes())] * 3],
        "samples: longer than 20 s, the most accepted where maps are asked for",
    ),
]


@pytest.mark.parametrize(("messages", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_invalid_stream_is_named(server: ServerProcess, messages: list[pb.IdentifyStreamRequest], words: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stream(server, *messages)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.details() or "").startswith(words)


def test_unknown_variant_is_not_found(server: ServerProcess) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stream(server, start("none-such"), chunk(SOUND))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_silent_client_exceeds_the_idle_budget(server: ServerProcess) -> None:
    waiting: queue.SimpleQueue[pb.IdentifyStreamRequest | None] = queue.SimpleQueue()
    answers = server.stub.IdentifyStream(iter(waiting.get, None), timeout=CALL_SECONDS)
    waiting.put(start())
    waiting.put(chunk(talk(1.0).tobytes()))
    assert next(answers).window.speech
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (caught.value.details() or "").startswith("samples: less than a tenth of real time for 2 s")
    waiting.put(None)


@pytest.mark.parametrize("drip", [b"", b"\0"], ids=["empty", "a byte"])
def test_trickling_client_exceeds_the_idle_budget(server: ServerProcess, drip: bytes) -> None:
    """Messages are no progress: only audio is."""

    def trickle() -> Iterator[pb.IdentifyStreamRequest]:
        yield start()
        yield chunk(talk(1.0).tobytes())
        while time.monotonic() - begun < CALL_SECONDS:
            time.sleep(0.05)
            yield chunk(drip)

    begun = time.monotonic()
    answers = server.stub.IdentifyStream(trickle(), timeout=CALL_SECONDS)
    assert next(answers).window.speech
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (caught.value.details() or "").startswith("samples: less than a tenth of real time for 2 s")
    assert time.monotonic() - begun < 6
    assert server.metrics()["speakerlens_requests_in_flight"] == 0


def test_stream_with_pauses_continues(server: ServerProcess) -> None:
    """Twice nothing comes for longer than half of what is allowed, and what was spoken meanwhile comes at once."""
    audio = talk(4.0)

    def hiccups() -> Iterator[pb.IdentifyStreamRequest]:
        yield start()
        for pause, begin, end in ((0.2, 0.0, 0.5), (1.4, 0.5, 1.9), (1.4, 1.9, 3.5), (0.5, 3.5, 4.0)):
            time.sleep(pause)
            yield chunk(audio[round(begin * 16_000) : round(end * 16_000)].tobytes())

    *windows, last = server.stub.IdentifyStream(hiccups(), timeout=CALL_SECONDS)
    assert last.whole.audio.seconds == 4.0
    assert len(windows) > 4


@pytest.mark.parametrize("ending", ["cancel", "deadline"])
def test_aborted_stream_releases_everything(server: ServerProcess, ending: str) -> None:
    code = "CANCELLED" if ending == "cancel" else "DEADLINE_EXCEEDED"
    counter = f'speakerlens_requests_total{{code="{code}",{METHOD},variant="da"}}'
    before = server.metrics().get(counter, 0)
    waiting: queue.SimpleQueue[pb.IdentifyStreamRequest | None] = queue.SimpleQueue()
    limit = CALL_SECONDS if ending == "cancel" else 1.5
    answers = server.stub.IdentifyStream(iter(waiting.get, None), timeout=limit)
    waiting.put(start())
    waiting.put(chunk(talk(1.0).tobytes()))
    assert next(answers).window.speech
    if ending == "cancel":
        answers.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code().name == code
    waiting.put(None)
    server.wait_for_metric(counter, before + 1)
    assert server.metrics()["speakerlens_requests_in_flight"] == 0


def test_streams_leave_places_to_other_requests(toy_bundles: Path) -> None:
    sent: list[queue.SimpleQueue[pb.IdentifyStreamRequest | None]] = [queue.SimpleQueue() for _ in range(2)]
    with ServerProcess(toy_bundles, "--window-seconds=1", "--max-in-flight=4") as server:
        streams = [server.stub.IdentifyStream(iter(each.get, None), timeout=CALL_SECONDS) for each in sent]
        for waiting, answers in zip(sent, streams, strict=True):
            waiting.put(start())
            waiting.put(chunk(talk(1.0).tobytes()))
            assert next(answers).window.speech
        with pytest.raises(grpc.RpcError) as caught:
            stream(server, start(), chunk(talk(1.0).tobytes()))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 live streams are in work already" in (caught.value.details() or "")
        assert int({each.key: each.value for each in caught.value.trailing_metadata()}["retry-after-ms"]) == 2000
        request = pb.IdentifyRequest(audio=raw(voice(1.0)), models=[pb.ModelSelector(variant="da")])
        assert server.identify(request).answers
        for waiting, answers in zip(sent, streams, strict=True):
            answers.cancel()
            waiting.put(None)
        server.wait_for_metric(f'speakerlens_requests_total{{code="CANCELLED",{METHOD},variant="da"}}', 2)
        assert stream(server, start(), chunk(talk(1.0).tobytes()))[-1].HasField("whole")


def test_client_that_does_not_read_is_not_read_from(toy_bundles: Path) -> None:
    """It would send a gigabyte; the server takes what fits into its buffers, and goes on when answers are read."""
    taken = 0
    data = chunk(np.tile(talk(10.0), 2)[:64_000].tobytes())

    def endless() -> Iterator[pb.IdentifyStreamRequest]:
        nonlocal taken
        yield start(explain=pb.ExplainOptions(stages=STAGES))
        while taken < 4000:
            taken += 1
            yield data

    with ServerProcess(
        toy_bundles, "--window-seconds=1", "--max-seconds=36000", "--max-explained-seconds=36000"
    ) as server:
        answers = server.stub.IdentifyStream(endless(), timeout=CALL_SECONDS)
        next(answers)
        before, deadline = -1, time.monotonic() + 40
        while before != taken:  # until it takes no more
            assert time.monotonic() < deadline
            before = taken
            time.sleep(2)
        assert taken < 200, "a quarter of a megabyte each"
        stopped = taken
        while taken < stopped + 5:
            assert next(answers).window.end_s
        answers.cancel()


def test_client_that_does_not_read_loses_its_place(toy_bundles: Path) -> None:
    def endless() -> Iterator[pb.IdentifyStreamRequest]:
        yield start(explain=pb.ExplainOptions(stages=STAGES))
        yield from [chunk(talk(4.0).tobytes())] * 200

    with ServerProcess(
        toy_bundles, "--window-seconds=1", "--max-explained-seconds=3600", "--max-in-flight=2", "--transfer-seconds=2"
    ) as server:
        deaf = server.stub.IdentifyStream(endless(), timeout=CALL_SECONDS)
        server.wait_for_metric(f'speakerlens_requests_total{{code="DEADLINE_EXCEEDED",{METHOD},variant="da"}}', 1)
        assert server.metrics()["speakerlens_requests_in_flight"] == 0
        assert stream(server, start(), chunk(talk(1.0).tobytes()))[-1].HasField("whole"), "there is one place"
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0, "nor is it waited for"
        deaf.cancel()


def test_drain_ends_long_streams_and_finishes_short_ones(toy_bundles: Path) -> None:
    server = ServerProcess(toy_bundles, "--window-seconds=1", "--drain-seconds=6")
    live: queue.SimpleQueue[pb.IdentifyStreamRequest | None] = queue.SimpleQueue()
    short: queue.SimpleQueue[pb.IdentifyStreamRequest | None] = queue.SimpleQueue()
    answers = {}
    for name, waiting in (("live", live), ("short", short)):
        answers[name] = server.stub.IdentifyStream(iter(waiting.get, None), timeout=CALL_SECONDS)
        waiting.put(start())
        waiting.put(chunk(talk(1.0).tobytes()))
        assert next(answers[name]).window.speech
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_log("draining")
    short.put(chunk(talk(0.3).tobytes()))
    short.put(None)
    assert [each.WhichOneof("answer") for each in answers["short"]] == ["window", "whole"]
    with pytest.raises(grpc.RpcError) as caught:
        next(answers["live"])
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "draining" in (caught.value.details() or "")
    live.put(None)
    assert server.wait() == 0
    server.channel.close()


def test_stream_cancelled_while_ending_logs_no_error() -> None:
    errors: list[dict[str, Any]] = []

    async def run(turns: int) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        ended = asyncio.Event()

        nothing: list[int] = []

        async def messages() -> AsyncIterator[int]:
            await ended.wait()
            for message in nothing:
                yield message

        async def read() -> None:
            async for _ in IdleBudget(CALL_SECONDS, loop.create_future()).messages(messages()):
                pass

        reading = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        ended.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        gc.collect()

    for turns in range(6):  # one of them lies between the client's end and the reader's noticing
        asyncio.run(run(turns))
    assert not errors
