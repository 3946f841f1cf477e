"""What a result shows of itself in an interpreter, a notebook and a table."""

import base64
import io
import re
import sys

import numpy as np
import pytest
import soundfile

from speakerlens import Identification, SpeakerClient

from .stand_in import SPEAKERS


@pytest.fixture
def result(client: SpeakerClient, flac: bytes) -> Identification:
    return client.identify(flac, explain=True, with_embedding=True)


def test_result_is_a_mapping_by_model(result: Identification, client: SpeakerClient, flac: bytes) -> None:
    names = [answer.name for answer in result.answers]
    assert list(result) == list(result.keys()) == names
    assert len(result) == len(names)
    assert "act-da" in result
    assert names[0] in result
    assert "nobody" not in result
    assert result.get("nobody") is None
    assert result.get("act-da") is result["act-da"]
    assert dict(result.items())[names[0]] is result.answers[0]
    assert result == result  # noqa: PLR0124 (as an object)
    assert hash(result)
    embeddings = client.embed(flac)
    assert "act-da" in embeddings
    assert len(embeddings) == len(list(embeddings.values()))


def test_shown_in_a_line_each(result: Identification) -> None:
    for each in (result, *result.answers, result.answers[0].explanation):
        assert len(repr(each)) < 300
        assert "\n" not in repr(each)
    assert f"act-da@3 {SPEAKERS[0]}" in repr(result)
    explanation = result["act-da"].explanation
    assert explanation is not None
    assert re.fullmatch(r"<Plane \d+ x \d+, \d+ to \d+ Hz, to [\d.]+ s>", repr(explanation.maps["fused"]))


def test_other_results_are_shown_in_a_line(client: SpeakerClient, flac: bytes) -> None:
    catalogue = client.models()
    for each in (catalogue, *catalogue.models, client.verify(flac, flac), client.embed(flac)):
        assert len(repr(each)) < 300
        assert repr(each).startswith(f"<{type(each).__name__}")


def test_map_is_an_array_to_numpy(result: Identification) -> None:
    explanation = result["act-da"].explanation
    assert explanation is not None
    plane = explanation.maps["fused"]
    np.testing.assert_array_equal(np.asarray(plane), plane.values)
    assert np.asarray(plane, np.float64).dtype == np.float64


def test_notebook_shows_answers_maps_and_a_player(result: Identification, flac: bytes) -> None:
    page = result._repr_html_()
    assert page.count("<tr>") == 1 + len(result.answers)
    [player] = re.findall(r'<audio controls src="data:audio/flac;base64,([^"]+)"', page)
    assert base64.b64decode(player) == flac
    [picture] = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(picture).startswith(b"\x89PNG")


def test_samples_are_played_as_wav(client: SpeakerClient) -> None:
    samples = np.linspace(-0.5, 0.5, 1600)
    page = client.identify(samples, rate=8_000)._repr_html_()
    [player] = re.findall(r'src="data:audio/wav;base64,([^"]+)"', page)
    played, rate = soundfile.read(io.BytesIO(base64.b64decode(player)))
    assert rate == 8_000
    np.testing.assert_allclose(played, samples, atol=2**-14)
    assert "<img" not in page


def test_names_in_the_page_are_escaped(client: SpeakerClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.client.stand_in.SPEAKERS", ("<script>", "b", "c"))
    assert "<script>" not in client.identify(b"x")._repr_html_()


def test_plot_has_a_panel_for_each_map(result: Identification) -> None:
    panels = [axis for axis in result.plot().axes if axis.get_title(loc="left")]
    assert len(panels) == 2 + len(result.answers)


def test_result_without_maps_or_audio_says_why_it_has_no_plot(client: SpeakerClient, flac: bytes) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        client.identify(flac).plot()
    [result] = client.identify_batch([flac], explain=True)
    assert isinstance(result, Identification)
    with pytest.raises(ValueError, match="does not hold its audio"):
        result.plot()
    assert "does not hold its audio" in result._repr_html_()


def test_records_rank_the_speakers_of_each_model(result: Identification) -> None:
    rows = result.to_records()
    assert len(rows) == sum(len(answer.speakers) for answer in result.answers)
    assert rows[0]["model"] == result.answers[0].name
    assert [row["rank"] for row in rows[: len(result.answers[0].speakers)]] == list(
        range(1, len(result.answers[0].speakers) + 1)
    )


def test_frame_without_pandas_says_what_is_missing(result: Identification, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        result.to_frame()
