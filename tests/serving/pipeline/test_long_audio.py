"""Audio of many windows over gRPC: answers match an independent computation, window by window."""

import io
import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.pipeline.timeline import LEAST_PROBABILITY, SWITCH_NATS
from speakerlens.serving.pipeline.vad import holds_speech
from tests.serving import toy, toy_graph
from tests.serving.conftest import SEEDS
from tests.serving.harness import CALL_SECONDS, ServerProcess, plane, raw, talk, voice

LENGTH, HOP, GRID = 48_000, 23_040, 1280
STAGES = [pb.STAGE_S1, pb.STAGE_S2, pb.STAGE_S3, pb.STAGE_S4]


@pytest.fixture(scope="module")
def server(toy_bundles: Path) -> Iterator[ServerProcess]:
    with ServerProcess(toy_bundles, "--window-seconds=3", "--max-explained-seconds=40") as server:
        yield server


def spans(total: int) -> list[tuple[int, int]]:
    """Every hop while a whole window fits, and one more to the end, on the grid, that grows with what is new in it."""
    starts = list(range(0, total - LENGTH + 1, HOP))
    new = total - starts[-1] - LENGTH
    if new:
        share = Fraction(new, HOP)
        wanted = max(LENGTH * share * (9 + share) / 10, Fraction(total - 2 * LENGTH, 5), Fraction(new + GRID))
        starts.append(max(math.floor((total - wanted) / GRID), math.ceil((total - LENGTH) / GRID)) * GRID)
    return [(start, min(start + LENGTH, total)) for start in starts]


def weights_of(places: list[tuple[int, int]]) -> list[float]:
    """What the windows count: by their length, but for less than a step of the grid."""
    return [min(1.0, (stop - start + GRID) / LENGTH) if len(places) > 1 else 1.0 for start, stop in places]


def conversation() -> NDArray[np.float32]:
    """Two voices with a noisy pause between them, 25.3 s; the toy takes them for two speakers."""
    pause = 1e-3 * np.random.default_rng(5).normal(size=8 * 16_000)
    return np.concatenate([talk(9.0, seed=1), pause, 0.8 * talk(8.3, seed=3)]).astype(np.float32)


def windows_of(audio: NDArray[np.float32], variant: str, version: int, target: int | None = None) -> list[Any]:
    weights = toy.weights(SEEDS[variant, version])
    return [toy.expected(weights, audio[start:stop], target) for start, stop in spans(len(audio))]


def votes_of(audio: NDArray[np.float32]) -> list[bool]:
    """Which windows have a vote; those of the conversation's pause have none."""
    votes = [holds_speech(audio[start:stop]) for start, stop in spans(len(audio))]
    assert 2 <= votes.count(False) <= 5
    assert len(votes) == 17
    return votes


def same(one: pb.ModelAnswer, other: pb.ModelAnswer) -> None:
    """The same but for rounding, which depends on what is computed together."""
    assert [score.speaker for score in one.speakers] == [score.speaker for score in other.speakers]
    np.testing.assert_allclose([s.logit for s in one.speakers], [s.logit for s in other.speakers], rtol=1e-4, atol=1e-6)
    parts = [[(s.start_s, s.end_s, s.speaker, s.known) for s in each.timeline] for each in (one, other)]
    assert parts[0] == parts[1]


def ask(server: ServerProcess, audio: NDArray[np.float32], *names: str, **fields: Any) -> pb.IdentifyResponse:
    models = [pb.ModelSelector(variant=name) for name in names]
    return server.identify(pb.IdentifyRequest(audio=raw(audio), models=models, **fields))


def test_whole_is_the_mean_of_windows_with_speech(server: ServerProcess) -> None:
    audio = conversation()
    answer = ask(server, audio, top_k=12, with_embedding=True)
    voting = votes_of(audio)
    assert answer.audio.seconds == pytest.approx(25.3)
    for each in answer.answers:
        windows = windows_of(audio, each.variant, each.version)
        votes = [window for window, votes in zip(windows, voting, strict=True) if votes]
        logits = np.mean([window["logits"] for window in votes], axis=0)
        order = np.argsort(-logits)
        assert [score.speaker for score in each.speakers] == [toy.speakers()[label] for label in order]
        np.testing.assert_allclose([s.logit for s in each.speakers], logits[order], rtol=1e-3, atol=1e-6)
        posterior = np.exp((logits - logits.max()) / toy.TEMPERATURE)
        np.testing.assert_allclose(
            [s.probability for s in each.speakers], (posterior / posterior.sum())[order], rtol=2e-3
        )
        embeddings = np.array([window["embedding"] for window in votes])
        lengths = np.linalg.norm(embeddings, axis=1)
        mean = (embeddings / lengths[:, None]).mean(axis=0) * lengths.mean()
        np.testing.assert_allclose(each.embedding, mean, rtol=1e-3, atol=1e-5)
        assert each.known == (logits.max() / toy.SCALE >= toy.THRESHOLD)


def best_path(logits: list[NDArray[np.float64]]) -> list[int]:
    """The most likely sequence of speakers, of all paths of a table."""
    shifted = np.array(logits) / toy.TEMPERATURE
    costs = -np.maximum(shifted - np.logaddexp.reduce(shifted, axis=1, keepdims=True), np.log(LEAST_PROBABILITY))
    switch = SWITCH_NATS * (1 - np.eye(costs.shape[1]))
    total, before = costs[0], []
    for cost in costs[1:]:
        ways = total[:, None] + switch
        before.append(ways.argmin(axis=0))
        total = ways.min(axis=0) + cost
    path = [int(total.argmin())]
    for step in reversed(before):
        path.append(int(step[path[-1]]))
    return path[::-1]


def test_timeline_has_the_speaker_turns(server: ServerProcess) -> None:
    # The toy's scores are linear in the samples: upside down, a voice is another's, and louder, it is surer.
    audio = 3 * np.concatenate([talk(9.0, seed=1), conversation()[144_000:272_000], -talk(8.3, seed=1)])
    [answer] = ask(server, audio, "da").answers
    windows = windows_of(audio, "da", 1)
    places = spans(len(audio))
    voting = votes_of(audio)
    path = iter(best_path([window["logits"] for window, vote in zip(windows, voting, strict=True) if vote]))
    best = [next(path) if vote else None for vote in voting]
    edges = [0.0, *((a[1] + b[0]) / 2 for a, b in pairwise(places)), float(len(audio))]
    expected: list[tuple[float, float, str]] = []
    for label, (start, stop) in zip(best, pairwise(edges), strict=True):
        if label is None:
            continue
        name = toy.speakers()[label]
        if expected and expected[-1][1:] == (start / 16_000, name):
            expected[-1] = (expected[-1][0], stop / 16_000, name)
        else:
            expected.append((start / 16_000, stop / 16_000, name))
    found = [(segment.start_s, segment.end_s, segment.speaker) for segment in answer.timeline]
    assert [name for _, _, name in found] == [name for _, _, name in expected]
    np.testing.assert_allclose([each[:2] for each in found], [each[:2] for each in expected], rtol=1e-6)
    assert len({name for _, _, name in found}) >= 2, "one speaker throughout: the test shows nothing"
    assert all(0 < segment.probability <= 1 for segment in answer.timeline)


def test_single_window_has_no_timeline(server: ServerProcess) -> None:
    [answer] = ask(server, voice(3.0), "da").answers
    assert not answer.timeline
    expected = toy.expected(toy.weights(SEEDS["da", 1]), voice(3.0))["logits"]
    assert answer.speakers[0].logit == pytest.approx(expected.max(), rel=1e-4)


@pytest.mark.parametrize("target", [None, 7])
def test_maps_are_stitched_for_the_wholes_speaker(server: ServerProcess, target: int | None) -> None:
    audio = conversation()
    name = "" if target is None else toy.speakers()[target]
    options = pb.ExplainOptions(stages=STAGES, resolution=pb.RESOLUTION_NATIVE, target_speaker=name)
    [answer] = ask(server, audio, "clean", explain=options).answers
    places = spans(len(audio))
    plain = windows_of(audio, "clean", 2)
    votes = votes_of(audio)
    logits = np.mean([window["logits"] for window, each in zip(plain, votes, strict=True) if each], axis=0)
    explained = int(logits.argmax()) if target is None else target
    assert answer.explanation.target_speaker == toy.speakers()[explained]
    bests = {int(window["logits"].argmax()) for window, each in zip(plain, votes, strict=True) if each}
    assert len(bests) > 1, "every window has the same best speaker: the test shows nothing"
    windows = windows_of(audio, "clean", 2, explained)
    names = ["features", "saliency_s1", "saliency_s2", "saliency_s3", "saliency_s4"]
    strides = [1, *toy_graph.STRIDES]
    shown = [answer.explanation.log_mel, *answer.explanation.saliency]
    for message, key, stride in zip(shown, names, strides, strict=True):
        values = plane(message)
        total, weight = np.zeros(values.shape), np.zeros(values.shape[1])
        for (start, _), window, each in zip(places, windows, votes, strict=True):
            part = window[key] * (each or key == "features")
            first, count = start // (160 * stride), part.shape[1]
            ramp = np.minimum(np.arange(count), count - 1 - np.arange(count)) + 0.5
            total[:, first : first + count] += part * ramp
            weight[first : first + count] += ramp
        assert (weight > 0).all()
        np.testing.assert_allclose(values, total / weight, atol=2e-5 + 1e-4 * np.abs(total / weight).max())
        frames = 1 + (len(audio) - toy_graph.FRAME) // toy_graph.SHIFT
        assert message.columns == -(-frames // stride)
        assert len(message.times_s) == message.columns
        assert message.times_s[-1] <= len(audio) / 16_000


def hiss(seconds: float) -> NDArray[np.float32]:
    return (0.05 * np.random.default_rng(0).normal(size=round(seconds * 16_000))).astype(np.float32)


@pytest.mark.parametrize("samples", [8_000, LENGTH - 1, LENGTH, LENGTH + 1, 160_000])
def test_audio_without_speech_is_answered_as_a_whole(server: ServerProcess, samples: int) -> None:
    audio = hiss(10)[:samples]
    response = ask(server, audio, "da", top_k=12, with_embedding=True)
    [answer] = response.answers
    assert response.audio.HasField("speech")
    assert not response.audio.speech
    assert not answer.timeline
    places = spans(samples) if samples > LENGTH else [(0, samples)]
    windows = [toy.expected(toy.weights(SEEDS["da", 1]), audio[start:stop]) for start, stop in places]
    logits = np.average([window["logits"] for window in windows], axis=0, weights=weights_of(places))
    np.testing.assert_allclose([s.logit for s in answer.speakers], np.sort(logits)[::-1], rtol=1e-3, atol=1e-6)
    maps = ask(server, audio, "da", explain=pb.ExplainOptions()).answers[0].explanation
    assert plane(maps.saliency[0]).max() > 0
    assert maps.target_speaker == answer.speakers[0].speaker


def test_audio_with_speech_says_so(server: ServerProcess) -> None:
    for audio in (talk(1.0), conversation()):
        assert ask(server, audio, "da").audio.speech


NOISES = ("white", "pink", "hum", "tone", "clicks", "sweep", "babble")


def noise(kind: str, samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A kind of noise, float32 [samples], with a mean power of one."""
    time_s = np.arange(samples) / 16_000
    if kind == "pink":
        spectrum = np.fft.rfft(rng.normal(size=samples))
        values = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1), samples)
    elif kind == "hum":
        values = np.sum([np.sin(2 * np.pi * 50 * order * time_s) / order for order in range(1, 9)], axis=0)
    elif kind == "tone":
        values = np.sin(2 * np.pi * 1000 * time_s)
    elif kind == "clicks":
        values = (np.arange(samples) % 4000 == 0).astype(float)
    elif kind == "sweep":
        values = np.sin(2 * np.pi * (200 + 400 * time_s) * time_s)
    elif kind == "babble":
        values = np.sum([talk(samples / 16_000, seed=seed)[:samples] for seed in range(6)], axis=0)
    else:
        values = rng.normal(size=samples)
    scaled: NDArray[np.float32] = (values / np.sqrt((values**2).mean())).astype(np.float32)
    return scaled


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(NOISES),
    snr_db=st.sampled_from([None, -20.0, -5.0, 0.0, 10.0]),
    samples=st.sampled_from([8_000, 47_999, 48_000, 48_001, 49_280, 71_040, 71_041, 96_000]),
    seed=st.integers(0, 9),
)
def test_no_audio_is_refused_for_its_noise(
    server: ServerProcess, kind: str, snr_db: float | None, samples: int, seed: int
) -> None:
    """Speech in any noise, and noise alone (None), around the border of a window: the networks' answer is given."""
    rng = np.random.default_rng(seed)
    audio = 0.05 * noise(kind, samples, rng)
    if snr_db is not None:
        speech = talk(samples / 16_000, seed=seed)[:samples]
        gain = np.sqrt((speech**2).mean() / (audio**2).mean() / 10 ** (snr_db / 10))
        audio = speech + np.float32(gain) * audio
        audio = audio / max(1.0, float(np.abs(audio).max()))
    response = ask(server, audio.astype(np.float32), "da", top_k=12)
    [answer] = response.answers
    places = spans(samples) if samples > LENGTH else [(0, samples)]
    votes = [holds_speech(audio[start:stop].astype(np.float32)) for start, stop in places]
    assert response.audio.speech == any(votes)
    windows = [toy.expected(toy.weights(SEEDS["da", 1]), audio[start:stop]) for start, stop in places]
    counts = np.array(weights_of(places)) * [vote or not any(votes) for vote in votes]
    expected = np.average([window["logits"] for window in windows], axis=0, weights=counts)
    assert answer.speakers[0].logit == pytest.approx(expected.max(), rel=1e-3, abs=1e-5)
    assert bool(answer.timeline) == (any(votes) and len(places) > 1)


@pytest.mark.parametrize("seconds", [3.0, 3.1, 3.2, 4.0, 6.7, 6.9, 10.3])
def test_short_last_window_in_recording_and_stream(server: ServerProcess, seconds: float) -> None:
    """Logits and turns are those of the rule; a stream's answer for the whole is the recording's, maps included."""
    audio = np.concatenate([talk(5.0, seed=1), talk(6.0, seed=1)])[: round(16_000 * seconds)]
    models = [pb.ModelSelector(variant="da")]
    fields: Any = {"models": models, "top_k": 12, "with_embedding": True, "explain": pb.ExplainOptions(stages=STAGES)}
    [answer] = server.identify(pb.IdentifyRequest(audio=raw(audio), **fields)).answers
    places = spans(len(audio)) if len(audio) > LENGTH else [(0, len(audio))]
    counts = np.array(weights_of(places)) * [holds_speech(audio[start:stop]) for start, stop in places]
    assert counts[0] == 1
    windows = [toy.expected(toy.weights(SEEDS["da", 1]), audio[start:stop]) for start, stop in places]
    logits = np.average([window["logits"] for window in windows], axis=0, weights=counts)
    np.testing.assert_allclose([s.logit for s in answer.speakers], np.sort(logits)[::-1], rtol=1e-3, atol=1e-6)
    assert [turn.end_s for turn in answer.timeline[-1:]] == ([] if len(places) == 1 else [pytest.approx(seconds)])
    start = pb.StreamStart(format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=16_000, **fields)
    messages = [pb.IdentifyStreamRequest(start=start)]
    messages += [pb.IdentifyStreamRequest(samples=audio[first : first + 9_000].tobytes()) for first in
                 range(0, len(audio), 9_000)]  # fmt: skip
    *live, last = server.stub.IdentifyStream(iter(messages), timeout=CALL_SECONDS)
    spoken = [(each.window.start_s, each.window.end_s) for each in live]
    np.testing.assert_allclose(spoken, np.array(places) / 16_000, rtol=1e-6)
    [whole] = last.whole.answers
    same(whole, answer)
    np.testing.assert_allclose(whole.embedding, answer.embedding, rtol=1e-4, atol=1e-6)
    for one, other in zip(whole.explanation.saliency, answer.explanation.saliency, strict=True):
        np.testing.assert_allclose(plane(one), plane(other), atol=1e-4)


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
def test_any_format_and_rate_is_cut_alike(server: ServerProcess, kind: str) -> None:
    """What is decoded block by block is what is decoded at once."""
    file = io.BytesIO()
    sf.write(file, talk(14.0, rate=44_100, seed=2), 44_100, format=kind)
    samples, rate = sf.read(io.BytesIO(file.getvalue()), dtype="float32")
    models = [pb.ModelSelector(variant="clean")]
    answers = [
        server.identify(pb.IdentifyRequest(audio=audio, models=models, top_k=12)).answers[0]
        for audio in (pb.Audio(encoded=file.getvalue()), raw(samples, rate))
    ]
    same(*answers)


def test_windows_are_answered_alike_in_any_batch(server: ServerProcess) -> None:
    audio = conversation()
    alone = ask(server, audio, "clean", "da", top_k=12)
    crowd = [
        server.stub.Identify.future(
            pb.IdentifyRequest(audio=raw(voice(0.5 + 0.1 * index, seed=index))), timeout=CALL_SECONDS
        )
        for index in range(20)
    ]
    together = ask(server, audio, "clean", "da", top_k=12)
    assert all(call.result().answers for call in crowd)
    for one, other in zip(alone.answers, together.answers, strict=True):
        same(one, other)


def test_maps_have_their_own_duration_limit(server: ServerProcess) -> None:
    audio = np.tile(talk(10.0), 5)
    assert ask(server, audio, "da").answers
    with pytest.raises(grpc.RpcError) as caught:
        ask(server, audio, "da", explain=pb.ExplainOptions())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == (
        "audio.raw.samples: longer than 40 s, the most accepted where maps are asked for (50.0 s or more)"
    )


def test_one_failing_variant_fails_by_name(tmp_path: Path) -> None:
    """The toy answers with NaN above its peak, which only one bundle's limit is below; the other answers."""
    toy.write_bundle(tmp_path, "good", 1, seed=0, nan_peak=100.0)
    toy.write_bundle(tmp_path, "weak", 1, seed=1)
    audio = talk(7.0)
    audio[50_000] = toy.NAN_PEAK + 1
    with ServerProcess(tmp_path, "--window-seconds=3") as server:
        good, weak = ask(server, audio).answers
        assert (good.variant, len(good.speakers)) == ("good", 5)
        assert (weak.variant, weak.failure.code) == ("weak", "INTERNAL")
        assert weak.failure.message == "weak/1 failed; the server's log says how"
        assert not weak.speakers
        assert not good.HasField("failure")
        with pytest.raises(grpc.RpcError) as caught:
            ask(server, audio, "weak")
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        page = server.metrics()
        assert page['speakerlens_answers_total{kind="predict",variant="good"}'] == 1
        assert page.get('speakerlens_answers_total{kind="predict",variant="weak"}', 0) == 0


def test_recording_in_progress_waits_for_room(toy_bundles: Path) -> None:
    """More of its windows are in work at once than the queue holds; it is not refused in the middle."""
    with ServerProcess(toy_bundles, "--window-seconds=1", "--queue-size=1") as server:
        [answer] = ask(server, np.tile(talk(10.0), 6), "da").answers
        assert answer.timeline[-1].end_s == 60


@pytest.mark.parametrize("explained", [False, True])
def test_timings_add_up(server: ServerProcess, explained: bool) -> None:
    """Together nearly all of the request's time, and never more than it."""
    name = 'speakerlens_request_duration_seconds_sum{method="Identify",variant="da"}'
    before = server.metrics().get(name, 0)
    options = pb.ExplainOptions(stages=STAGES) if explained else None
    timings = ask(server, np.tile(talk(10.0), 4 if explained else 12), "da", explain=options).timings
    together = timings.decode_s + timings.queue_s + timings.inference_s + timings.encode_s
    took = server.metrics()[name] - before
    assert 0.7 * took < together <= took
    assert min(timings.decode_s, timings.inference_s, timings.encode_s) > 0
