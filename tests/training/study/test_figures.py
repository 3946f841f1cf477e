"""Figures of the maps, read back from the files."""

import re
from pathlib import Path

import numpy as np
import pytest

from speakerlens.training.evaluation.maps.spectrum import MapSpectrum
from speakerlens.training.study.figures import spectra_figure, spectrum_edges
from tests.training.study.measurements import measurements_of, plan_of


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (20, 33), (80, 33)])
def test_spectrum_bins_are_centred_on_their_frequencies(rows: int, columns: int) -> None:
    left, right, bottom, top = spectrum_edges(np.zeros((rows, columns)))
    along_mel = bottom + (np.arange(rows) + 0.5) * (top - bottom) / rows
    along_time = left + (np.arange(columns) + 0.5) * (right - left) / columns
    assert along_mel == pytest.approx(np.fft.fftshift(np.fft.fftfreq(rows)))
    assert along_time == pytest.approx(np.fft.rfftfreq(2 * (columns - 1)))


@pytest.mark.parametrize("taps", [1, 2])
def test_missing_taps_have_no_row(tmp_path: Path, taps: int) -> None:
    plan = plan_of(tmp_path, "da", seeds=1)
    power = ((1.0, 0.5), (0.2, 0.1))
    some = [MapSpectrum("da", "s3", "stage-output", True, power, 1.0, 0.5)]
    if taps == 2:
        some.append(MapSpectrum("da", "s3", "last-block-input", False, power, 1.0, 0.5))
    findings = measurements_of(plan)
    findings = type(findings)(**{**vars(findings), "spectra": {plan.runs[0]: tuple(some)}})
    spectra_figure(findings, tmp_path / "spectra.svg")
    height = re.search(r'<svg[^>]* height="([\d.]+)pt"', (tmp_path / "spectra.svg").read_text("utf-8"))
    assert height is not None
    assert float(height[1]) == pytest.approx(72 * (0.4 + 2.4 * taps))
