"""From the messages of a server to the results about its models."""

from speakerlens.model_results import Calibration, Catalogue, Limits, ModelInfo, Outlook, SearchCalibration, StageInfo
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.responses import basis_of, stage_name


def catalogue(response: pb.ListModelsResponse) -> Catalogue:
    """Read the list of loaded models."""
    limits = response.limits
    return Catalogue(
        models=tuple(_model(model) for model in response.models),
        provider=response.provider,
        limits=Limits(limits.max_bytes, limits.min_seconds, limits.max_seconds, limits.max_requests),
    )


def _model(model: pb.Model) -> ModelInfo:
    return ModelInfo(
        variant=model.variant,
        version=model.version,
        speakers=tuple(model.speakers),
        sample_rate=model.sample_rate,
        mel_bins=model.mel_bins,
        embedding_size=model.embedding_size,
        stages=tuple(StageInfo(stage_name(stage.stage), stage.tap, stage.rows, stage.stride) for stage in model.stages),
        code_revision=model.code_revision,
        training_data_digest=model.training_data_digest,
        calibration=_calibration(model.calibration) if model.HasField("calibration") else None,
        without_classifier=model.without_classifier,
        search=_search_calibration(model.search) if model.HasField("search") else None,
        precision=model.precision or "fp32",
    )


def _search_calibration(calibration: pb.SearchCalibration) -> SearchCalibration:
    return SearchCalibration(
        false_alarm=calibration.false_alarm,
        speakers=calibration.speakers,
        recordings=calibration.recordings,
        least_speech_s=calibration.least_speech_s,
        least_snr_db=calibration.least_snr_db,
        least_bandwidth_hz=calibration.least_bandwidth_hz,
        margin=calibration.margin,
        outlook=tuple(Outlook(each.condition, each.miss, each.low, each.high) for each in calibration.outlook),
    )


def _calibration(calibration: pb.Calibration) -> Calibration:
    return Calibration(
        temperature=calibration.temperature,
        threshold=calibration.threshold,
        false_acceptance=calibration.false_acceptance,
        threshold_basis=basis_of(calibration.threshold_basis),
        speakers=calibration.speakers,
        utterances=calibration.utterances,
        noises=calibration.noises,
        noise_acceptance=calibration.noise_acceptance,
        verification_basis=basis_of(calibration.verification_basis),
    )
