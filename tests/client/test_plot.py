"""The plot: the content and axes of each panel, and the file."""

from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from speakerlens import Explain, Identification, SpeakerClient, palette
from speakerlens.captions import of_answers
from speakerlens.plot import Waveform, draw, read_waveform, save_plot

from .stand_in import COLUMNS, SECONDS, VARIANTS, log_mel, mel_centres, saliency


@pytest.fixture
def result(client: SpeakerClient, flac: bytes) -> Identification:
    return client.identify(flac, explain=True)


def _panels(figure: mpl.figure.Figure) -> list[mpl.axes.Axes]:
    """Return the panels from top to bottom, without the colour bars."""
    return [axes for axes in figure.axes if axes.get_title(loc="left")]


def test_panels_for_waveform_log_mel_and_every_variant(result: Identification, flac: bytes) -> None:
    panels = _panels(draw("click.flac", of_answers(result.answers), read_waveform(flac)))
    assert [panel.get_title(loc="left") for panel in panels] == [
        "waveform",
        "log-mel",
        "clean@3: anna  40.0% (unknown: below the model's threshold)",
        "da@3: anna  90.0%",
        "act-da@3: anna  90.0%",
    ]
    sound = panels[1].images[0].get_array()
    assert sound is not None
    darkness = 255 - sound[..., 0].astype(float)
    assert np.corrcoef(darkness.ravel(), log_mel().ravel())[0, 1] > 0.98
    for panel, variant in zip(panels[2:], VARIANTS, strict=True):
        below, over = (image.get_array() for image in panel.images)
        np.testing.assert_array_equal(below, sound)
        np.testing.assert_array_equal(over, palette.saliency(saliency(variant)))
        assert to_hex(panel.spines["left"].get_edgecolor()) == palette.LOOKS[variant].colour.lower()


def test_server_order_does_not_matter_in_pictures(result: Identification) -> None:
    turned = replace(result, answers=tuple(sorted(result.answers, key=lambda answer: answer.variant)))
    assert [answer.variant for answer in turned.answers] == ["act-da", "clean", "da"]
    assert [maps.name for maps in of_answers(turned.answers)] == ["clean@3", "da@3", "act-da@3"]


def test_panels_share_seconds_and_kilohertz(result: Identification, flac: bytes) -> None:
    figure = draw("click.flac", of_answers(result.answers), read_waveform(flac))
    figure.draw_without_rendering()
    panels = _panels(figure)
    assert {panel.get_xlim() for panel in panels} == {(0.0, SECONDS)}
    # Panels are equally wide, with colour bars or without.
    assert len({(round(panel.get_position().x0, 6), round(panel.get_position().x1, 6)) for panel in panels}) == 1
    assert panels[-1].get_xlabel() == "time (s)"
    spectral = panels[1:]
    assert len({panel.get_ylim() for panel in spectral}) == 1
    assert {panel.get_ylabel() for panel in spectral} == {"kHz"}
    ticks = {label.get_text(): place for label, place in zip(spectral[0].get_yticklabels(), spectral[0].get_yticks())}  # noqa: B905
    assert list(ticks) == ["0.25", "0.5", "1", "2", "4"]
    # A tick stands where its frequency is in the image: between the rows whose centres enclose it.
    left, right, bottom, top = spectral[0].images[0].get_extent()
    for label, place in ticks.items():
        row = (place - bottom) / (top - bottom) * 80 - 0.5
        assert np.interp(row, range(80), mel_centres(80)) == pytest.approx(float(label) * 1000, rel=0.01)
    assert (left, right) == pytest.approx((0.0075, 0.0075 + 0.01 * COLUMNS))


def test_single_click_is_visible_in_the_waveform(result: Identification, flac: bytes) -> None:
    """A single sample in 32,000 survives the drawing of 1,500 columns."""
    path = _panels(draw("click.flac", of_answers(result.answers), read_waveform(flac)))[0].collections[0].get_paths()[0]
    highest = path.vertices[np.argmax(path.vertices[:, 1])]  # type: ignore[index]
    assert highest == pytest.approx([1.5, 0.9], abs=2e-3)


def test_file_without_a_length_is_read_whole(flac: bytes, endless_flac: bytes) -> None:
    read, expected = read_waveform(endless_flac), read_waveform(flac)
    assert read.rate == expected.rate == 16000
    np.testing.assert_array_equal(read.samples, expected.samples)


def test_titles_name_the_stage_and_the_target(client: SpeakerClient, flac: bytes) -> None:
    asked = Explain(stages=("s1", "fused"), target="[bold]$x^$")
    result = client.identify(flac, variants="da", top_k=1, explain=asked)
    panels = _panels(draw("$name.flac", of_answers(result.answers), read_waveform(flac)))
    rights = [panel.get_title(loc="right") for panel in panels[2:]]
    assert rights == ["s1 saliency: why [bold]$x^$?", "fused saliency: why [bold]$x^$?"]


def test_answer_without_maps_is_refused(client: SpeakerClient, flac: bytes) -> None:
    with pytest.raises(ValueError, match="request one with explain"):
        draw("click.flac", of_answers(client.identify(flac).answers), read_waveform(flac))


def test_zero_map_and_silent_waveform_are_drawn(result: Identification) -> None:
    for answer in result.answers:
        assert answer.explanation is not None
        answer.explanation.maps["fused"].values[:] = 0
    panels = _panels(draw("silence", of_answers(result.answers), Waveform(np.zeros(32000, np.float32), 16000)))
    for panel in panels[2:]:
        over = panel.images[1].get_array()
        assert over is not None
        assert np.all(over[..., 3] == 0)


def test_blobs_are_coloured_in_their_panels(result: Identification, flac: bytes, tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    save_plot(path, "click.flac", of_answers(result.answers), read_waveform(flac))
    picture = np.ptp(imread(path)[..., :3], axis=2)  # 0 is grey
    figure = draw("click.flac", of_answers(result.answers), read_waveform(flac))
    figure.draw_without_rendering()
    height, width = picture.shape
    for panel, variant in zip(_panels(figure)[2:], VARIANTS, strict=True):
        values = saliency(variant)
        row, column = map(int, np.unravel_index(values.argmax(), values.shape))
        box = panel.get_position()

        def chroma(row: float, column: float, box: mpl.transforms.Bbox = box) -> float:
            across = (0.0075 + 0.01 * (column + 0.5)) / SECONDS
            x = box.x0 + box.width * across
            y = box.y0 + box.height * (row + 0.5) / 80
            return float(picture[int((1 - y) * height), int(x * width)])

        assert chroma(row, column) > 0.4
        assert chroma(row, (column + 90) % COLUMNS) < 0.05
