"""A `search` section as export writes it, with numbers by hand: independent normal impostors."""

from typing import Any

from scipy import stats

FALSE_ALARM = 0.05
GALLERIES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 100_000)


def section(**changes: Any) -> dict[str, Any]:
    """Return a section, whose entries may be replaced.

    An impostor's cosine is normal: mean 0.2 in noise (0 dB and below) and 0.1 without (20 dB and above), deviation 0.1.
    """
    quantiles = [float(stats.norm.ppf((1 - FALSE_ALARM) ** (1 / each))) for each in GALLERIES]
    return {
        "false_alarm": FALSE_ALARM,
        "strangers": "held-out speakers",
        "speakers": 4,
        "utterances": 120,
        "snr_knots_db": [0.0, 20.0],
        "speech_range_s": [0.5, 4.0],
        "slope": [15.0, 25.0, 5.0, 0.0],
        "offset": [-7.0, -10.0, -1.0, -0.5],
        "location": [0.2, 0.1, -0.02, 0.01],
        "spread": [0.1, 0.1, 0.0, 0.0],
        "maxima": {"galleries": list(GALLERIES), "quantiles": quantiles},
        "margin": {"base": 1.0, "growth": 0.2},
        "limits": {"speech_s": 0.5, "snr_db": -5.0, "bandwidth_hz": 7000.0},
        "outlook": [
            {"condition": "SNR 0 to 10 dB", "miss": 0.38, "low": 0.3, "high": 0.47, "trials": 130},
            {"condition": "SNR of 20 dB or more", "miss": 0.04, "low": 0.02, "high": 0.09, "trials": 130},
        ],
        "method": "by hand",
        **changes,
    }
