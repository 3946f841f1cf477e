"""Statistics of maps: area under the ROC curve, correlation, structural similarity."""

import math

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Values = NDArray[np.float32] | NDArray[np.float64]

_SSIM_WINDOW = 7
_SSIM_K1, _SSIM_K2 = 0.01, 0.03


def ranks(values: Values) -> NDArray[np.float64]:
    """Return ranks from 1 up, [N] -> [N]; ties share the mean of their ranks."""
    ranked: NDArray[np.float64] = scipy.stats.rankdata(values)
    return ranked


def roc_auc(values: Values, positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve: the probability that a positive has the larger value (Mann and Whitney).

    Args:
        values: [N].
        positive: bool [N].

    Returns:
        1 where all positives are above, 0.5 by chance; a tie counts half. NaN without positives or without negatives.
    """
    count = int(positive.sum())
    others = len(positive) - count
    if count == 0 or others == 0:
        return math.nan
    return float((ranks(values)[positive].sum() - count * (count + 1) / 2) / (count * others))


def pearson(one: Values, other: Values) -> float:
    """Return the correlation of two arrays [N], of ranks Spearman's; NaN where one of them is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(scipy.stats.pearsonr(one, other).statistic)


def ssim(one: Tensor, other: Tensor) -> float:
    """Return the mean structural similarity of two maps in [0, 1], [rows, columns] (Wang et al., IEEE TIP 2004).

    Windows are 7x7, smaller where the map is, with equal weights and unbiased variances.
    """
    window = (min(_SSIM_WINDOW, one.shape[0]), min(_SSIM_WINDOW, one.shape[1]))
    count = window[0] * window[1]
    pair = torch.stack([one, other]).double()
    products = torch.stack([pair[0] * pair[0], pair[1] * pair[1], pair[0] * pair[1]])
    mean = F.avg_pool2d(pair[None], window, stride=1)[0]
    second = F.avg_pool2d(products[None], window, stride=1)[0]
    moments = torch.stack([mean[0] * mean[0], mean[1] * mean[1], mean[0] * mean[1]])
    variance, other_variance, covariance = (second - moments) * (count / (count - 1))
    c1, c2 = _SSIM_K1**2, _SSIM_K2**2
    luminance = (2 * moments[2] + c1) / (moments[0] + moments[1] + c1)
    structure = (2 * covariance + c2) / (variance + other_variance + c2)
    return float((luminance * structure).mean())
