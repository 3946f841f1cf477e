"""From the answers of a model's rows to tensors, one row each; maps are filled up with zeros to the longest row's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speakerlens.protos.inference import inference_pb2 as pb
from speakerlens.serving.api.inference_tensors import DTYPES, EMBEDDING, FUSED, PROBABILITIES, outputs
from speakerlens.serving.bundle import Bundle
from speakerlens.serving.engine.graphs import SALIENCY, ExplainedPrediction, Prediction
from speakerlens.serving.pipeline.aggregate import softmax
from speakerlens.serving.pipeline.explain import displayed


def written(
    bundle: Bundle, predictions: Sequence[Prediction], samples: int, wanted: Sequence[str]
) -> pb.ModelInferResponse:
    """The outputs asked for, in the order asked, as raw contents.

    Args:
        bundle: of the model that answered.
        predictions: one for each row; explained ones where maps are wanted.
        samples: of a row as sent, padding included, which decides the width of maps.
        wanted: names of outputs.
    """
    known = {tensor.name: tensor for tensor in outputs(bundle)}
    response = pb.ModelInferResponse(model_name=bundle.variant, model_version=str(bundle.version))
    for name in wanted:
        values = _values(bundle, predictions, samples, name)
        response.outputs.add(name=name, datatype=known[name].datatype, shape=values.shape)
        response.raw_output_contents.append(np.ascontiguousarray(values, DTYPES[known[name].datatype]).tobytes())
    return response


def _values(bundle: Bundle, predictions: Sequence[Prediction], samples: int, name: str) -> NDArray[Any]:
    if name == PROBABILITIES:
        return np.stack([softmax(each.logits / bundle.temperature) for each in predictions])
    if name == EMBEDDING:
        return np.stack([each.embedding for each in predictions])
    explained = [each for each in predictions if isinstance(each, ExplainedPrediction)]
    if name == FUSED:
        return _padded([displayed(bundle, each, "fused") for each in explained], bundle.frames(samples))
    index = SALIENCY.index(name)
    return _padded([each.saliency[index] for each in explained], bundle.columns(samples, bundle.stages[index]))


def _padded(maps: Sequence[NDArray[np.float32]], columns: int) -> NDArray[np.float32]:
    whole = np.zeros((len(maps), maps[0].shape[0], columns), np.float32)
    for row, values in zip(whole, maps, strict=True):
        row[:, : values.shape[1]] = values
    return whole
