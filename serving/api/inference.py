"""The Open Inference Protocol, `inference.GRPCInferenceService`: translate between its messages and the pipeline."""

from importlib import metadata
from typing import Any, Final

from speakerlens.protos.inference import inference_pb2 as pb
from speakerlens.protos.inference.inference_pb2_grpc import GRPCInferenceServiceServicer
from speakerlens.serving.api.base import deadline_of
from speakerlens.serving.api.infer import Inference
from speakerlens.serving.api.inference_messages import config_of, index_of, metadata_of, statistics_of
from speakerlens.serving.config import Config
from speakerlens.serving.context import current_context
from speakerlens.serving.errors import InvalidArgumentError, NotFoundError, Reason, listed, quoted
from speakerlens.serving.models.registry import Model, Models, Selector
from speakerlens.serving.rpc.health import MODEL, Health

SERVICE: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
# Answered while the server starts and drains as well.
ALWAYS: Final = tuple(f"/{SERVICE}/{method}" for method in ("ServerLive", "ServerReady", "ModelReady"))
# Without the repository extension, of which only the index is offered.
EXTENSIONS: Final = ("classification", "model_configuration", "statistics", "schedule_policy")


class InferenceService(GRPCInferenceServiceServicer):
    """The servicer; `serving.rpc.interceptor` turns its errors into statuses.

    Args:
        models: what is loaded.
        health: whether requests are accepted.
        config: what ModelConfig reports.

    Attributes:
        inference: answers ModelInfer; set once models are loaded, before calls are let in.
    """

    def __init__(self, models: Models, health: Health, config: Config) -> None:
        self.inference: Inference | None = None
        self._models = models
        self._health = health
        self._config = config

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:  # noqa: N802
        """Return true: the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:  # noqa: N802
        """Return whether requests are accepted."""
        return pb.ServerReadyResponse(ready=self._health.serving())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:  # noqa: N802
        """Return whether requests to a model are accepted."""
        try:
            model = self._model("name", request.name, "version", request.version)
        except NotFoundError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._health.serving(MODEL + model.bundle.variant))

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: Any
    ) -> pb.ServerMetadataResponse:
        """Return the name and version of the server, and the extensions it offers."""
        return pb.ServerMetadataResponse(
            name="speakerlens", version=metadata.version("speakerlens"), extensions=EXTENSIONS
        )

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:  # noqa: N802
        """Return a model's tensors."""
        model = self._model("name", request.name, "version", request.version)
        return metadata_of(model, self._versions(model.bundle.variant))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Any) -> pb.ModelConfigResponse:  # noqa: N802
        """Return how requests to a model are batched."""
        model = self._model("name", request.name, "version", request.version)
        return pb.ModelConfigResponse(config=config_of(model, self._config))

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, context: Any
    ) -> pb.ModelStatisticsResponse:
        """Return the statistics of one model, of a variant, or of all."""
        models = list(self._models)
        if request.name and request.version:
            models = [self._model("name", request.name, "version", request.version)]
        elif request.name:
            variant = self._model("name", request.name, "version", "").bundle.variant
            models = [model for model in models if model.bundle.variant == variant]
        elif request.version:
            raise InvalidArgumentError(Reason.ARGUMENT, "version: given without a name; name the model as well")
        return pb.ModelStatisticsResponse(model_stats=[statistics_of(model) for model in models])

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, context: Any
    ) -> pb.RepositoryIndexResponse:
        """Return the loaded models."""
        if request.repository_name:
            raise InvalidArgumentError(
                Reason.ARGUMENT,
                f"repository_name: {quoted(request.repository_name)}; there is one repository, without a name",
            )
        return index_of(self._models)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:  # noqa: N802
        """Answer a batch of utterances."""
        assert self.inference is not None, "the gate opens after the models are loaded"
        model = self._model("model_name", request.model_name, "model_version", request.model_version)
        current_context.get().variant = model.bundle.variant
        with self._models.hold([model]):
            return await self.inference.infer(request, model, deadline_of(context))

    def _model(self, name_field: str, name: str, version_field: str, version: str) -> Model:
        """Return the model of a name and a version; an empty version is the newest.

        Raises:
            NotFoundError: it is not loaded; lists what is.
        """
        versions = self._versions(name)
        if not versions:
            there = dict.fromkeys(model.bundle.variant for model in self._models)
            raise NotFoundError(
                Reason.UNKNOWN_VARIANT, f"{name_field}: no model {quoted(name)}; there are {listed(there)}"
            )
        wanted = version or str(versions[-1])
        if wanted not in map(str, versions):
            raise NotFoundError(
                Reason.UNKNOWN_VERSION,
                f"{version_field}: no version {quoted(version)} of {name}; there are {listed(versions)}",
            )
        [model] = self._models.select([Selector(name, int(wanted))])
        return model

    def _versions(self, variant: str) -> list[int]:
        """Return the loaded versions of a variant, oldest first."""
        return [model.bundle.version for model in self._models if model.bundle.variant == variant]
