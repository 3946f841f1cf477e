"""Audio in every form that speech libraries hold becomes one request; what is no audio is refused by what it is."""

import array
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from speakerlens import Explain, RawSamples
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.requests import AudioSource, identify
from speakerlens.samples import as_array

STEREO = np.stack([np.linspace(-0.5, 0.5, 800), np.linspace(0.25, -0.25, 800)], axis=1).astype(np.float32)
MONO = STEREO[:, 0]


def request(audio: Any, rate: int | None = 16_000, explain: Any = False) -> pb.IdentifyRequest:
    return identify(audio, rate, "all", None, explain, False)


def sent(audio: AudioSource, rate: int | None = 16_000) -> tuple[np.ndarray[Any, Any], int]:
    raw = request(audio, rate).audio.raw
    kind = "<i2" if raw.format == pb.SAMPLE_FORMAT_INT16 else "<f4"
    samples = np.frombuffer(raw.samples, kind)
    scale = 2**15 if kind == "<i2" else 1
    return (samples.astype(np.float64) / scale).reshape(-1, raw.channels), raw.sample_rate


@pytest.mark.parametrize(
    ("audio", "expected", "tolerance"),
    [
        (MONO, MONO[:, None], 0),
        (MONO.astype(np.float64), MONO[:, None], 0),
        (MONO.astype(np.float16), MONO[:, None], 1e-3),
        (MONO.astype(">f4"), MONO[:, None], 0),
        (MONO[::-1][::-1], MONO[:, None], 0),
        (
            memoryview(MONO),  # type: ignore[arg-type]
            MONO[:, None],
            0,
        ),
        (MONO.tolist(), MONO[:, None], 0),
        (tuple(MONO.tolist()), MONO[:, None], 0),
        (array.array("f", MONO.tolist()), MONO[:, None], 0),
        (STEREO, STEREO, 0),
        (STEREO.T, STEREO, 0),
        (STEREO.T.tolist(), STEREO, 0),
        (np.asfortranarray(STEREO), STEREO, 0),
        ((MONO * 2**15).astype(np.int16), MONO[:, None], 2**-15),
        ((MONO.astype(np.float64) * 2**31).astype(np.int32), MONO[:, None], 1e-6),
        ((MONO * 2**7 + 2**7).astype(np.uint8), MONO[:, None], 2**-7),
        (torch.from_numpy(MONO), MONO[:, None], 0),
        (torch.from_numpy(STEREO.T.copy()), STEREO, 0),
        (torch.from_numpy(MONO.copy()).requires_grad_(), MONO[:, None], 0),
        (torch.from_numpy(MONO.copy()).bfloat16(), MONO[:, None], 1e-2),
    ],
)
def test_samples_of_any_kind_are_sent_as_they_are(audio: Any, expected: Any, tolerance: float) -> None:
    samples, rate = sent(audio)
    np.testing.assert_allclose(samples, expected, rtol=0, atol=tolerance)
    assert rate == 16_000


@pytest.mark.parametrize("pair", [(MONO, 8_000), (8_000, MONO), (torch.from_numpy(MONO), np.int64(8_000))])
def test_pair_has_its_own_rate(pair: Any) -> None:
    samples, rate = sent(pair, None)
    np.testing.assert_array_equal(samples[:, 0], MONO)
    assert rate == 8_000
    with pytest.raises(ValueError, match="rate: 16000 is given, and 8000 with the samples"):
        sent(pair, 16_000)


@pytest.mark.parametrize(
    "audio",
    [
        (MONO, 8_000.0),
        (np.float32(8_000), MONO),
        {"array": MONO, "sampling_rate": 8_000, "path": None},
        {"waveform": torch.from_numpy(MONO)[None], "sample_rate": 8_000},
        {"raw": MONO.tolist(), "sampling_rate": np.int32(8_000)},
    ],
)
def test_audio_with_its_rate_is_taken(audio: Any) -> None:
    samples, rate = sent(audio, None)
    np.testing.assert_array_equal(samples[:, 0], MONO)
    assert rate == 8_000


def test_open_sound_file_has_its_own_rate(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", MONO, 8_000, subtype="FLOAT")
    with soundfile.SoundFile(tmp_path / "x.wav") as file:
        samples, rate = sent(file, None)
    np.testing.assert_array_equal(samples[:, 0], MONO)
    assert rate == 8_000


@pytest.mark.parametrize("rate", [16_000.5, "16k", True, float("nan"), [16_000]])
def test_rate_that_is_no_whole_number_is_refused(rate: Any) -> None:
    with pytest.raises(ValueError, match="is no whole number of Hz"):
        request(MONO, rate)


@pytest.mark.parametrize(
    ("encoding", "data", "tolerance"),
    [
        ("uint8", np.rint(MONO * 2**7 + 2**7).astype(np.uint8).tobytes(), 2**-8),
        ("int24", b"".join(int(each * 2**23).to_bytes(3, "little", signed=True) for each in MONO), 2**-22),
        ("int32", (MONO.astype(np.float64) * 2**31).astype("<i4").tobytes(), 1e-7),
        ("float64", MONO.astype("<f8").tobytes(), 0),
    ],
)
def test_packed_samples_are_sent_as_floats(encoding: Any, data: bytes, tolerance: float) -> None:
    samples, rate = sent(RawSamples(data, encoding, 16_000), None)
    np.testing.assert_allclose(samples[:, 0], MONO, rtol=0, atol=tolerance)
    assert rate == 16_000


def test_packed_samples_are_whole_and_of_a_known_encoding() -> None:
    with pytest.raises(ValueError, match="data: 4 bytes are no whole number of int24 samples"):
        request(RawSamples(b"1234", "int24", 16_000), None)
    with pytest.raises(ValueError, match=r"encoding: 'int12' is not one of int16, .*, int24, int32, float64"):
        request(RawSamples(b"1234", "int12", 16_000), None)  # type: ignore[arg-type]


def test_path_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.wav").write_bytes(b"content")
    assert request("~/x.wav", None).audio.encoded == b"content"


def test_files_are_taken_by_path_content_or_open_file(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        forms: list[Any] = [path, str(path), b"content", bytearray(b"content"), memoryview(b"content"), file]
        for form in [*forms, io.BytesIO(b"content")]:
            assert request(form, None).audio.encoded == b"content"


@pytest.mark.parametrize(
    ("audio", "sentence"),
    [
        ([1, 2, 3], "whole numbers in a list have no full scale"),
        ([[0.1], [0.1, 0.2]], "as many in each channel"),
        (["a.wav", "b.wav"], "several, see identify_batch"),
        ([Path("a.wav")], "several, see identify_batch"),
        ("https://example.com/a.wav", "is an address; download the file"),
        (np.zeros((20, 30)), r"samples \[20, 30\]: one dimension must be the channels, 8 at most"),
        (np.zeros((2, 2, 2)), r"not \[2, 2, 2\]; take one of a batch"),
        (np.zeros(9, np.int64), "int16, int32 or uint8, not int64"),
        (np.zeros(9, bool), "not bool"),
        (np.zeros(9, complex), "not complex128"),
        (3.5, "audio: float is none of a path"),
        (None, "audio: NoneType is none of a path"),
        ({"array": MONO}, "audio: dict is none of a path"),
        (io.StringIO("text"), "binary mode"),
    ],
)
def test_what_is_no_audio_is_refused_by_what_it_is(audio: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        request(audio, 16_000 if as_array_like(audio) else None)


def as_array_like(audio: Any) -> bool:
    return isinstance(audio, list | np.ndarray)


def test_stages_are_chosen_by_name() -> None:
    for explain in ("s2", ["s2"], ("s2",), Explain(stages=("s2",)), Explain(stages="s2")):
        assert request(MONO, explain=explain).explain.stages == [pb.STAGE_S2]
    for yes in (True, np.True_, "fused"):
        assert request(MONO, explain=yes).explain.stages == [pb.STAGE_FUSED]
    for no in (False, np.False_, None):
        assert not request(MONO, explain=no).HasField("explain")
    for wrong in (1, 0, {"s2"}, {"stages": ["s2"]}):
        with pytest.raises(ValueError, match=r"explain: .* is none of True, a stage's name"):
            request(MONO, explain=wrong)
    with pytest.raises(ValueError, match="stage: 's9' is not one of"):
        request(MONO, explain="s9")


def test_objects_without_samples_are_no_array() -> None:
    assert as_array("voice.wav") is None
    assert as_array(b"RIFF") is None
