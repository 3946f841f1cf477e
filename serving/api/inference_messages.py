"""Messages of the Open Inference Protocol: a model's tensors, metadata, statistics, and the tensors of an answer."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from speakerlens.measures.precision import FP32
from speakerlens.protos.inference import inference_pb2 as pb
from speakerlens.serving.bundle import Bundle
from speakerlens.serving.config import Config
from speakerlens.serving.engine.graphs import SALIENCY, ExplainedPrediction, Prediction, mapped_stages
from speakerlens.serving.models.registry import Model, Timing
from speakerlens.serving.pipeline.aggregate import softmax
from speakerlens.serving.pipeline.explain import StageName, displayed

Datatype = Literal["FP32", "INT64"]

AUDIO, TARGET, LENGTHS = "audio", "target", "lengths"
PROBABILITIES, EMBEDDING, FUSED = "probabilities", "embedding", "saliency"
# The parameter of the configuration that has the speakers.
LABELS = "labels"
PRECISION = "precision"
# Outputs of a request that names none.
DEFAULT_OUTPUTS: Final = (PROBABILITIES, EMBEDDING)
# The protocol's byte order is little-endian.
DTYPES: Final[dict[Datatype, DTypeLike]] = {"FP32": "<f4", "INT64": "<i8"}
DATA_TYPES: Final[dict[Datatype, pb.DataType.ValueType]] = {"FP32": pb.TYPE_FP32, "INT64": pb.TYPE_INT64}
ANY = -1
# Priorities of the protocol begin with 1, the highest; 0 is the server's default.
PRIORITY_LEVELS, DEFAULT_LEVEL = 2, 1
PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
READY = "READY"


@dataclass(frozen=True)
class Tensor:
    """A named tensor; `dims` is its shape without the batch dimension, where ANY is any size."""

    name: str
    datatype: Datatype
    dims: tuple[int, ...]
    optional: bool = False

    @property
    def item_bytes(self) -> int:
        """Return the size of one value in bytes."""
        return np.dtype(DTYPES[self.datatype]).itemsize

    @property
    def form(self) -> str:
        """Return the whole shape for error messages, such as `[batch, 1]`."""
        return f"[{', '.join(['batch', *('samples' if size == ANY else str(size) for size in self.dims)])}]"


INPUTS: Final = (
    Tensor(AUDIO, "FP32", (ANY,)),
    Tensor(TARGET, "INT64", (1,), optional=True),
    Tensor(LENGTHS, "INT64", (1,), optional=True),
)


def outputs(bundle: Bundle) -> tuple[Tensor, ...]:
    """Return all outputs of a model; one without a classifier has the embedding only."""
    if not bundle.has_classifier:
        return (Tensor(EMBEDDING, "FP32", (bundle.embedding_size,)),)
    maps = [Tensor(name, "FP32", (stage.rows, ANY)) for name, stage in zip(SALIENCY, bundle.stages, strict=True)]
    return (
        Tensor(PROBABILITIES, "FP32", (len(bundle.speakers),)),
        Tensor(EMBEDDING, "FP32", (bundle.embedding_size,)),
        Tensor(FUSED, "FP32", (bundle.mel_bins, ANY)),
        *maps,
    )


def is_map(name: str) -> bool:
    """Return whether an output is a saliency map, which needs the explain graph."""
    return name not in DEFAULT_OUTPUTS


def stages_of(names: Iterable[str]) -> tuple[StageName, ...]:
    """Return the stages whose maps these outputs are, `fused` among them or not."""
    stages: tuple[StageName, ...] = ("fused", "s1", "s2", "s3", "s4")
    maps = dict(zip((FUSED, *SALIENCY), stages, strict=True))
    return tuple(dict.fromkeys(maps[name] for name in names if name in maps))


def metadata_of(model: Model, versions: Iterable[int]) -> pb.ModelMetadataResponse:
    """Return names, types and shapes of a model's tensors; `versions` are the variant's loaded ones."""
    return pb.ModelMetadataResponse(
        name=model.bundle.variant,
        versions=[str(version) for version in versions],
        platform=PLATFORM,
        inputs=[_metadata(tensor) for tensor in INPUTS],
        outputs=[_metadata(tensor) for tensor in outputs(model.bundle)],
    )


def _labels(bundle: Bundle) -> str:
    return json.dumps(bundle.speakers, ensure_ascii=False)


def _parameters(bundle: Bundle) -> dict[str, str]:
    labels = {LABELS: _labels(bundle)} if bundle.has_classifier else {}
    return labels if bundle.precision == FP32 else {**labels, PRECISION: bundle.precision}


def _metadata(tensor: Tensor) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=(ANY, *tensor.dims)
    )


def config_of(model: Model, config: Config) -> pb.ModelConfig:
    """Return a model's tensors and how its requests are batched."""
    return pb.ModelConfig(
        name=model.bundle.variant,
        platform=PLATFORM,
        backend=BACKEND,
        version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=config.keep_versions)),
        max_batch_size=config.max_batch,
        input=[
            pb.ModelInput(
                name=tensor.name, data_type=DATA_TYPES[tensor.datatype], dims=tensor.dims, optional=tensor.optional
            )
            for tensor in INPUTS
        ],
        output=[
            pb.ModelOutput(
                name=tensor.name,
                data_type=DATA_TYPES[tensor.datatype],
                dims=tensor.dims,
                label_filename=LABELS if tensor.name == PROBABILITIES else "",
            )
            for tensor in outputs(model.bundle)
        ],
        parameters={name: pb.ModelParameter(string_value=value) for name, value in _parameters(model.bundle).items()},
        dynamic_batching=pb.ModelDynamicBatching(priority_levels=PRIORITY_LEVELS, default_priority_level=DEFAULT_LEVEL),
    )


def statistics_of(model: Model) -> pb.ModelStatistics:
    """Return a model's counts and durations since it was loaded."""
    counts = model.statistics
    return pb.ModelStatistics(
        name=model.bundle.variant,
        version=str(model.bundle.version),
        last_inference=round(counts.computed_at * 1000),
        inference_count=counts.utterances,
        execution_count=counts.executions,
        inference_stats=pb.InferStatistics(
            success=_duration(counts.succeeded),
            fail=_duration(counts.failed),
            queue=_duration(counts.queue),
            compute_input=_duration(counts.decode),
            compute_infer=_duration(counts.inference),
            compute_output=_duration(counts.encode),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=size, compute_infer=_duration(span))
            for size, span in sorted(counts.batches.items())
        ],
    )


def _duration(span: Timing) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=span.count, ns=round(span.seconds * 1e9))


def index_of(models: Iterable[Model]) -> pb.RepositoryIndexResponse:
    """Return the loaded models."""
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(
                name=model.bundle.variant, version=str(model.bundle.version), state=READY
            )
            for model in models
        ]
    )


def infer_response_of(
    bundle: Bundle,
    predictions: Sequence[Prediction],
    samples: int,
    wanted: Sequence[str],
    classes: Mapping[str, int] = MappingProxyType({}),
) -> pb.ModelInferResponse:
    """Return the outputs asked for, in that order, as raw contents; maps are zero-padded to the longest row.

    Args:
        bundle: of the model that answered.
        predictions: one for each row; explained ones if maps are wanted.
        samples: of a row as sent, with padding, which decides the width of maps.
        wanted: names of outputs.
        classes: number of best classes to name instead of the values, by output (the extension `classification`).
    """
    known = {tensor.name: tensor for tensor in outputs(bundle)}
    response = pb.ModelInferResponse(model_name=bundle.variant, model_version=str(bundle.version))
    for name in wanted:
        values = _values(bundle, predictions, samples, name)
        if name in classes:
            named = _best_classes(values, bundle.speakers, classes[name])
            response.outputs.add(name=name, datatype="BYTES", shape=(len(named), len(named[0])))
            response.raw_output_contents.append(_bytes_tensor(named))
            continue
        response.outputs.add(name=name, datatype=known[name].datatype, shape=values.shape)
        response.raw_output_contents.append(np.ascontiguousarray(values, DTYPES[known[name].datatype]).tobytes())
    return response


def _values(bundle: Bundle, predictions: Sequence[Prediction], samples: int, name: str) -> NDArray[Any]:
    """Return one output of all rows: [rows, classes], [rows, size] or [rows, map rows, columns]."""
    if name == PROBABILITIES:
        return np.stack([softmax(each.logits / bundle.temperature) for each in predictions])
    if name == EMBEDDING:
        return np.stack([each.embedding for each in predictions])
    explained = [each for each in predictions if isinstance(each, ExplainedPrediction)]
    if name == FUSED:
        return _padded([displayed(bundle, each, "fused") for each in explained], bundle.frames(samples))
    stage = bundle.stages[SALIENCY.index(name)]
    maps = [values for each in explained for spec, values in mapped_stages(bundle, each) if spec == stage]
    return _padded(maps, bundle.columns(samples, stage))


def _best_classes(values: NDArray[Any], labels: Sequence[str], count: int) -> list[list[str]]:
    """Return for each row of values [rows, classes] its best classes as Triton writes them: value:index:label."""
    best = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return [
        [f"{row[index]:f}:{index}:{labels[index]}" for index in order] for row, order in zip(values, best, strict=True)
    ]


def _bytes_tensor(rows: Sequence[Sequence[str]]) -> bytes:
    """Return strings as the protocol packs them: each one's length in four bytes, then the bytes."""
    packed = [text.encode() for row in rows for text in row]
    return b"".join(len(each).to_bytes(4, "little") + each for each in packed)


def _padded(maps: Sequence[NDArray[np.float32]], columns: int) -> NDArray[np.float32]:
    whole = np.zeros((len(maps), maps[0].shape[0], columns), np.float32)
    for row, values in zip(whole, maps, strict=True):
        row[:, : values.shape[1]] = values
    return whole
