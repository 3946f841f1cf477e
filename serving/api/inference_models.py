"""What a model is and what it has done, in messages of the inference protocol."""

from collections.abc import Iterable

from speakerlens.protos.inference import inference_pb2 as pb
from speakerlens.serving.api.inference_request import DEFAULT_LEVEL, PRIORITY_LEVELS
from speakerlens.serving.api.inference_tensors import ANY, INPUTS, Datatype, Tensor, outputs
from speakerlens.serving.config import Config
from speakerlens.serving.engine.statistics import Timing
from speakerlens.serving.models.registry import Model

PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
READY = "READY"
DATA_TYPES: dict[Datatype, pb.DataType.ValueType] = {"FP32": pb.TYPE_FP32, "INT64": pb.TYPE_INT64}


def metadata_of(model: Model, versions: Iterable[int]) -> pb.ModelMetadataResponse:
    """Names, types and shapes of a model's tensors; `versions` are those of the variant that are loaded."""
    return pb.ModelMetadataResponse(
        name=model.bundle.variant,
        versions=[str(version) for version in versions],
        platform=PLATFORM,
        inputs=[_metadata(tensor) for tensor in INPUTS],
        outputs=[_metadata(tensor) for tensor in outputs(model.bundle)],
    )


def _metadata(tensor: Tensor) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=(ANY, *tensor.dims)
    )


def config_of(model: Model, config: Config) -> pb.ModelConfig:
    """How requests to a model are put together."""
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
            pb.ModelOutput(name=tensor.name, data_type=DATA_TYPES[tensor.datatype], dims=tensor.dims)
            for tensor in outputs(model.bundle)
        ],
        dynamic_batching=pb.ModelDynamicBatching(priority_levels=PRIORITY_LEVELS, default_priority_level=DEFAULT_LEVEL),
    )


def statistics_of(model: Model) -> pb.ModelStatistics:
    """What a model has done since it was loaded."""
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
    """What is loaded."""
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(
                name=model.bundle.variant, version=str(model.bundle.version), state=READY
            )
            for model in models
        ]
    )
