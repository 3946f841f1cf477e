"""Colours and order of everything that is drawn: plots, reports, dashboards.

Each variant has one colour and one marker, from the colour-blind-safe palette of Okabe and Ito (2008). A saliency map
has one hue, more opaque where it is stronger, over a grey spectrogram. States differ in lightness as well as in hue.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Look(NamedTuple):
    """Colour and marker (matplotlib's name) of a variant."""

    colour: str
    marker: str


LOOKS = {
    "clean": Look("#D55E00", "o"),
    "da": Look("#0072B2", "s"),
    "act-da": Look("#009E73", "^"),
    "da-pair": Look("#CC79A7", "D"),
    "act-pair": Look("#56B4E9", "P"),
    "da-2x": Look("#E69F00", "v"),
}
"""Of the variants that the project trains, in the order in which they are shown."""

_OTHERS = (Look("#000000", "X"), Look("#999999", "*"), Look("#882255", "h"), Look("#661100", "<"), Look("#44AA99", ">"))

GOOD, WATCH, BAD = "#BFE3D4", "#E8A200", "#C2255C"
"""Fills of the three states, from light to dark. A word or a number stands beside each: colour alone says nothing."""

SALIENCY = "#6A1B9A"
INTERFERENCE = "#F2C230"
"""Marks the bins that the interference dominates."""

_LOUDEST_GREY = 0.6  # sRGB, light enough for the hue above it
_MOST_OPAQUE = 0.92


class Theme(NamedTuple):
    """Colours of a map over a spectrogram: of the quietest and the loudest bins, and the hue of the map."""

    quiet: str
    loud: str
    saliency: str


THEMES = {
    "light": Theme("#FFFFFF", "#999999", SALIENCY),
    "dark": Theme("#16181C", "#666666", "#D99BFF"),
}
"""Of the page, by the scheme that the browser asks for; files that are drawn have the light one."""


def rank(variant: str) -> tuple[int, str]:
    """Return the key that sorts variants: clean, da, act-da, the controls, then all others by name."""
    names = list(LOOKS)
    return (names.index(variant) if variant in LOOKS else len(names), variant)


def looks(variants: Iterable[str]) -> dict[str, Look]:
    """Return a colour and a marker for each variant: the same in every figure for those of `LOOKS`."""
    others = iter(_OTHERS * 100)
    return {variant: LOOKS.get(variant) or next(others) for variant in variants}


def grey(shares: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a spectrogram as pixels, [rows, columns] in [0, 1] -> RGBA [rows, columns, 4]; 0 is white."""
    level = 255 * (1 - (1 - _LOUDEST_GREY) * np.clip(shares, 0, 1))
    return _pixels(level[..., None].repeat(3, axis=-1), 255)


def saliency(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a saliency map as pixels, [rows, columns] -> RGBA [rows, columns, 4], opaque at its maximum."""
    peak = float(values.max()) if values.size else 0.0
    return tint(SALIENCY, _MOST_OPAQUE * np.asarray(values) / (peak if peak > 0 else 1.0))


def tint(colour: str, opacity: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pixels of one colour, `opacity` [rows, columns] in [0, 1] -> RGBA [rows, columns, 4]."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return _pixels(np.broadcast_to([red, green, blue], (*np.shape(opacity), 3)), 255 * np.clip(opacity, 0, 1))


def _pixels(colours: NDArray[Any], alpha: NDArray[Any] | float) -> NDArray[np.uint8]:
    opaque = np.broadcast_to(alpha, colours.shape[:2])[..., None]
    pixels: NDArray[np.uint8] = np.rint(np.concatenate([colours, opaque], axis=-1)).astype(np.uint8)
    return pixels
