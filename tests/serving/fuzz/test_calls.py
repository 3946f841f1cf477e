"""Any bytes and any values to any method: soon an answer or a refusal, from a server that stays whole."""

import time
from collections.abc import Iterator

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving import toy
from tests.serving.fuzz.calls import METHODS, TYPED, Method
from tests.serving.fuzz.files import whole
from tests.serving.fuzz.mutation import Seeds, damaged, wild
from tests.serving.fuzz.running import assert_flat, fuzz, note, resident_kb
from tests.serving.harness import ServerProcess, raw, voice

SECONDS = 20
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
IDENTIFY = f"{TYPED}Identify"
SINGLE = [method for method in METHODS if not method.streamed]


class Fuzzed:
    """A server, and what each call to it did to its memory."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.memory_kb: list[int] = []

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
        note(test, code)
        self.memory_kb.append(resident_kb(self.server.process.pid))
        assert time.monotonic() - started < SECONDS, f"{path}: no answer"
        assert code in ALLOWED, f"{path}: {code} {details}"
        assert len(details) < 2500
        assert code == "OK" or details
        return code


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    """Its networks are good for every sound; the end of the process is insisted on by the harness."""
    root = tmp_path_factory.mktemp("fuzzed")
    for variant, version in (("da", 1), ("clean", 1), ("clean", 2)):
        toy.write_bundle(root, variant, version, nan_peak=1e9)
    with ServerProcess(root, "--max-seconds=3", "--log-level=warning") as server:
        yield Fuzzed(server)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.path)
def test_good_requests_are_answered(fuzzed: Fuzzed, method: Method) -> None:
    """Otherwise the wild ones would show nothing."""
    for request in method.requests:
        assert fuzzed.call("calls, good", method.path, request.SerializeToString(), streamed=method.streamed) == "OK"


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


def test_the_server_is_whole(fuzzed: Fuzzed) -> None:
    """Runs after the others: the right answer, no trace in the log, and no memory lost."""
    audio = voice(0.8, seed=7)
    [answer] = fuzzed.server.identify(
        pb.IdentifyRequest(audio=raw(audio), models=[pb.ModelSelector(variant="da")])
    ).answers
    assert answer.speakers[0].logit == pytest.approx(toy.expected(toy.weights(0), audio)["logits"].max(), rel=1e-4)
    ours = [line for line in fuzzed.server.log.splitlines() if line.startswith("20") or "Error" in line]
    assert not ours, "a warning or an error was logged"
    assert_flat(fuzzed.memory_kb)
