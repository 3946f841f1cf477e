"""Any bytes and any values to any method: soon an answer or a refusal, from a server that stays whole."""

import re
import time
from collections.abc import Iterator

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.conftest import ROOT
from tests.serving import toy
from tests.serving.api.requests import SERVICE as INFERENCE
from tests.serving.fuzz.calls import METHODS, TYPED, Method
from tests.serving.fuzz.files import whole
from tests.serving.fuzz.mutation import Seeds, damaged, wild
from tests.serving.fuzz.running import assert_flat, fuzz, note, resident_kb
from tests.serving.harness import ServerProcess, raw, voice

SECONDS = 20
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
IDENTIFY = f"{TYPED}Identify"
SINGLE = [method for method in METHODS if not method.streamed]
STREAMED = [method for method in METHODS if method.streamed]


class Fuzzed:
    """A server that any bytes may be sent to."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server

    def call(self, test: str, path: str, *messages: bytes, streamed: bool = False) -> str:
        """Sends bytes and returns the status, which is noted; a hang or any other status fails the test."""
        started = time.monotonic()
        code, details = "OK", ""
        try:
            if streamed:
                stream = self.server.channel.stream_stream(path, bytes, bytes)
                for _ in stream(iter(messages), timeout=SECONDS):
                    pass
            else:
                [message] = messages
                self.server.channel.unary_unary(path, bytes, bytes)(message, timeout=SECONDS)
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
        note(test, code, resident_kb(self.server.process.pid))
        assert time.monotonic() - started < SECONDS, f"{path}: no answer"
        assert code in ALLOWED, f"{path}: {code} {details}"
        assert len(details) < 2500
        assert code == "OK" or details
        return code


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    """Its networks are good for every sound; the end of the process is insisted on by the harness."""
    root = tmp_path_factory.mktemp("fuzzed")
    store = tmp_path_factory.mktemp("speakers") / "speakers.sqlite"
    for variant, version in (("da", 1), ("clean", 1), ("clean", 2)):
        toy.write_bundle(root, variant, version, nan_peak=1e9)
    with ServerProcess(root, "--max-seconds=3", "--log-level=warning", f"--speakers={store}") as server:
        yield Fuzzed(server)


def test_every_method_is_tried() -> None:
    typed = {f"{TYPED}{method.name}" for method in pb.DESCRIPTOR.services_by_name["SpeakerIdentification"].methods}
    contract = (ROOT / "protos" / "inference" / "inference.proto").read_text("utf-8")
    others = {f"{INFERENCE}{name}" for name in re.findall(r"^  rpc (\w+)\(", contract, re.MULTILINE)}
    assert len(others) == 9
    assert {method.path for method in METHODS} == typed | others


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.path)
def test_good_requests_are_answered(fuzzed: Fuzzed, method: Method) -> None:
    """Otherwise the wild ones would show nothing."""
    messages = [request.SerializeToString() for request in method.requests]
    for call in [messages] if method.streamed else [[message] for message in messages]:
        assert fuzzed.call("calls, good", method.path, *call, streamed=method.streamed) == "OK"


@fuzz
@given(data=damaged(Seeds(whole())))
def test_damaged_files(fuzzed: Fuzzed, data: bytes) -> None:
    request = pb.IdentifyRequest(audio=pb.Audio(encoded=data), explain=pb.ExplainOptions())
    fuzzed.call("calls, damaged files", IDENTIFY, request.SerializeToString())


@fuzz
@given(data=st.data())
def test_wild_values(fuzzed: Fuzzed, data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(SINGLE))
    fuzzed.call("calls, wild values", method.path, data.draw(wild(Seeds(method.requests))).SerializeToString())


@fuzz
@given(data=st.data())
def test_wild_tensors(fuzzed: Fuzzed, data: st.DataObject) -> None:
    [method] = [method for method in METHODS if method.path.endswith("/ModelInfer")]
    fuzzed.call("calls, wild tensors", method.path, data.draw(wild(Seeds(method.requests))).SerializeToString())


@fuzz
@given(data=st.data())
def test_damaged_messages(fuzzed: Fuzzed, data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(SINGLE))
    message = data.draw(damaged(Seeds(request.SerializeToString() for request in method.requests)))
    fuzzed.call("calls, damaged messages", method.path, message)


@fuzz
@given(method=st.sampled_from(SINGLE), message=st.binary(max_size=200))
def test_noise(fuzzed: Fuzzed, method: Method, message: bytes) -> None:
    fuzzed.call("calls, noise", method.path, message)


@fuzz
@given(message=st.one_of(st.binary(max_size=40), damaged(Seeds([b"\x0a\x08the-name", b"\x3a\x00"]))))
def test_noise_to_what_is_not_ours(fuzzed: Fuzzed, message: bytes) -> None:
    """Health, which asks for no token, and reflection."""
    fuzzed.call("calls, noise to health", "/grpc.health.v1.Health/Check", message)
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    fuzzed.call("calls, noise to reflection", path, message, streamed=True)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_malformed_message_to_health(fuzzed: Fuzzed, streamed: bool) -> None:
    path = f"/grpc.health.v1.Health/{'Watch' if streamed else 'Check'}"
    assert fuzzed.call("calls, noise to health", path, b"\xff", streamed=streamed) == "INVALID_ARGUMENT"


@fuzz
@given(data=st.data())
def test_wild_streams(fuzzed: Fuzzed, data: st.DataObject) -> None:
    """Good messages in any order and number, some of them wild and some damaged."""
    method = data.draw(st.sampled_from(STREAMED))
    start, all_of_it = Seeds(method.requests[:1]), Seeds(method.requests[1:])
    messages = [data.draw(st.one_of(st.just(method.requests[0]), wild(start))).SerializeToString()]
    for _ in range(data.draw(st.integers(1, 8))):
        kind = data.draw(st.sampled_from([*["good"] * 12, "wild", "damaged"]))
        request = all_of_it.draw(data.draw)
        if kind == "good":
            messages.append(request.SerializeToString())
        elif kind == "wild":
            messages.append(data.draw(wild(Seeds([request]))).SerializeToString())
        else:
            messages.append(data.draw(damaged(Seeds([request.SerializeToString()]))))
    fuzzed.call("calls, wild streams", method.path, *messages, streamed=True)


def test_the_server_is_whole(fuzzed: Fuzzed) -> None:
    """Runs after the others: the right answer, no trace in the log, and no memory lost."""
    audio = voice(0.8, seed=7)
    [answer] = fuzzed.server.identify(
        pb.IdentifyRequest(audio=raw(audio), models=[pb.ModelSelector(variant="da")])
    ).answers
    assert answer.speakers[0].logit == pytest.approx(toy.expected(toy.weights(0), audio)["logits"].max(), rel=1e-4)
    ours = [line for line in fuzzed.server.log.splitlines() if line.startswith("20") or "Error" in line]
    assert not ours, "a warning or an error was logged"
    assert_flat("calls")
