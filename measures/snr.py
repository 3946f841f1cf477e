"""How far speech stands above what else is in a recording, blindly: no clean speech to compare with.

Percentile floor in subbands, after Hirsch and Ehrlicher, "Noise estimation techniques for robust speech recognition"
(ICASSP 1995) and Stahl, Fischer and Bippus, "Quantile based noise estimation for spectral subtraction and Wiener
filtering" (ICASSP 2000): speech leaves every band again and again, within words too, so that a low quantile over time
of a band's power tells the noise in it.
"""

import math

import numpy as np
from numpy.typing import NDArray

QUANTILE = 0.2
LOWEST_DB, HIGHEST_DB = -20.0, 60.0


def snr_db(power: NDArray[np.floating]) -> float:
    """Estimate the signal-to-noise ratio of a recording.

    Args:
        power: its power spectrogram [frames, bands], of non-overlapping frames.

    Returns:
        10 log10 of the energy of speech over that of the rest, in decibels; NaN in silence.
    """
    total = float(power.sum())
    if not total > 0:
        return math.nan
    # In a band of Gaussian noise power is exponentially distributed: its quantile q lies at -ln(1 - q) of the mean.
    floor = np.quantile(power, QUANTILE, axis=0) / -math.log(1 - QUANTILE)
    noise = min(float(floor.sum()) * len(power), total)
    ratio = (total - noise) / max(noise, 1e-30)
    return min(max(10 * math.log10(max(ratio, 1e-10)), LOWEST_DB), HIGHEST_DB)
