"""ModelInfer with the real client: answers match the toy network and `Identify`."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray

from tests.serving import toy, toy_graph
from tests.serving.api.requests import (
    MAPS,
    OUTPUTS,
    Arrays,
    identified,
    infer,
    inputs,
    message,
    padded,
    requested,
    values_of,
)
from tests.serving.conftest import SEEDS
from tests.serving.harness import CALL_SECONDS, ServerProcess, voice

ROWS = [voice(seconds, seed=index) for index, seconds in enumerate((1.5, 0.6, 2.03, 1.0))]


@pytest.fixture(scope="module")
def client(toy_server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(toy_server.ready["grpc"])
    yield client
    client.close()


def ask(
    client: triton.InferenceServerClient, arrays: Arrays, *outputs: str, model: str = "da", version: str = ""
) -> dict[str, NDArray[np.float32]]:
    result = client.infer(
        model, inputs(arrays), model_version=version, outputs=requested(*outputs), client_timeout=CALL_SECONDS
    )
    return {name: result.as_numpy(name) for name in outputs}


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers: NDArray[np.float64] = np.exp((logits - logits.max()) / toy.TEMPERATURE)
    powers /= powers.sum()
    return powers


def assert_row(answer: dict[str, NDArray[np.float32]], row: int, expected: Arrays) -> None:
    """A row holds these values, and nothing but zeros behind them."""
    for name, values in expected.items():
        actual = answer[name][row]
        region = tuple(slice(size) for size in values.shape)
        np.testing.assert_allclose(actual[region], values, rtol=2e-4, atol=1e-5, err_msg=name)
        rest = actual.copy()
        rest[region] = 0
        assert not rest.any(), f"{name}: something behind the end of row {row}"


@pytest.mark.parametrize("filling", [0.0, 0.5, np.nan])
def test_every_row_gets_its_own_answer(client: triton.InferenceServerClient, filling: float) -> None:
    """Whatever lies behind the end of a row."""
    answer = ask(client, padded(ROWS, filling), *OUTPUTS)
    for row, audio in enumerate(ROWS):
        expected = toy.expected(toy.weights(SEEDS["da", 1]), audio)
        maps = {name: expected[name] for name in MAPS}
        outputs = {"probabilities": softmax(expected["logits"]), "embedding": expected["embedding"], **maps}
        assert_row(answer, row, outputs)


def test_answers_equal_those_of_identify(client: triton.InferenceServerClient, toy_server: ServerProcess) -> None:
    answer = ask(client, padded(ROWS), *OUTPUTS)
    for row, audio in enumerate(ROWS):
        assert_row(answer, row, identified(toy_server, audio, "da"))


def test_each_row_is_explained_for_its_target(client: triton.InferenceServerClient, toy_server: ServerProcess) -> None:
    targets = np.array([[3], [-1], [0], [11]])
    answer = ask(client, {**padded(ROWS), "target": targets}, *OUTPUTS)
    for row, audio in enumerate(ROWS):
        label = int(targets[row, 0])
        name = "" if label < 0 else toy.speakers()[label]
        assert_row(answer, row, identified(toy_server, audio, "da", name))


def test_maps_are_as_wide_as_the_audio_sent(client: triton.InferenceServerClient) -> None:
    audio, short = voice(1.0), np.array([[9000]])
    whole = ask(client, {"audio": audio[None]}, "saliency", "saliency_s4")
    padded_to_it = ask(client, {"audio": audio[None], "lengths": short}, "saliency", "saliency_s4")
    frames = 1 + (16_000 - toy_graph.FRAME) // toy_graph.SHIFT
    assert whole["saliency"].shape == padded_to_it["saliency"].shape == (1, toy.MEL, frames)
    assert whole["saliency_s4"].shape == padded_to_it["saliency_s4"].shape == (1, 2, -(-frames // 8))
    assert whole["saliency"][..., -1].any()
    assert not padded_to_it["saliency"][..., -1].any()


def test_rows_of_several_windows_match_identify(
    client: triton.InferenceServerClient, toy_server: ServerProcess
) -> None:
    """From overlapping windows, with stitched maps; beside a row that is one window."""
    rows = [voice(7.31, seed=1), voice(0.9, seed=2), voice(4.0, seed=3)]
    answer = ask(client, padded(rows), *OUTPUTS)
    for row, audio in enumerate(rows):
        assert_row(answer, row, identified(toy_server, audio, "da"))


@pytest.mark.parametrize("count", [1, 3, 99])
def test_best_classes_come_by_name(client: triton.InferenceServerClient, count: int) -> None:
    """As Triton writes them: value, index and label."""
    wanted = [triton.InferRequestedOutput("embedding"), triton.InferRequestedOutput("probabilities", class_count=count)]
    result = client.infer("da", inputs(padded(ROWS)), outputs=wanted, client_timeout=CALL_SECONDS)
    named = result.as_numpy("probabilities")
    assert named.shape == (len(ROWS), min(count, len(toy.speakers())))
    assert result.as_numpy("embedding").shape == (len(ROWS), toy_graph.EMBEDDING)
    plain = ask(client, padded(ROWS), "probabilities")["probabilities"]
    for row, probabilities in zip(named, plain, strict=True):
        values, indices, labels = zip(*(text.decode().split(":") for text in row), strict=True)
        assert values[0] == f"{float(values[0]):f}"
        np.testing.assert_allclose(np.array(values, float), np.sort(probabilities)[::-1][:count], atol=2e-6)
        np.testing.assert_allclose(np.array(values, float), probabilities[np.array(indices, int)], atol=2e-6)
        assert list(labels) == [toy.speakers()[int(index)] for index in indices]


def test_outputs_come_in_the_order_asked(toy_server: ServerProcess) -> None:
    arrays: Arrays = {"audio": voice(1.0)[None]}
    usual = infer(toy_server, message(arrays))
    assert [output.name for output in usual.outputs] == ["probabilities", "embedding"]
    chosen = infer(toy_server, message(arrays, "saliency_s2", "probabilities"))
    assert [output.name for output in chosen.outputs] == ["saliency_s2", "probabilities"]
    np.testing.assert_allclose(values_of(chosen)["probabilities"], values_of(usual)["probabilities"], rtol=1e-5)


def test_only_maps_use_the_explain_graph(toy_server: ServerProcess) -> None:
    names = [f'speakerlens_answers_total{{kind="{kind}",variant="da"}}' for kind in ("predict", "explain")]

    def counts() -> list[float]:
        return [toy_server.metrics()[name] for name in names]

    before = counts()
    infer(toy_server, message({"audio": voice(1.0)[None]}, "embedding"))
    infer(toy_server, message(padded(ROWS), "embedding", "saliency_s1"))
    assert [after - first for after, first in zip(counts(), before, strict=True)] == [1, 4]


def test_typed_contents_match_raw_contents(toy_server: ServerProcess) -> None:
    arrays: Arrays = {**padded(ROWS), "target": np.array([[1], [2], [-1], [0]])}
    request = message(arrays, *OUTPUTS)
    expected = values_of(infer(toy_server, request))
    del request.raw_input_contents[:]
    for tensor in request.inputs:
        field = "fp32_contents" if tensor.datatype == "FP32" else "int64_contents"
        getattr(tensor.contents, field).extend(arrays[tensor.name].ravel().tolist())
    actual = values_of(infer(toy_server, request))
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, rtol=1e-5, atol=1e-7, err_msg=name)


def test_models_and_versions(client: triton.InferenceServerClient) -> None:
    audio = voice(1.2)
    for (variant, version), seed in SEEDS.items():
        expected = toy.expected(toy.weights(seed), audio)["embedding"]
        answer = ask(client, {"audio": audio[None]}, "embedding", model=variant, version=str(version))
        np.testing.assert_allclose(answer["embedding"][0], expected, rtol=1e-4, atol=1e-5)
    newest = client.infer("clean", inputs({"audio": audio[None]}), request_id="my own id")
    assert newest.get_response().model_version == "2"
    assert newest.get_response().id == "my own id"


def test_rows_of_a_request_are_computed_together(client: triton.InferenceServerClient) -> None:
    [before] = client.get_inference_statistics("act-da", "1").model_stats
    ask(client, padded(ROWS), "embedding", model="act-da")
    [after] = client.get_inference_statistics("act-da", "1").model_stats
    assert after.inference_count - before.inference_count == 4
    assert after.execution_count - before.execution_count < 4


def test_concurrent_calls_get_their_own_rows(toy_server: ServerProcess) -> None:
    """With the asyncio client: 24 requests of one to three rows to three models."""
    rng = np.random.default_rng(5)
    utterances = [[voice(rng.uniform(0.5, 1.5), seed=9 * n + row) for row in range(1 + n % 3)] for n in range(24)]
    variants = [("act-da", "clean", "da")[n % 3] for n in range(24)]
    versions = {"act-da": 1, "clean": 2, "da": 1}

    async def run() -> list[triton.InferResult]:
        async with triton_aio.InferenceServerClient(toy_server.ready["grpc"]) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("da", "1")
            calls = (
                client.infer(variant, inputs(padded(rows)), request_id=str(n), client_timeout=CALL_SECONDS)
                for n, (variant, rows) in enumerate(zip(variants, utterances, strict=True))
            )
            return await asyncio.gather(*calls)

    for n, result in enumerate(asyncio.run(run())):
        assert result.get_response().id == str(n)
        weights = toy.weights(SEEDS[variants[n], versions[variants[n]]])
        for row, audio in enumerate(utterances[n]):
            expected = toy.expected(weights, audio)
            np.testing.assert_allclose(result.as_numpy("embedding")[row], expected["embedding"], rtol=1e-4, atol=1e-5)
            assert int(result.as_numpy("probabilities")[row].argmax()) == int(expected["logits"].argmax())
