"""The palette seen with normal colour vision and without: differences, evenness, and that it is the only one."""

import itertools
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from speakerlens import palette
from tests.conftest import ROOT

# Machado, Oliveira and Fernandes (2009), severities 0.6 and 1.0, on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "deuteranomaly 0.6": [
        [0.498864, 0.674741, -0.173604],
        [0.205199, 0.754872, 0.039929],
        [-0.011131, 0.030969, 0.980162],
    ],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ @ np.ones(3)


def lab(pixels: NDArray[np.float64], vision: str = "normal") -> NDArray[np.float64]:
    """Return CIELAB (D65) of sRGB [..., 3] in [0, 1] as a vision sees it."""
    linear = np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.asarray(VISIONS[vision]).T, 0, 1)
    ratios = seen @ TO_XYZ.T / WHITE
    x, y, z = np.moveaxis(np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def rgb(colour: str) -> NDArray[np.float64]:
    return np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])


def nearest(colours: list[str], vision: str) -> float:
    pairs = itertools.combinations((lab(rgb(colour), vision) for colour in colours), 2)
    return min(float(np.linalg.norm(one - other)) for one, other in pairs)


@pytest.mark.parametrize("vision", VISIONS)
def test_states_and_variants_differ_for_every_vision(vision: str) -> None:
    """For comparison: Grafana's own green and red differ by 15 with deuteranopia."""
    assert nearest([palette.GOOD, palette.WATCH, palette.BAD], vision) > 35
    assert nearest([palette.LOOKS[name].colour for name in ("clean", "da", "act-da")], vision) > 25
    assert nearest([palette.SALIENCY, palette.INTERFERENCE, "#FFFFFF", "#999999"], vision) > 25


def test_states_differ_in_lightness() -> None:
    good, watch, bad = (lab(rgb(colour))[0] for colour in (palette.GOOD, palette.WATCH, palette.BAD))
    assert good - watch > 10
    assert watch - bad > 10


@pytest.mark.parametrize("sound", [0.0, 0.5])
def test_saliency_is_perceptually_even_in_one_hue(sound: float) -> None:
    """Steps of the map over a grey of the spectrogram: none is more than twice another, all darker."""
    grey = palette.grey(np.full((1, 11), sound))[0, :, :3] / 255
    over = palette.saliency(np.linspace(0, 1, 11)[None])[0] / 255
    shown = grey * (1 - over[:, 3:]) + over[:, :3] * over[:, 3:]
    steps = np.linalg.norm(np.diff(lab(shown), axis=0), axis=1)
    assert steps.max() < 2 * steps.min()
    assert (np.diff(lab(shown)[:, 0]) < -1).all()
    assert (over[:, :3] == over[0, :3]).all()


@pytest.mark.parametrize("name", palette.THEMES)
@pytest.mark.parametrize("sound", [0.0, 0.5, 1.0])
def test_maps_of_both_themes_are_even(name: str, sound: float) -> None:
    quiet, loud, hue = (rgb(colour) for colour in palette.THEMES[name])
    ground = quiet * (1 - sound) + loud * sound
    opacity = np.linspace(0, 0.92, 11)[:, None]
    shown = lab(ground * (1 - opacity) + hue * opacity)
    steps = np.linalg.norm(np.diff(shown, axis=0), axis=1)
    assert steps.max() < 3 * steps.min()
    assert (np.abs(np.diff(shown[:, 0])) > 1).all()
    assert (np.sign(np.diff(shown[:, 0])) == (-1 if name == "light" else 1)).all()
    for vision in VISIONS:
        assert nearest(list(palette.THEMES[name]), vision) > 25


def test_light_theme_is_that_of_files() -> None:
    pixels = np.rint(np.array([rgb(colour) for colour in palette.THEMES["light"]]) * 255)
    assert (palette.grey(np.array([[0.0, 1.0]]))[0, :, :3] == pixels[:2]).all()
    assert (palette.saliency(np.ones((1, 1)))[0, 0, :3] == pixels[2]).all()


def test_spectrogram_is_grey_and_even() -> None:
    pixels = palette.grey(np.linspace(0, 1, 11)[None])[0, :, :3]
    assert (np.ptp(pixels, axis=1) == 0).all()
    steps = -np.diff(lab(pixels / 255)[:, 0])
    assert steps.max() < 1.5 * steps.min()


def test_maps_of_zeros_and_of_one_value_are_drawn() -> None:
    assert (palette.saliency(np.zeros((2, 3)))[..., 3] == 0).all()
    assert palette.saliency(np.zeros((0, 3))).shape == (0, 3, 4)
    assert len({tuple(pixel) for pixel in palette.saliency(np.full((2, 3), 0.2)).reshape(-1, 4)}) == 1


def test_colours_of_variants_are_defined_once() -> None:
    colours = re.compile("|".join(look.colour for look in palette.LOOKS.values()), re.IGNORECASE)
    sources = [
        path
        for folder in ("speakerlens", "training", "deploy", "benchmarks", "export")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".j2", ".css", ".html"} and not path.is_symlink()
    ]
    assert len(sources) > 100
    assert [path.name for path in sources if colours.search(path.read_text("utf-8"))] == ["palette.py"]
