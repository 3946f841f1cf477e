"""Calls of every kind for the soak: good and bad, short and long, cancelled and late, each with what it may end in."""

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
PATIENCE_SECONDS = 300.0
SHORT, USUAL, LONG = (0.6, 2.0), (2.0, 8.0), (20.0, 59.0)
IDENTIFY = "/speakerlens.v1.SpeakerIdentification/Identify"
CHANNEL_ARGUMENTS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


class Caller:
    """One client with one connection, and its own dice.

    Args:
        address: the server's.
        variants: what it serves.
        seed: of the dice.
    """

    def __init__(self, address: str, variants: list[str], seed: int) -> None:
        self._address = address
        self.variants = variants
        self.dice = random.Random(seed)  # noqa: S311
        self._minute = talk(60.0, RATE, seed).astype("<f4")
        self.connect()

    def connect(self) -> None:
        """A new connection."""
        self.channel = grpc.insecure_channel(self._address, CHANNEL_ARGUMENTS)
        self.stub = SpeakerIdentificationStub(self.channel)

    def samples(self, seconds: tuple[float, float]) -> NDArray[np.float32]:
        """A stretch of sound of a length between the two, float32 [samples]."""
        count = round(self.dice.uniform(*seconds) * RATE)
        start = self.dice.randrange(len(self._minute) - count + 1)
        stretch: NDArray[np.float32] = self._minute[start : start + count]
        return stretch

    def audio(self, seconds: tuple[float, float]) -> pb.Audio:
        """The same as a message."""
        return pb.Audio(
            raw=pb.RawAudio(samples=self.samples(seconds).tobytes(), format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=RATE)
        )

    def models(self) -> list[pb.ModelSelector]:
        """One variant, or every one."""
        chosen = self.dice.choice([*self.variants, ""])
        return [pb.ModelSelector(variant=chosen)] if chosen else []

    def one(self) -> pb.ModelSelector:
        """One variant."""
        return pb.ModelSelector(variant=self.dice.choice(self.variants))

    def explain(self) -> pb.ExplainOptions:
        """Maps of some stages in some encoding."""
        stages: list[pb.Stage.ValueType] = [pb.STAGE_S1, pb.STAGE_S2, pb.STAGE_S3, pb.STAGE_S4, pb.STAGE_FUSED]
        encoding = self.dice.choice([pb.ENCODING_FLOAT32, pb.ENCODING_UINT8])
        return pb.ExplainOptions(stages=self.dice.sample(stages, self.dice.randint(1, 5)), encoding=encoding)

    def request(self, seconds: tuple[float, float], explained: bool = False) -> pb.IdentifyRequest:
        """A good request."""
        return pb.IdentifyRequest(
            audio=self.audio(seconds), models=self.models(), explain=self.explain() if explained else None
        )


def identify_short(caller: Caller) -> None:
    """Below two seconds."""
    caller.stub.Identify(caller.request(SHORT), timeout=PATIENCE_SECONDS)


def identify(caller: Caller) -> None:
    """A few seconds, explained every other time."""
    caller.stub.Identify(caller.request(USUAL, caller.dice.random() < 0.5), timeout=PATIENCE_SECONDS)


def identify_long(caller: Caller) -> None:
    """Up to a minute, explained every other time."""
    caller.stub.Identify(caller.request(LONG, caller.dice.random() < 0.5), timeout=PATIENCE_SECONDS)


def identify_batch(caller: Caller) -> None:
    """Several at once, one of them without audio, which fails alone."""
    requests = [caller.request(USUAL) for _ in range(caller.dice.randint(1, 6))]
    answer = caller.stub.IdentifyBatch(
        pb.IdentifyBatchRequest(requests=[*requests, pb.IdentifyRequest()]), timeout=PATIENCE_SECONDS
    )
    failures = [each.failure.code for each in answer.results if each.HasField("failure")]
    assert failures == ["INVALID_ARGUMENT"], failures


def identify_stream(caller: Caller) -> None:
    """Live audio in chunks of any size."""
    answers = list(caller.stub.IdentifyStream(_chunks(caller), timeout=PATIENCE_SECONDS))
    assert answers[-1].HasField("whole")


def hang_up_in_a_stream(caller: Caller) -> None:
    """The same, but the caller goes after the first answer."""
    call = caller.stub.IdentifyStream(_chunks(caller), timeout=PATIENCE_SECONDS)
    next(iter(call))
    call.cancel()


def embed(caller: Caller) -> None:
    """Embeddings."""
    request = pb.EmbedRequest(audio=caller.audio(USUAL), models=caller.models())
    assert caller.stub.Embed(request, timeout=PATIENCE_SECONDS).embeddings


def verify(caller: Caller) -> None:
    """Two utterances, explained every other time."""
    request = pb.VerifyRequest(audio=caller.audio(USUAL), other=caller.audio(USUAL), model=caller.one())
    if caller.dice.random() < 0.5:
        request.explain.CopyFrom(caller.explain())
    caller.stub.Verify(request, timeout=PATIENCE_SECONDS)


def enroll_and_forget(caller: Caller) -> None:
    """A speaker comes, is compared, and goes."""
    name = f"soak-{caller.dice.getrandbits(64):016x}"
    utterances = [caller.audio(USUAL) for _ in range(2)]
    caller.stub.Enroll(pb.EnrollRequest(speaker=name, utterances=utterances), timeout=PATIENCE_SECONDS)
    caller.stub.Verify(
        pb.VerifyRequest(audio=caller.audio(USUAL), enrolled_speaker=name, model=caller.one()), timeout=PATIENCE_SECONDS
    )
    listed = caller.stub.ListSpeakers(pb.ListSpeakersRequest(), timeout=PATIENCE_SECONDS).speakers
    assert name in [each.speaker for each in listed]
    caller.stub.RemoveSpeaker(pb.RemoveSpeakerRequest(speaker=name), timeout=PATIENCE_SECONDS)


def describe(caller: Caller) -> None:
    """What is loaded, and whether it is ready."""
    caller.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_SECONDS)
    caller.stub.GetModel(pb.GetModelRequest(model=caller.one()), timeout=PATIENCE_SECONDS)
    health_pb2_grpc.HealthStub(caller.channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    next(iter(stub.ServerReflectionInfo(iter([question]), timeout=PATIENCE_SECONDS)))


def reconnect(caller: Caller) -> None:
    """A new connection, as after a client's restart."""
    caller.channel.close()
    caller.connect()
    caller.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_SECONDS)


def cancel(caller: Caller) -> None:
    """The caller goes while the call waits or is computed."""
    call = caller.stub.Identify.future(caller.request(USUAL, True), timeout=PATIENCE_SECONDS)
    try:
        call.result(caller.dice.uniform(0, 0.05))
    except grpc.FutureTimeoutError:
        call.cancel()
        raise Cancelled from None


def tight(caller: Caller) -> None:
    """A deadline that may or may not be met."""
    caller.stub.Identify(caller.request(USUAL), timeout=caller.dice.uniform(0.001, 0.1))


def silence(caller: Caller) -> None:
    """No voice in it."""
    raw = pb.RawAudio(samples=bytes(4 * RATE), format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=RATE)
    caller.stub.Identify(pb.IdentifyRequest(audio=pb.Audio(raw=raw)), timeout=PATIENCE_SECONDS)


def not_finite(caller: Caller) -> None:
    """NaN among the samples."""
    samples = caller.samples(USUAL).copy()
    samples[caller.dice.randrange(len(samples))] = np.nan
    raw = pb.RawAudio(samples=samples.tobytes(), format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=RATE)
    caller.stub.Identify(pb.IdentifyRequest(audio=pb.Audio(raw=raw)), timeout=PATIENCE_SECONDS)


def no_audio(caller: Caller) -> None:
    """A file that is none."""
    content = b"RIFF" + caller.dice.randbytes(caller.dice.randint(0, 5000))
    caller.stub.Identify(pb.IdentifyRequest(audio=pb.Audio(encoded=content)), timeout=PATIENCE_SECONDS)


def garbage(caller: Caller) -> None:
    """A message that is none."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = caller.channel.unary_unary(IDENTIFY)
    call(b"\xff\xff\xff" + caller.dice.randbytes(500), timeout=PATIENCE_SECONDS)


def stranger(caller: Caller) -> None:
    """A variant that is not there."""
    request = caller.request(USUAL)
    request.models.append(pb.ModelSelector(variant="no-such-variant"))
    caller.stub.Identify(request, timeout=PATIENCE_SECONDS)


class Cancelled(Exception):  # noqa: N818
    """The caller itself hung up."""


@dataclass(frozen=True)
class Scenario:
    """A kind of call, how often it is made beside the others, and the statuses that it asks for."""

    run: Callable[[Caller], None]
    weight: int
    statuses: tuple[str, ...] = ("OK",)


SCENARIOS = (
    Scenario(identify_short, 20),
    Scenario(identify, 30),
    Scenario(identify_long, 3),
    Scenario(identify_batch, 5),
    Scenario(identify_stream, 4),
    Scenario(hang_up_in_a_stream, 2),
    Scenario(embed, 6),
    Scenario(verify, 6),
    Scenario(enroll_and_forget, 3),
    Scenario(describe, 5),
    Scenario(reconnect, 4),
    Scenario(cancel, 6, ("OK", "CANCELLED")),
    Scenario(tight, 6, ("OK", "DEADLINE_EXCEEDED")),
    Scenario(silence, 2, ("INVALID_ARGUMENT",)),
    Scenario(not_finite, 2, ("INVALID_ARGUMENT",)),
    Scenario(no_audio, 2, ("INVALID_ARGUMENT",)),
    Scenario(garbage, 2, ("INVALID_ARGUMENT",)),
    Scenario(stranger, 2, ("NOT_FOUND",)),
)


def outcome(scenario: Scenario, caller: Caller) -> tuple[str, str]:
    """Makes the call; its status and details, or CONTRADICTION where an answer is not what it should be."""
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
        size = caller.dice.randint(1, 20_000)
        yield pb.IdentifyStreamRequest(samples=content[:size])
        content = content[size:]
