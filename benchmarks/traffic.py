"""Calls of every kind, good and bad, short and long, cancelled and late, with the statuses that each may end in."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from numpy.typing import NDArray

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub
from tests.serving.harness import talk

RATE = 16_000
LIMIT_SECONDS = 300.0
SHORT, USUAL, LONG = (0.6, 2.0), (2.0, 8.0), (20.0, 59.0)
IDENTIFY = "/speakerlens.v1.SpeakerIdentification/Identify"
CHANNEL_ARGUMENTS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


class Caller:
    """A client with one connection and a random generator of its own.

    Args:
        address: HOST:PORT of the server.
        variants: served variants.
        seed: of the random choices.
    """

    def __init__(self, address: str, variants: list[str], seed: int) -> None:
        self._address = address
        self.variants = variants
        self.rng = random.Random(seed)  # noqa: S311
        self._minute = talk(60.0, RATE, seed).astype("<f4")
        self.connect()

    def connect(self) -> None:
        """Open a new connection."""
        self.channel = grpc.insecure_channel(self._address, CHANNEL_ARGUMENTS)
        self.stub = SpeakerIdentificationStub(self.channel)

    def samples(self, seconds: tuple[float, float]) -> NDArray[np.float32]:
        """Return speech of a length between two limits in seconds: float32 [samples]."""
        count = round(self.rng.uniform(*seconds) * RATE)
        start = self.rng.randrange(len(self._minute) - count + 1)
        stretch: NDArray[np.float32] = self._minute[start : start + count]
        return stretch

    def audio(self, seconds: tuple[float, float]) -> pb.Audio:
        """Return such speech as a message."""
        return pb.Audio(
            raw=pb.RawAudio(samples=self.samples(seconds).tobytes(), format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=RATE)
        )

    def models(self) -> list[pb.ModelSelector]:
        """Return one variant, or none, which selects all."""
        chosen = self.rng.choice([*self.variants, ""])
        return [pb.ModelSelector(variant=chosen)] if chosen else []

    def one(self) -> pb.ModelSelector:
        """Return one variant."""
        return pb.ModelSelector(variant=self.rng.choice(self.variants))

    def explain(self) -> pb.ExplainOptions:
        """Return options for maps of random stages in a random encoding."""
        stages: list[pb.Stage.ValueType] = [pb.STAGE_S1, pb.STAGE_S2, pb.STAGE_S3, pb.STAGE_S4, pb.STAGE_FUSED]
        encoding = self.rng.choice([pb.ENCODING_FLOAT32, pb.ENCODING_UINT8])
        return pb.ExplainOptions(stages=self.rng.sample(stages, self.rng.randint(1, 5)), encoding=encoding)

    def request(self, seconds: tuple[float, float], explained: bool = False) -> pb.IdentifyRequest:
        """Return a valid request."""
        return pb.IdentifyRequest(
            audio=self.audio(seconds), models=self.models(), explain=self.explain() if explained else None
        )


def identify_short(caller: Caller) -> None:
    """Identify less than two seconds."""
    caller.stub.Identify(caller.request(SHORT), timeout=LIMIT_SECONDS)


def identify(caller: Caller) -> None:
    """Identify a few seconds, half of the calls with maps."""
    caller.stub.Identify(caller.request(USUAL, caller.rng.random() < 0.5), timeout=LIMIT_SECONDS)


def identify_long(caller: Caller) -> None:
    """Identify up to a minute, half of the calls with maps."""
    caller.stub.Identify(caller.request(LONG, caller.rng.random() < 0.5), timeout=LIMIT_SECONDS)


def identify_batch(caller: Caller) -> None:
    """Identify several utterances; one has no audio, and fails alone."""
    requests = [caller.request(USUAL) for _ in range(caller.rng.randint(1, 6))]
    answer = caller.stub.IdentifyBatch(
        pb.IdentifyBatchRequest(requests=[*requests, pb.IdentifyRequest()]), timeout=LIMIT_SECONDS
    )
    failures = [each.failure.code for each in answer.results if each.HasField("failure")]
    assert failures == ["INVALID_ARGUMENT"], failures


def identify_stream(caller: Caller) -> None:
    """Stream live audio in chunks of random size."""
    answers = list(caller.stub.IdentifyStream(_chunks(caller), timeout=LIMIT_SECONDS))
    assert answers[-1].HasField("whole")


def cancel_stream(caller: Caller) -> None:
    """Stream live audio, and cancel after the first answer."""
    call = caller.stub.IdentifyStream(_chunks(caller), timeout=LIMIT_SECONDS)
    next(iter(call))
    call.cancel()


def embed(caller: Caller) -> None:
    """Ask for embeddings."""
    request = pb.EmbedRequest(audio=caller.audio(USUAL), models=caller.models())
    assert caller.stub.Embed(request, timeout=LIMIT_SECONDS).embeddings


def verify(caller: Caller) -> None:
    """Compare two utterances, half of the calls with maps."""
    request = pb.VerifyRequest(audio=caller.audio(USUAL), other=caller.audio(USUAL), model=caller.one())
    if caller.rng.random() < 0.5:
        request.explain.CopyFrom(caller.explain())
    caller.stub.Verify(request, timeout=LIMIT_SECONDS)


def enroll_and_forget(caller: Caller) -> None:
    """Enrol a speaker, verify, search, and remove the speaker."""
    name = f"soak-{caller.rng.getrandbits(64):016x}"
    utterances = [caller.audio(USUAL) for _ in range(2)]
    caller.stub.Enroll(pb.EnrollRequest(speaker=name, utterances=utterances), timeout=LIMIT_SECONDS)
    caller.stub.Verify(
        pb.VerifyRequest(audio=caller.audio(USUAL), enrolled_speaker=name, model=caller.one()), timeout=LIMIT_SECONDS
    )
    searched = pb.SearchRequest(audio=caller.audio(USUAL), model=caller.one())
    assert caller.stub.Search(searched, timeout=LIMIT_SECONDS).answer.candidates
    listed = caller.stub.ListSpeakers(pb.ListSpeakersRequest(), timeout=LIMIT_SECONDS).speakers
    assert name in [each.speaker for each in listed]
    caller.stub.RemoveSpeaker(pb.RemoveSpeakerRequest(speaker=name), timeout=LIMIT_SECONDS)


def describe(caller: Caller) -> None:
    """Ask for models, health and reflection."""
    caller.stub.ListModels(pb.ListModelsRequest(), timeout=LIMIT_SECONDS)
    caller.stub.GetModel(pb.GetModelRequest(model=caller.one()), timeout=LIMIT_SECONDS)
    health_pb2_grpc.HealthStub(caller.channel).Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_SECONDS)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    next(iter(stub.ServerReflectionInfo(iter([request]), timeout=LIMIT_SECONDS)))


def reconnect(caller: Caller) -> None:
    """Reconnect, as after a client's restart."""
    caller.channel.close()
    caller.connect()
    caller.stub.ListModels(pb.ListModelsRequest(), timeout=LIMIT_SECONDS)


def cancel(caller: Caller) -> None:
    """Cancel while the call waits or is computed."""
    call = caller.stub.Identify.future(caller.request(USUAL, True), timeout=LIMIT_SECONDS)
    try:
        call.result(caller.rng.uniform(0, 0.05))
    except grpc.FutureTimeoutError:
        call.cancel()
        raise Cancelled from None


def tight(caller: Caller) -> None:
    """Identify with a deadline that may or may not be met."""
    caller.stub.Identify(caller.request(USUAL), timeout=caller.rng.uniform(0.001, 0.1))


def silence(caller: Caller) -> None:
    """Send digital silence."""
    raw = pb.RawAudio(samples=bytes(4 * RATE), format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=RATE)
    caller.stub.Identify(pb.IdentifyRequest(audio=pb.Audio(raw=raw)), timeout=LIMIT_SECONDS)


def not_finite(caller: Caller) -> None:
    """Send a NaN among the samples."""
    samples = caller.samples(USUAL).copy()
    samples[caller.rng.randrange(len(samples))] = np.nan
    raw = pb.RawAudio(samples=samples.tobytes(), format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=RATE)
    caller.stub.Identify(pb.IdentifyRequest(audio=pb.Audio(raw=raw)), timeout=LIMIT_SECONDS)


def no_audio(caller: Caller) -> None:
    """Send bytes that are not an audio file."""
    content = b"RIFF" + caller.rng.randbytes(caller.rng.randint(0, 5000))
    caller.stub.Identify(pb.IdentifyRequest(audio=pb.Audio(encoded=content)), timeout=LIMIT_SECONDS)


def garbage(caller: Caller) -> None:
    """Send bytes that are not a message."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = caller.channel.unary_unary(IDENTIFY)
    call(b"\xff\xff\xff" + caller.rng.randbytes(500), timeout=LIMIT_SECONDS)


def unknown_variant(caller: Caller) -> None:
    """Ask for an unknown variant."""
    request = caller.request(USUAL)
    request.models.append(pb.ModelSelector(variant="no-such-variant"))
    caller.stub.Identify(request, timeout=LIMIT_SECONDS)


class Cancelled(Exception):  # noqa: N818
    """The caller cancelled the call."""


@dataclass(frozen=True)
class Scenario:
    """A kind of call, its relative frequency, and the statuses that it may end in."""

    run: Callable[[Caller], None]
    weight: int
    statuses: tuple[str, ...] = ("OK",)


SCENARIOS = (
    Scenario(identify_short, 20),
    Scenario(identify, 30),
    Scenario(identify_long, 3),
    Scenario(identify_batch, 5),
    Scenario(identify_stream, 4),
    Scenario(cancel_stream, 2),
    Scenario(embed, 6),
    Scenario(verify, 6),
    Scenario(enroll_and_forget, 3),
    Scenario(describe, 5),
    Scenario(reconnect, 4),
    Scenario(cancel, 6, ("OK", "CANCELLED")),
    Scenario(tight, 6, ("OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")),
    Scenario(silence, 2, ("INVALID_ARGUMENT",)),
    Scenario(not_finite, 2, ("INVALID_ARGUMENT",)),
    Scenario(no_audio, 2, ("INVALID_ARGUMENT",)),
    Scenario(garbage, 2, ("INVALID_ARGUMENT",)),
    Scenario(unknown_variant, 2, ("NOT_FOUND",)),
)


def outcome(scenario: Scenario, caller: Caller) -> tuple[str, str]:
    """Make the call; return its status and details, or CONTRADICTION and why the answer is wrong."""
    try:
        scenario.run(caller)
    except Cancelled:
        return "CANCELLED", ""
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    except AssertionError as error:
        return "CONTRADICTION", str(error)
    return "OK", ""


def _chunks(caller: Caller) -> Iterator[pb.IdentifyStreamRequest]:
    yield pb.IdentifyStreamRequest(
        start=pb.StreamStart(format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=RATE, models=[caller.one()])
    )
    content = caller.samples((4.0, 12.0)).tobytes()
    while content:
        size = caller.rng.randint(1, 20_000)
        yield pb.IdentifyStreamRequest(samples=content[:size])
        content = content[size:]
