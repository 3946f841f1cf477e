"""Interpolation against torch, and planes against their definition."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speakerlens.responses import png_levels
from speakerlens.serving.engine.graphs import ExplainedPrediction
from speakerlens.serving.models.reader import read_bundle
from speakerlens.serving.pipeline.explain import Encoding, ExplainOptions, encode, explain, normalised, resize

SIZE = st.integers(1, 40)


@settings(max_examples=150, deadline=None)
@given(SIZE, SIZE, SIZE, SIZE, st.integers(0, 2**31))
def test_resize_matches_torch(r: int, c: int, rows: int, columns: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(r, c)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], (rows, columns), mode="bilinear", align_corners=False
    )[0, 0]
    np.testing.assert_allclose(resize(values, rows, columns), expected.numpy(), atol=1e-4)


def test_half_pixel_centres() -> None:
    """Two cells over four points: the ends repeat, the middle is a quarter and three quarters of the way."""
    np.testing.assert_allclose(resize(np.array([[0, 4]], np.float32), 1, 4), [[0, 1, 3, 4]])
    np.testing.assert_allclose(resize(np.array([[0], [4]], np.float32), 4, 1), [[0], [1], [3], [4]])


def test_map_of_zeros_stays_zero() -> None:
    np.testing.assert_array_equal(normalised(np.zeros((2, 3), np.float32)), np.zeros((2, 3)))
    np.testing.assert_array_equal(normalised(np.array([[1, 4]], np.float32)), [[0.25, 1]])


@pytest.mark.parametrize("spread", [0.0, 1e-30, 1.0, 1e6])
def test_uint8_values_are_within_half_a_step(spread: float) -> None:
    values = (np.random.default_rng(0).random((7, 9)) * spread - 3).astype(np.float32)
    plane = encode("s1", values, Encoding.UINT8, np.zeros(7, np.float32), np.zeros(9, np.float32))
    back = np.frombuffer(plane.values, np.uint8).reshape(7, 9) * plane.scale + plane.offset
    assert np.isfinite([plane.scale, plane.offset]).all()
    np.testing.assert_allclose(back, values, atol=plane.scale / 2 + 1e-6)


@pytest.mark.parametrize("stages", [("s4",), ("s1", "s3"), ("s1", "s2", "s3", "s4")])
def test_fused_map_is_the_mean_of_the_bundles_stages(toy_bundles: Path, stages: tuple[str, ...]) -> None:
    bundle = replace(read_bundle(toy_bundles / "da" / "1"), fused_stages=stages)
    rng, frames = np.random.default_rng(0), 17
    maps = tuple(rng.random((stage.rows, -(-frames // stage.stride)), np.float32) for stage in bundle.stages)
    features = np.zeros((bundle.mel_bins, frames), np.float32)
    answer = ExplainedPrediction(np.zeros(12, np.float32), np.zeros(6, np.float32), 4, features, maps)
    [plane] = explain(bundle, answer, ExplainOptions(("fused",))).saliency
    chosen = [maps[("s1", "s2", "s3", "s4").index(stage)] for stage in stages]
    expected = np.mean([resize(each / each.max(), *features.shape) for each in chosen], axis=0)
    np.testing.assert_allclose(np.frombuffer(plane.values, "<f4").reshape(features.shape), expected, atol=1e-5)


def test_maps_of_zeros_make_finite_planes(toy_bundles: Path) -> None:
    """No part of the score may come from what a map shows: then the map is empty, not NaN."""
    bundle = read_bundle(toy_bundles / "da" / "1")
    frames = 17
    maps = tuple(np.zeros((stage.rows, -(-frames // stage.stride)), np.float32) for stage in bundle.stages)
    features = np.zeros((bundle.mel_bins, frames), np.float32)
    answer = ExplainedPrediction(np.zeros(12, np.float32), np.zeros(6, np.float32), 4, features, maps)
    for encoding in Encoding:
        explanation = explain(bundle, answer, ExplainOptions(("fused", "s1"), encoding=encoding))
        assert explanation.target_speaker == bundle.speakers[4]
        for plane in explanation.saliency:
            values = plane.values
            if encoding is Encoding.PNG:
                values = png_levels(values, len(plane.frequencies_hz), len(plane.times_s)).tobytes()
            assert set(values) == {0}
            assert np.isfinite([plane.scale, plane.offset]).all()
