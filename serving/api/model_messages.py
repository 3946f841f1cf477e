"""Messages that describe a loaded model: its network, its speakers and how it was calibrated."""

from speakerlens.measures.search import SearchCalibration
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.api.messages import BASES, STAGE_NUMBERS
from speakerlens.serving.bundle import SAMPLE_RATE, Calibration, ThresholdBasis
from speakerlens.serving.models.registry import Model


def model_of(model: Model) -> pb.Model:
    """Return the description of a loaded model."""
    bundle = model.bundle
    return pb.Model(
        variant=bundle.variant,
        version=bundle.version,
        speakers=bundle.speakers,
        sample_rate=SAMPLE_RATE,
        mel_bins=bundle.mel_bins,
        embedding_size=bundle.embedding_size,
        stages=[
            pb.StageInfo(stage=STAGE_NUMBERS[stage.name], tap=stage.tap, rows=stage.rows, stride=stage.stride)
            for stage in bundle.stages
        ],
        code_revision=bundle.code_revision,
        training_data_digest=bundle.training_data_digest,
        calibration=None if bundle.calibration is None else _calibration(bundle.calibration, bundle.verification_basis),
        without_classifier=not bundle.has_classifier,
        search=None if bundle.search is None else _search_calibration(bundle.search),
        precision=bundle.precision,
    )


def _calibration(calibration: Calibration, verification_basis: ThresholdBasis) -> pb.Calibration:
    return pb.Calibration(
        temperature=calibration.temperature,
        threshold=calibration.threshold,
        false_acceptance=calibration.false_acceptance,
        threshold_basis=BASES[calibration.basis],
        speakers=calibration.speakers,
        utterances=calibration.utterances,
        noises=calibration.noises,
        noise_acceptance=calibration.noise_acceptance,
        verification_basis=BASES[verification_basis],
    )


def _search_calibration(calibration: SearchCalibration) -> pb.SearchCalibration:
    return pb.SearchCalibration(
        false_alarm=calibration.false_alarm,
        basis=pb.CALIBRATION_BASIS_OUT_OF_SET_SPEAKERS,
        speakers=calibration.speakers,
        recordings=calibration.utterances,
        least_speech_s=calibration.least_speech_s,
        least_snr_db=calibration.least_snr_db,
        least_bandwidth_hz=calibration.least_bandwidth_hz,
        margin=calibration.margin(),
        outlook=[
            pb.Outlook(condition=each.condition, miss=each.miss, low=each.low, high=each.high)
            for each in calibration.outlook()
        ],
    )
