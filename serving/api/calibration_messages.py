"""Messages of a bundle's calibration of search."""

from speakerlens.measures.search import SearchCalibration
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb


def search_calibration_of(calibration: SearchCalibration) -> pb.SearchCalibration:
    """Return the message of a calibration."""
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
