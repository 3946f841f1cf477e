"""The gate of Enroll on a real server: what is refused, with what would be right, and what is stored."""

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, talk, voice

Samples = NDArray[np.float32]
# The toy network tells nothing apart: one voice is one waveform.
VOICE, OTHER = talk(6.0, seed=2), talk(6.0, seed=7)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("enroll")
    # Six seconds keep its device busy for a twentieth of a second.
    toy.write_bundle(folder / "bundles", "da", 1, seed=2, slow_seconds=5.95)
    flags = (f"--speakers={folder / 'speakers.db'}", "--enroll-speech-seconds=1", "--keep-audio")
    with ServerProcess(folder / "bundles", *flags) as process:
        yield process


def enroll(server: ServerProcess, speaker: str, *utterances: Samples, add: bool = False) -> pb.EnrollResponse:
    mode = pb.ENROLL_MODE_ADD if add else pb.ENROLL_MODE_UNSPECIFIED
    request = pb.EnrollRequest(speaker=speaker, utterances=[raw(each) for each in utterances], mode=mode)
    return server.stub.Enroll(request, timeout=CALL_SECONDS)


def refusal(
    server: ServerProcess,
    *utterances: Samples,
    add: bool = False,
    speaker: str = "nobody",
    reason: str = "enrolment",
) -> str:
    counter = f'speakerlens_rejections_total{{reason="{reason}"}}'
    before = server.metrics()[counter]
    with pytest.raises(grpc.RpcError) as caught:
        enroll(server, speaker, *utterances, add=add)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert server.metrics()[counter] == before + 1
    names = [each.speaker for each in server.stub.ListSpeakers(pb.ListSpeakersRequest(), timeout=CALL_SECONDS).speakers]
    assert "nobody" not in names
    return str(caught.value.details())


def telephone(samples: Samples) -> Samples:
    spectrum = np.fft.rfft(samples)
    spectrum[int(len(spectrum) * 3400 / 8000) :] = 0
    filtered: Samples = np.fft.irfft(spectrum, len(samples)).astype(np.float32)
    return filtered


def noisy(samples: Samples) -> Samples:
    noise = np.random.default_rng(0).normal(size=len(samples)).astype(np.float32)
    mixed: Samples = (samples + 1.5 * np.sqrt(np.mean(samples**2)) * noise).astype(np.float32)
    return mixed


BAD = {
    "silence but for a little noise": (
        np.random.default_rng(1).normal(0, 1e-3, 64_000).astype(np.float32),
        "holds no speech; at least 1 s each is needed",
    ),
    "tones and noise": (voice(4.0), "holds no speech; at least 1 s each is needed"),
    "short": (talk(1.0), "s of speech; at least 1 s each is needed"),
    "telephone": (telephone(VOICE), "as of a telephone; at least 5000 Hz is needed"),
    "noisy": (noisy(VOICE), "dB; at least 5 dB is needed"),
    "clipped": (np.clip(20 * VOICE, -1, 1), "% of the samples are clipped; at most 3% may be"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_utterance_is_named_with_what_is_right(server: ServerProcess, name: str) -> None:
    samples, sentence = BAD[name]
    text = refusal(server, VOICE, VOICE, samples)
    assert text.startswith("utterances[2]: ")
    assert sentence in text
    assert "utterances[0]" not in text


def test_all_bad_utterances_are_named_at_once(server: ServerProcess) -> None:
    text = refusal(server, talk(1.0), VOICE, voice(3.0), talk(0.2), reason="too_short")
    for index in (0, 2, 3):
        assert f"utterances[{index}]: " in text
    assert "utterances[1]" not in text


def test_too_little_speech_in_all_is_refused(server: ServerProcess) -> None:
    text = refusal(server, VOICE)
    assert text.startswith("utterances: 3.")
    assert text.endswith("s of speech in all; at least 5 s are needed")


def test_other_speaker_among_utterances_is_named(server: ServerProcess) -> None:
    """The outlier is named with its cosine, which for this toy network is that of the waveforms' sums."""
    text = refusal(server, VOICE, VOICE, OTHER, VOICE)
    assert text.startswith("utterances[2]: another speaker than the others: mean cosine ")
    assert "utterances[0]" not in text


def test_enrolment_says_what_was_stored(server: ServerProcess) -> None:
    answer = enroll(server, "anna", VOICE, VOICE)
    assert [each.stored for each in answer.utterances] == [True, True]
    assert all(each.agreement == pytest.approx(1.0, abs=1e-5) for each in answer.utterances)
    assert len({each.recording for each in answer.utterances} - {""}) == 2
    evidence = answer.utterances[0].audio.evidence
    assert 3 < evidence.speech_s < 6
    assert evidence.bandwidth_hz == 8000
    [model] = answer.speaker.models
    assert (model.exemplars, model.utterances, model.usable, model.must_enroll_again) == (2, 2, True, False)


def test_added_utterances_join_those_stored(server: ServerProcess) -> None:
    """One alone has too little speech; with those that are stored there is enough."""
    enroll(server, "bea", VOICE, VOICE)
    [model] = enroll(server, "bea", VOICE, add=True).speaker.models
    assert model.exemplars == 3
    text = refusal(server, OTHER, add=True, speaker="bea")
    assert text.startswith("utterances[0]: another speaker")
    [model] = enroll(server, "bea", VOICE, VOICE).speaker.models
    assert model.exemplars == 2


def test_whole_enrolment_is_admitted_or_refused_at_once(server: ServerProcess) -> None:
    """A deadline that the first utterance would keep and all of them would not is refused before any is computed."""
    enroll(server, "carl", VOICE, VOICE)  # the cost of an utterance is known now
    before = server.metrics()['speakerlens_batch_size_sum{kind="predict",variant="da"}']
    request = pb.EnrollRequest(speaker="dora", utterances=[raw(VOICE)] * 100)
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.Enroll(request, timeout=0.3)
    assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert server.metrics()['speakerlens_batch_size_sum{kind="predict",variant="da"}'] - before < 100


def test_unknown_mode_is_refused(server: ServerProcess) -> None:
    request = pb.EnrollRequest(speaker="x", utterances=[raw(VOICE)], mode=7)  # type: ignore[arg-type]
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.Enroll(request, timeout=CALL_SECONDS)
    assert caught.value.details() == "mode: 7; give ENROLL_MODE_REPLACE or ENROLL_MODE_ADD"
