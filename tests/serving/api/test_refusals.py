"""Bad requests of the Open Inference Protocol: each is refused with the field's name and what would be right."""

from collections.abc import Callable
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from tests.serving import toy
from tests.serving.api.requests import SERVICE, Arrays, infer, inputs, message, padded
from tests.serving.harness import CALL_SECONDS, ServerProcess, talk, voice

INVALID, NOT_FOUND, LATE = "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"
ROWS = [voice(1.0, seed=seed) for seed in range(3)]
Spoil = Callable[[pb.ModelInferRequest], object]


def good() -> pb.ModelInferRequest:
    return message({**padded(ROWS), "target": np.array([[0], [1], [-1]])}, "probabilities")


@dataclass(frozen=True)
class Case:
    """What is done to a good request, the status it gets, and words that the message must hold."""

    name: str
    spoil: Spoil
    code: str
    words: tuple[str, ...]


def setting(path: str, value: object) -> Spoil:
    """Sets a field, such as `inputs.0.datatype`."""

    def spoil(request: pb.ModelInferRequest) -> None:
        *parents, name = path.split(".")
        target = request
        for parent in parents:
            target = target[int(parent)] if parent.isdigit() else getattr(target, parent)
        if isinstance(value, list):
            getattr(target, name)[:] = value
        else:
            setattr(target, name, value)

    return spoil


def values(index: int, arrays: Arrays) -> Spoil:
    """Other values for an input, with their shape."""

    def spoil(request: pb.ModelInferRequest) -> None:
        [array] = arrays.values()
        request.inputs[index].shape[:] = array.shape
        request.raw_input_contents[index] = array.tobytes()

    return spoil


def audio(row: int, change: Callable[[NDArray[np.float32]], object]) -> Spoil:
    def spoil(request: pb.ModelInferRequest) -> None:
        array = padded(ROWS)["audio"].copy()
        change(array[row])
        request.raw_input_contents[0] = array.tobytes()

    return spoil


def parameter(where: str, name: str, **value: object) -> Spoil:
    def spoil(request: pb.ModelInferRequest) -> None:
        target = request if not where else getattr(request, where)[0]
        target.parameters[name].CopyFrom(pb.InferParameter(**value))

    return spoil


def classes_of(name: str) -> Spoil:
    def spoil(request: pb.ModelInferRequest) -> None:
        request.outputs[0].name = name
        request.outputs[0].parameters["classification"].int64_param = 3

    return spoil


def typed(request: pb.ModelInferRequest, field: str, count: int) -> None:
    del request.raw_input_contents[:]
    for tensor in request.inputs:
        tensor.contents.int64_contents.extend([1] * 3)
    del request.inputs[0].contents.int64_contents[:]
    getattr(request.inputs[0].contents, field).extend([1] * count)


def long_rows(request: pb.ModelInferRequest) -> None:
    values(0, {"audio": np.zeros((3, 60 * 16_000 + 1), np.float32)})(request)


CASES = [
    Case("no model", setting("model_name", ""), NOT_FOUND, ("model_name", "act-da, clean, da")),
    Case("unknown model", setting("model_name", "db"), NOT_FOUND, ("model_name", "'db'", "act-da, clean, da")),
    Case("unknown version", setting("model_version", "7"), NOT_FOUND, ("model_version", "'7'", "there are 1")),
    Case("version in words", setting("model_version", "newest"), NOT_FOUND, ("model_version", "'newest'")),
    Case("version 0", setting("model_version", "0"), NOT_FOUND, ("model_version", "'0'")),
    Case("no inputs", lambda request: request.ClearField("inputs"), INVALID, ("inputs", "no audio", "FP32")),
    Case("no audio", lambda request: request.inputs.pop(0), INVALID, ("inputs", "no audio")),
    Case("unknown input", setting("inputs.1.name", "length"), INVALID, ("inputs[1].name", "'length'", "lengths")),
    Case("an input twice", setting("inputs.1.name", "target"), INVALID, ("inputs[2]", "target is given twice")),
    Case("wrong datatype", setting("inputs.0.datatype", "FP16"), INVALID, ("inputs.audio.datatype", "'FP16'", "FP32")),
    Case("int32", setting("inputs.2.datatype", "INT32"), INVALID, ("inputs.target.datatype", "'INT32'", "INT64")),
    Case("one dimension", setting("inputs.0.shape", [48_000]), INVALID, ("inputs.audio.shape", "[batch, samples]")),
    Case("no shape", setting("inputs.0.shape", []), INVALID, ("inputs.audio.shape", "[batch, samples]")),
    Case("three dimensions", setting("inputs.0.shape", [3, 1, 16_000]), INVALID, ("inputs.audio.shape",)),
    Case("no rows", setting("inputs.0.shape", [0, 16_000]), INVALID, ("inputs.audio.shape", "0, 16000")),
    Case("no samples", setting("inputs.0.shape", [3, 0]), INVALID, ("inputs.audio.shape", "3, 0")),
    Case("less than none", setting("inputs.0.shape", [-3, -16_000]), INVALID, ("inputs.audio.shape", "-3")),
    Case("astronomic", setting("inputs.0.shape", [8, 2**62]), INVALID, ("inputs.audio.shape", "960000")),
    Case("astronomic batch", setting("inputs.0.shape", [2**62, 8]), INVALID, ("inputs.audio.shape", "largest is 8")),
    Case("flat lengths", setting("inputs.1.shape", [3]), INVALID, ("inputs.lengths.shape", "[batch, 1]")),
    Case("two lengths a row", setting("inputs.1.shape", [3, 2]), INVALID, ("inputs.lengths.shape", "[batch, 1]")),
    Case("too few lengths", setting("inputs.1.shape", [2, 1]), INVALID, ("inputs.lengths.shape", "of 2", "of 3")),
    Case("a large batch", values(0, {"audio": np.zeros((9, 99), np.float32)}), INVALID, ("a batch of 9", "is 8")),
    Case("long rows", long_rows, INVALID, ("inputs.audio.shape", "960001 samples", "960000", "60 s")),
    Case("too few bytes", setting("raw_input_contents", [b"1234"] * 3), INVALID, ("raw_input_contents[0]", "4 bytes")),
    Case("too few contents", lambda request: request.raw_input_contents.pop(), INVALID, ("2 for 3 inputs",)),
    Case(
        "contents twice",
        lambda request: request.inputs[0].contents.fp32_contents.append(1),
        INVALID,
        ("inputs.audio.contents", "send one of both"),
    ),
    Case(
        "contents of another type",
        lambda request: typed(request, "fp64_contents", 48_000),
        INVALID,
        ("inputs.audio.contents.fp64_contents", "fp32_contents"),
    ),
    Case(
        "too few values",
        lambda request: typed(request, "fp32_contents", 47_999),
        INVALID,
        ("inputs.audio.contents.fp32_contents", "47999", "48000"),
    ),
    Case(
        "length 0", values(1, {"lengths": np.array([[9000], [0], [9000]])}), INVALID, ("inputs.lengths, row 1", "16000")
    ),
    Case(
        "length below 0", values(1, {"lengths": np.array([[-1], [9], [9]])}), INVALID, ("inputs.lengths, row 0", "-1")
    ),
    Case("length too large", values(1, {"lengths": np.array([[99], [9], [16_001]])}), INVALID, ("row 2", "16001")),
    Case(
        "too short",
        values(1, {"lengths": np.array([[9000], [7999], [9000]])}),
        INVALID,
        ("inputs.audio, row 1", "0.500 s"),
    ),
    Case(
        "unknown target", values(2, {"target": np.array([[0], [12], [0]])}), NOT_FOUND, ("inputs.target, row 1", "11")
    ),
    Case(
        "target below -1", values(2, {"target": np.array([[-2], [0], [0]])}), NOT_FOUND, ("inputs.target, row 0", "-2")
    ),
    Case("NaN", audio(2, lambda row: row.fill(np.nan)), INVALID, ("inputs.audio, row 2", "NaN")),
    Case("infinity", audio(1, lambda row: row.put(5, np.inf)), INVALID, ("inputs.audio, row 1", "infinite")),
    Case("out of scale", audio(0, lambda row: row.put(5, 17)), INVALID, ("inputs.audio, row 0", "peak 17", "1.0")),
    Case("silence", audio(1, lambda row: row.fill(0.3)), INVALID, ("inputs.audio, row 1", "silent")),
    Case("unknown output", setting("outputs.0.name", "logits"), INVALID, ("outputs[0].name", "'logits'", "embedding")),
    Case(
        "an output twice",
        lambda request: request.outputs.add(name="probabilities"),
        INVALID,
        ("outputs", "asked for twice"),
    ),
    Case(
        "classes by text", parameter("outputs", "classification", string_param="3"), INVALID, ("outputs[0].parameters",)
    ),
    Case("less than no class", parameter("outputs", "classification", int64_param=-3), INVALID, ("0 or more",)),
    Case(
        "classes of maps", classes_of("saliency"), INVALID, ("outputs[0].parameters", "only probabilities has classes")
    ),
    Case(
        "shared memory in",
        parameter("inputs", "shared_memory_region", string_param="x"),
        INVALID,
        ("inputs.audio.parameters.shared_memory_region",),
    ),
    Case("shared memory out", parameter("outputs", "shared_memory_region", string_param="x"), INVALID, ("outputs[0]",)),
    Case("a sequence", parameter("", "sequence_id", int64_param=7), INVALID, ("parameters.sequence_id",)),
    Case("priority 3", parameter("", "priority", uint64_param=3), INVALID, ("parameters.priority", "3")),
    Case(
        "priority in words", parameter("", "priority", string_param="high"), INVALID, ("parameters.priority", "int64")
    ),
    Case("priority below 0", parameter("", "priority", int64_param=-1), INVALID, ("parameters.priority", "0 or more")),
    Case("timeout of 1 us", parameter("", "timeout", int64_param=1), LATE, ("deadline",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_request(toy_server: ServerProcess, case: Case) -> None:
    request = good()
    case.spoil(request)
    with pytest.raises(grpc.RpcError) as caught:
        infer(toy_server, request)
    details = caught.value.details() or ""
    assert caught.value.code().name == case.code, details
    for words in case.words:
        assert words in details
    assert len(infer(toy_server, good()).raw_output_contents) == 1


def test_good_request_with_all_parameters(toy_server: ServerProcess) -> None:
    """Without this, the cases would show nothing; unknown parameters are ignored."""
    request = good()
    for spoil in (
        parameter("", "priority", uint64_param=2),
        parameter("", "timeout", int64_param=60_000_000),
        parameter("", "x-unknown", bool_param=True),
    ):
        spoil(request)
    assert len(infer(toy_server, request).raw_output_contents) == 1


def test_one_bad_row_computes_nothing(toy_server: ServerProcess) -> None:
    size = 'speakerlens_batch_size_count{kind="predict",variant="da"}'
    before = toy_server.metrics()[size]
    with pytest.raises(triton.InferenceServerException, match="row 3"):
        client = triton.InferenceServerClient(toy_server.ready["grpc"])
        client.infer("da", inputs(padded([*ROWS, np.zeros(16_000, np.float32)])))
    assert toy_server.metrics()[size] == before


def test_nan_answer_is_internal_and_leaks_nothing(toy_server: ServerProcess) -> None:
    loud = ROWS[0] / np.abs(ROWS[0]).max() * np.float32(toy.NAN_PEAK + 1)
    with pytest.raises(grpc.RpcError) as caught:
        infer(toy_server, message(padded([*ROWS, loud])))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "the server's log has it" in (caught.value.details() or "")


@pytest.mark.parametrize(
    "method", ["RepositoryModelLoad", "SystemSharedMemoryStatus", "TraceSetting", "ModelStreamInfer", "ModelDream"]
)
def test_methods_not_offered_are_unimplemented(toy_server: ServerProcess, method: str) -> None:
    single = toy_server.channel.unary_unary(f"{SERVICE}{method}", bytes, bytes)
    streamed = toy_server.channel.stream_stream(f"{SERVICE}{method}", bytes, bytes)
    calls: list[Callable[[], object]] = [
        lambda: single(b"\x0a", timeout=CALL_SECONDS),
        lambda: next(streamed(iter([b""]), timeout=CALL_SECONDS)),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert method not in toy_server.metrics_text()


def test_rows_say_whether_they_hold_speech(toy_server: ServerProcess) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000 * 12).astype(np.float32)
    answer = infer(toy_server, message(padded([talk(12.0), noise])))
    assert answer.parameters["speech"].string_param == "true,false"
