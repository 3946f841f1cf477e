"""The figures, read back from their axes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage, imread
from numpy.typing import NDArray

from speakerlens.palette import grey, looks, rank
from speakerlens.palette import saliency as saliency_pixels
from speakerlens.training.evaluation.accuracy import score_all, summarise
from speakerlens.training.evaluation.comparison.figures import loudness, robustness_figure, saliency_figure
from speakerlens.training.evaluation.comparison.results import Evaluation
from speakerlens.training.evaluation.conditions import CLEAN, LABELS, Condition
from speakerlens.training.evaluation.maps.example import Example, ExampleAnswer, Why

VARIANTS = ("clean", "da", "act-da")
KINDS = ("noise", "babble", "reverb")
SNRS = (20.0, 0.0, -5.0)


def _values(data: Any) -> list[float]:
    return [float(value) for value in data]


def _filled(image: AxesImage) -> NDArray[np.float64]:
    """What an image shows, NaN where nothing."""
    return np.ma.filled(np.ma.asarray(image.get_array(), dtype=np.float64), np.nan)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    conditions = (CLEAN, *(Condition(kind, snr) for kind in KINDS for snr in SNRS))
    ranks = np.random.default_rng(0).integers(1, 9, size=(len(VARIANTS), len(conditions), 40))
    summaries, differences = summarise(VARIANTS, conditions, ranks)
    about = {"corpus": {"speakers": 8, "test_utterances": 40}}
    scores = score_all(VARIANTS, conditions, ranks)
    return Evaluation(about, VARIANTS, KINDS, SNRS, {}, scores, summaries, differences, {}, ())


@pytest.fixture(scope="module")
def shown() -> Example:
    rng = np.random.default_rng(0)
    mel, frames = 80, 120
    centres: NDArray[np.float64] = 700 * (np.exp(np.linspace(0.05, 2.5, mel)) - 1)
    picture = rng.normal(80, 10, size=(3, mel, frames)).astype(np.float32)
    dominated = np.zeros((mel, frames), dtype=bool)
    dominated[:40, 30:60] = True
    maps = [rng.random((mel, frames), dtype=np.float32) for _ in range(3)]
    right = Why("ada", 0.97, maps[2], float("nan"), 0.8)
    answers = {
        "clean": ExampleAnswer(Why("bob", 0.51, maps[0], 1.2, 0.9), Why("ada", 0.2, maps[1], 0.7, 0.9), False),
        "act-da": ExampleAnswer(right, right, True),
    }
    times = 0.0125 + 0.01 * np.arange(frames, dtype=np.float64)
    sound = np.zeros(16000, np.float32)
    return Example(
        "x.flac",
        "ada",
        Condition("reverb", 0.0),
        sound,
        sound,
        picture[0],
        picture[1],
        dominated,
        centres,
        times,
        answers,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(scope="module")
def robustness(evaluation: Evaluation, folder: Path) -> Figure:
    return robustness_figure(evaluation, folder / "robustness.png")


@pytest.fixture(scope="module")
def saliency(shown: Example, folder: Path) -> Figure:
    return saliency_figure(shown, folder / "saliency.png")


def test_variants_keep_their_colours_and_none_is_used_twice() -> None:
    alone, together = looks(["act-da"]), looks(["clean", "da", "act-da", "da-pair", "da-2x", "da (x)", "da (y)"])
    assert alone["act-da"] == together["act-da"]
    assert len({colour for colour, _ in together.values()}) == len({marker for _, marker in together.values()}) == 7


def test_robustness_has_a_panel_per_kind_and_a_mean(robustness: Figure) -> None:
    titles = [axis.get_title(loc="left") for axis in robustness.axes]
    assert titles == ["Mean of all kinds", *(LABELS[kind] for kind in KINDS)]
    assert "SNR" in robustness.axes[1].get_xlabel()
    assert "irect-to-reverberant" in robustness.axes[3].get_xlabel()


def test_robustness_lines_are_the_scores(robustness: Figure, evaluation: Evaluation) -> None:
    for axis, kind in zip(robustness.axes[1:], KINDS, strict=True):
        lines = {line.get_label(): line for line in axis.get_lines()}
        for variant, (colour, _) in looks(VARIANTS).items():
            line = lines[variant]
            assert to_hex(line.get_color()) == colour.lower()
            assert _values(line.get_xdata()) == sorted(SNRS)
            expected = [evaluation.score(variant, kind, snr).top1 for snr in sorted(SNRS)]
            assert _values(line.get_ydata()) == expected
    means = {line.get_label(): line for line in robustness.axes[0].get_lines()}
    worst = np.mean([evaluation.score("da", kind, -5.0).top1 for kind in KINDS])
    assert _values(means["da"].get_ydata())[0] == pytest.approx(worst)


def test_robustness_marks_clean_speech(robustness: Figure, evaluation: Evaluation) -> None:
    axis = robustness.axes[0]
    assert axis.get_xticklabels()[-1].get_text() == "clean"
    at = axis.get_xticks()[-1]
    points = [_values(line.get_ydata())[0] for line in axis.get_lines() if _values(line.get_xdata()) == [at]]
    assert points == [evaluation.score(variant, "clean", None).top1 for variant in VARIANTS]


def test_single_kind_has_no_mean_panel(evaluation: Evaluation, tmp_path: Path) -> None:
    alone = Evaluation(**{**vars(evaluation), "kinds": ("noise",)})
    assert len(robustness_figure(alone, tmp_path / "alone.png").axes) == 1


@pytest.mark.parametrize("kinds", [("noise",), ("noise", "babble"), KINDS])
def test_title_and_legend_are_not_cut(kinds: tuple[str, ...], evaluation: Evaluation, tmp_path: Path) -> None:
    about = {"corpus": {"speakers": 1251, "test_utterances": 8251}}
    large = Evaluation(**{**vars(evaluation), "kinds": kinds, "about": about})
    figure = robustness_figure(large, tmp_path / "some.png")
    figure.savefig(tmp_path / "again.png", dpi=figure.dpi)  # the measures are those of the last drawing
    for part in (figure.texts[0], figure.legends[0]):
        extent = part.get_window_extent()
        assert 0 <= extent.x0 < extent.x1 <= figure.bbox.width


def test_maps_lie_over_the_mixture_for_each_target(saliency: Figure, shown: Example) -> None:
    panels = [axis for axis in saliency.axes if axis.get_title(loc="left")]
    assert len(panels) == 3 + 2 + 1  # of clean, the map of the true speaker as well: it names another
    np.testing.assert_array_equal(panels[0].get_images()[0].get_array(), shown.speech_db)
    np.testing.assert_array_equal(panels[1].get_images()[0].get_array(), shown.mixture_db)
    marked = _filled(panels[2].get_images()[1])
    np.testing.assert_array_equal(marked == 1, shown.dominated)
    wrong, right = shown.answers["clean"], shown.answers["act-da"]
    for panel, why in zip(panels[3:], (wrong.named, right.named, wrong.true), strict=True):
        sound, over = (image.get_array() for image in panel.get_images())
        np.testing.assert_array_equal(sound, grey(loudness(shown, shown.mixture_db)))
        np.testing.assert_array_equal(over, saliency_pixels(why.map))
    titles = [panel.get_title(loc="left") for panel in panels[3:]]
    assert titles[0].startswith("clean: wrong, bob for ada (51 %, unknown)\nwhy bob? deletion index 1.20 ")
    assert titles[1].startswith("act-da: right, ada (97 %)\nwhy ada? deletion index none ")
    assert "why ada? deletion index 0.70 (speech alone 0.90)" in titles[2]


def test_variants_are_shown_in_one_order() -> None:
    names = ["da-2x", "other", "act-da", "clean", "another", "da"]
    assert sorted(names, key=rank) == ["clean", "da", "act-da", "da-2x", "another", "other"]


def test_axes_are_labelled_in_kilohertz_and_seconds(saliency: Figure, shown: Example) -> None:
    axis = saliency.axes[0]
    for position, label in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True):
        nearest = int(np.abs(shown.centres_hz - 1000 * float(label.get_text())).argmin())
        assert abs(position - (nearest + 0.5)) <= 0.55
    assert len(axis.get_yticks()) >= 5
    assert axis.get_images()[0].get_extent()[:2] == pytest.approx([0.0075, 1.2075])


@pytest.mark.usefixtures("robustness", "saliency")
@pytest.mark.parametrize("name", ["robustness.png", "saliency.png"])
def test_pictures_are_large_and_not_empty(folder: Path, name: str) -> None:
    pixels = imread(folder / name)
    assert min(pixels.shape[:2]) >= 700
    assert pixels[..., :3].std() > 0.05
