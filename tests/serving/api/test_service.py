"""Server and model metadata of the Open Inference Protocol, with the real client."""

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from grpc_tools import protoc
from tritonclient.grpc import model_config_pb2, service_pb2

from speakerlens.protos.speakerlens.v1 import identification_pb2 as typed
from tests.conftest import ROOT
from tests.serving import toy, toy_graph
from tests.serving.api.requests import MAPS, SERVICE, infer, inputs, message, padded
from tests.serving.harness import CALL_SECONDS, START_SECONDS, ServerProcess, raw, voice

PROTO = "protos/inference/inference.proto"


@pytest.fixture(scope="module")
def client(toy_server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(toy_server.ready["grpc"])
    yield client
    client.close()


def test_liveness(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    for name, version, ready in [
        ("da", "", True), ("clean", "1", True), ("clean", "2", True), ("clean", "3", False), ("clean", "x", False),
        ("unknown", "", False), ("", "", False),
    ]:  # fmt: skip
        assert client.is_model_ready(name, version) is ready, (name, version)


def test_server_metadata(client: triton.InferenceServerClient) -> None:
    answer = client.get_server_metadata()
    assert answer.name == "speakerlens"
    assert answer.version
    assert set(answer.extensions) == {"classification", "model_configuration", "statistics", "schedule_policy"}


def test_model_metadata(client: triton.InferenceServerClient) -> None:
    answer = client.get_model_metadata("clean")
    assert (answer.name, list(answer.versions)) == ("clean", ["1", "2"])
    tensors = {each.name: (each.datatype, list(each.shape)) for each in (*answer.inputs, *answer.outputs)}
    maps = {name: ("FP32", [-1, toy.MEL // stride, -1]) for name, stride in zip(MAPS, toy_graph.STRIDES, strict=True)}
    assert [each.name for each in answer.inputs] == ["audio", "target", "lengths"]
    assert tensors == {
        "audio": ("FP32", [-1, -1]),
        "target": ("INT64", [-1, 1]),
        "lengths": ("INT64", [-1, 1]),
        "probabilities": ("FP32", [-1, len(toy.speakers())]),
        "embedding": ("FP32", [-1, toy_graph.EMBEDDING]),
        "saliency": ("FP32", [-1, toy.MEL, -1]),
        **maps,
    }


def test_configuration_has_the_labels(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("da").config
    assert {each.name: each.label_filename for each in config.output if each.label_filename} == {
        "probabilities": "labels"
    }
    assert json.loads(config.parameters["labels"].string_value) == toy.speakers()


def test_model_configuration(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("da").config
    metadata = client.get_model_metadata("da")
    assert config.max_batch_size == 8
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert [each.optional for each in config.input] == [False, True, True]
    described = {each.name: (each.datatype, list(each.shape)[1:]) for each in (*metadata.inputs, *metadata.outputs)}
    kinds = {model_config_pb2.TYPE_FP32: "FP32", model_config_pb2.TYPE_INT64: "INT64"}
    assert {
        each.name: (kinds[each.data_type], list(each.dims)) for each in (*config.input, *config.output)
    } == described


@pytest.mark.parametrize("ask", ["get_model_metadata", "get_model_config", "get_inference_statistics"])
def test_unknown_model_is_not_found(client: triton.InferenceServerClient, ask: str) -> None:
    with pytest.raises(
        triton.InferenceServerException, match="no model 'unknown'; there are act-da, clean, da"
    ) as caught:
        getattr(client, ask)("unknown")
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(triton.InferenceServerException, match="version: no version '9' of clean; there are 1, 2"):
        getattr(client, ask)("clean", "9")


def test_repository_index_lists_loaded_models(client: triton.InferenceServerClient) -> None:
    index = client.get_model_repository_index().models
    assert [(each.name, each.version, each.state) for each in index] == [
        ("act-da", "1", "READY"), ("clean", "1", "READY"), ("clean", "2", "READY"), ("da", "1", "READY"),
    ]  # fmt: skip


def test_repository_index_refuses_a_name(toy_server: ServerProcess) -> None:
    request = service_pb2.RepositoryIndexRequest(repository_name="else").SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        toy_server.channel.unary_unary(f"{SERVICE}RepositoryIndex", bytes, bytes)(request, timeout=CALL_SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "repository_name" in (caught.value.details() or "")


def test_statistics_count_requests_and_batches(toy_bundles: Path) -> None:
    """On a server of its own: two calls of three rows, one of another model, one refused, one typed call."""
    rows = [voice(0.8, seed=seed) for seed in range(3)]
    with ServerProcess(toy_bundles) as server:
        client = triton.InferenceServerClient(server.ready["grpc"])
        untouched = client.get_inference_statistics().model_stats
        assert [(each.name, each.version) for each in untouched] == [
            ("act-da", "1"), ("clean", "1"), ("clean", "2"), ("da", "1"),
        ]  # fmt: skip
        assert not any(each.inference_count or each.last_inference for each in untouched)
        for _ in range(2):
            infer(server, message(padded(rows)))
        infer(server, message(padded(rows[:1]), "saliency", model="clean"))
        with pytest.raises(grpc.RpcError):
            infer(server, message(padded(rows), "logits"))
        server.identify(typed.IdentifyRequest(audio=raw(rows[0]), models=[typed.ModelSelector(variant="da")]))
        [da] = client.get_inference_statistics("da").model_stats
        old, new = client.get_inference_statistics("clean").model_stats
        client.close()
    assert da.inference_count == 7
    assert da.execution_count == sum(each.compute_infer.count for each in da.batch_stats)
    assert da.inference_count == sum(each.batch_size * each.compute_infer.count for each in da.batch_stats)
    assert all(each.compute_infer.ns for each in da.batch_stats)
    stats = da.inference_stats
    assert (stats.success.count, stats.fail.count) == (2, 1)
    phases = [stats.compute_input, stats.queue, stats.compute_infer, stats.compute_output]
    assert [phase.count for phase in phases] == [2] * 4
    assert all(phase.ns > 0 for phase in phases)
    assert sum(phase.ns for phase in phases) <= stats.success.ns
    assert stats.fail.ns > 0
    assert (old.version, old.inference_count, old.inference_stats.success.count) == ("1", 0, 0)
    assert (new.version, new.inference_count, new.inference_stats.success.count) == ("2", 1, 1)
    assert abs(new.last_inference - da.last_inference) < 60_000


def test_calls_are_counted_like_typed_calls(toy_server: ServerProcess) -> None:
    name = 'speakerlens_requests_total{{code="{}",method="{}",variant="{}"}}'
    names = [name.format("OK", "ModelInfer", "da"), name.format("NOT_FOUND", "ModelInfer", "_none")]
    before = [toy_server.metrics().get(each, 0) for each in names]
    seconds = toy_server.metrics()["speakerlens_audio_seconds_total"]
    infer(toy_server, message(padded([voice(1.0), voice(0.75)])))
    with pytest.raises(grpc.RpcError):
        infer(toy_server, message(padded([voice(1.0)]), model="unknown"))
    after = toy_server.metrics()
    assert [after[each] - first for each, first in zip(names, before, strict=True)] == [1, 1]
    assert after["speakerlens_audio_seconds_total"] - seconds == pytest.approx(1.75)


def test_live_but_not_ready_while_starting_and_draining(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path, "slow", 1, slow_seconds=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ServerProcess(tmp_path, f"--port={port}", "--drain-seconds=120", wait=False)
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_reconnect_backoff_ms", 20)]) as channel:
        grpc.channel_ready_future(channel).result(START_SECONDS)
        client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("slow")
        with pytest.raises(triton.InferenceServerException, match="starting") as caught:
            client.get_model_metadata("slow")
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        server.wait_ready()
        assert client.is_server_ready()
        assert client.is_model_ready("slow")
        results: list[object] = []
        client.async_infer("slow", inputs({"audio": voice(6.0)[None]}), lambda result, error: results.append(result))
        server.wait_for_metric("speakerlens_requests_in_flight", 1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("draining")
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("slow")
        assert not results, "the request was not in flight: the test shows nothing"
        assert server.wait(150) == 0
        assert results[0] is not None
    server.channel.close()


def fields_of(message: Descriptor) -> dict[str, tuple[object, ...]]:
    return {field.name: form(field) for field in message.fields}


def form(field: FieldDescriptor) -> tuple[object, ...]:
    kind = field.message_type or field.enum_type
    return field.number, field.type, field.is_repeated, kind.full_name if kind else ""


def test_contract_matches_the_real_client(tmp_path: Path) -> None:
    """Every message, field, value and method is one of the client's, with the same numbers and types."""
    out = tmp_path / "set"
    assert protoc.main(["", f"-I{ROOT}", f"--descriptor_set_out={out}", PROTO]) == 0
    [ours] = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    files = (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)
    theirs = {name: found for file in files for name, found in file.message_types_by_name.items()}
    enums = {name: found for file in files for name, found in file.enum_types_by_name.items()}
    compared = 0
    for each in ours.message_type:
        compared += compare(each, theirs[each.name])
    assert compared > 100
    for enum in ours.enum_type:
        numbers = {value.name: value.number for value in enums[enum.name].values}
        for value in enum.value:
            assert numbers[value.name] == value.number
    [service] = ours.service
    methods = service_pb2.DESCRIPTOR.services_by_name[service.name].methods_by_name
    for method in service.method:
        types = f".{methods[method.name].input_type.full_name}", f".{methods[method.name].output_type.full_name}"
        assert (method.input_type, method.output_type) == types


def compare(ours: descriptor_pb2.DescriptorProto, theirs: Descriptor) -> int:
    """Compares a message and those within it; returns the number of fields."""
    fields = fields_of(theirs)
    for field in ours.field:
        repeated = field.label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
        actual = (field.number, field.type, repeated, field.type_name.removeprefix("."))
        assert fields[field.name] == actual, f"{ours.name}.{field.name}"
    nested = theirs.nested_types_by_name
    return len(ours.field) + sum(compare(each, nested[each.name]) for each in ours.nested_type)


def test_one_process_can_use_both_clients(toy_server: ServerProcess) -> None:
    """`speakerlens` does not bring the server's messages of this protocol along."""
    with triton.InferenceServerClient(toy_server.ready["grpc"]) as client:
        result = client.infer("da", inputs({"audio": voice(1.0)[None]}))
    assert np.isclose(result.as_numpy("probabilities").sum(), 1)
