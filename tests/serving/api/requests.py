"""Requests of the Open Inference Protocol, made with the real client's own messages.

The server's messages of that protocol cannot be imported beside them: both define the package `inference`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from speakerlens.protos.speakerlens.v1 import identification_pb2 as typed
from tests.serving.harness import CALL_SECONDS, ServerProcess, plane, raw

SERVICE = "/inference.GRPCInferenceService/"
STAGES = (typed.STAGE_S1, typed.STAGE_S2, typed.STAGE_S3, typed.STAGE_S4)
MAPS = tuple(f"saliency_s{number}" for number in (1, 2, 3, 4))
OUTPUTS = ("probabilities", "embedding", "saliency", *MAPS)
DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64"}

Arrays = dict[str, NDArray[Any]]


def padded(rows: Sequence[NDArray[np.float32]], filling: float = 0.0) -> Arrays:
    """Utterances of different lengths as the inputs `audio` and `lengths`."""
    lengths = np.array([[len(row)] for row in rows])
    audio = np.full((len(rows), int(lengths.max())), filling, np.float32)
    for target, row in zip(audio, rows, strict=True):
        target[: len(row)] = row
    return {"audio": audio, "lengths": lengths}


def inputs(arrays: Arrays) -> list[triton.InferInput]:
    """As `tritonclient` sends them."""
    found = []
    for name, values in arrays.items():
        found.append(triton.InferInput(name, values.shape, DATATYPES[values.dtype]))
        found[-1].set_data_from_numpy(values)
    return found


def requested(*names: str) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name) for name in names]


def message(arrays: Arrays, *outputs: str, model: str = "da", version: str = "") -> pb.ModelInferRequest:
    """The same as a message, which tests can spoil."""
    return pb.ModelInferRequest(
        model_name=model,
        model_version=version,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(name=name, datatype=DATATYPES[values.dtype], shape=values.shape)
            for name, values in arrays.items()
        ],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
        raw_input_contents=[values.tobytes() for values in arrays.values()],
    )


def infer(server: ServerProcess, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    call = server.channel.unary_unary(
        f"{SERVICE}ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
    )
    response: pb.ModelInferResponse = call(request, timeout=CALL_SECONDS)
    return response


def values_of(response: pb.ModelInferResponse) -> dict[str, NDArray[np.float32]]:
    assert len(response.outputs) == len(response.raw_output_contents)
    return {
        output.name: np.frombuffer(data, "<f4").reshape(output.shape)
        for output, data in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def identified(server: ServerProcess, audio: NDArray[np.float32], model: str, target: str = "") -> Arrays:
    """What `Identify` says of one utterance, in the outputs of this protocol without the batch's dimension.

    Probabilities are those of the speakers in alphabetical order, which is that of the labels.
    """
    options = typed.ExplainOptions(target_speaker=target)
    request = typed.IdentifyRequest(
        audio=raw(audio), models=[typed.ModelSelector(variant=model)], with_embedding=True, explain=options
    )
    server_models = server.stub.ListModels(typed.ListModelsRequest(), timeout=CALL_SECONDS).models
    request.top_k = len(next(each for each in server_models if each.variant == model).speakers)
    [fused] = server.identify(request).answers[0].explanation.saliency
    options.stages.extend(STAGES)
    options.resolution = typed.RESOLUTION_NATIVE
    request.explain.CopyFrom(options)
    [answer] = server.identify(request).answers
    speakers = sorted(answer.speakers, key=lambda each: each.speaker)
    return {
        "probabilities": np.array([each.probability for each in speakers], np.float32),
        "embedding": np.array(answer.embedding, np.float32),
        "saliency": plane(fused),
        **dict(zip(MAPS, map(plane, answer.explanation.saliency), strict=True)),
    }
