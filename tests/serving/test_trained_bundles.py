"""Bundles as the export writes them: the served answers are those of the graphs, alone, batched and drawn."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import soundfile as sf
import torch
from numpy.typing import NDArray

from speakerlens.export.boundary import BoundaryReferences
from speakerlens.export.parity import nearest_errors
from speakerlens.export.runtimes import Case, eager
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.models.reader import read_bundle
from speakerlens.training.checkpoint import load_run
from speakerlens.training.model.network import SpeakerNetwork
from tests.serving.harness import CALL_SECONDS, ServerProcess, plane, raw, talk, voice

STAGES = (pb.STAGE_S1, pb.STAGE_S2, pb.STAGE_S3, pb.STAGE_S4)
THRESHOLD_OF_THREE = 0.75
MAPS = ("saliency_s1", "saliency_s2", "saliency_s3", "saliency_s4")


@pytest.fixture(scope="module")
def folder(bundles: Path) -> Path:
    return sorted(bundles.glob("*/*"))[0]


@pytest.fixture(scope="module")
def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def utterances(folder: Path, manifest: dict[str, Any]) -> list[NDArray[np.float32]]:
    """Six of the bundle's own, of different lengths."""
    audios = [sf.read(folder / each["file"], dtype="float32")[0] for each in manifest["utterances"][:6]]
    return [audio[: len(audio) - 1777 * index] for index, audio in enumerate(audios)]


@pytest.fixture(scope="module")
def reference(folder: Path, utterances: list[NDArray[np.float32]]) -> list[dict[str, NDArray[np.float32]]]:
    """What the graph says of each utterance alone."""
    session = ort.InferenceSession(folder / "explain.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    answers = []
    for audio in utterances:
        inputs = {"audio": audio[None], "lengths": np.array([len(audio)]), "target": np.array([-1])}
        answers.append({name: value[0] for name, value in zip(names, session.run(names, inputs), strict=True)})
    return answers


@pytest.fixture(scope="module")
def network(runs: dict[str, Path], manifest: dict[str, Any]) -> SpeakerNetwork:
    """What was exported."""
    return load_run(runs[manifest["variant"]]).network


@pytest.fixture(scope="module")
def boundary(network: SpeakerNetwork) -> BoundaryReferences:
    """Valid maps on either side of ReLU boundaries, where rounding differs with the shape of a batch."""
    return BoundaryReferences(network)


@pytest.fixture(scope="module")
def keeping(
    folder: Path, manifest: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server that keeps speakers, with a threshold for references of three by hand."""
    root = tmp_path_factory.mktemp("keeping")
    copy = shutil.copytree(folder, root / "bundles" / folder.parent.name / folder.name)
    verification = manifest["verification"]
    alone = verification["thresholds"][0]
    thresholds = [alone, {**alone, "utterances": 3, "threshold": THRESHOLD_OF_THREE}]
    changed = {**manifest, "verification": {**verification, "thresholds": thresholds}}
    (copy / "bundle.json").write_text(json.dumps(changed), encoding="utf-8")
    with ServerProcess(root / "bundles", f"--speakers={root / 'speakers.db'}") as process:
        yield process


def request(manifest: dict[str, Any], audio: NDArray[np.float32], **options: object) -> pb.IdentifyRequest:
    return pb.IdentifyRequest(
        audio=raw(audio),
        models=[pb.ModelSelector(variant=manifest["variant"])],
        explain=pb.ExplainOptions(**options),  # type: ignore[arg-type]
        with_embedding=True,
    )


def distance(values: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(values - reference) / np.linalg.norm(reference))


def displayed(raw_map: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    values = torch.from_numpy(raw_map / raw_map.max())[None, None]
    shown = torch.nn.functional.interpolate(values, (rows, columns), mode="bilinear", align_corners=False)
    return np.asarray(shown[0, 0])


def test_together_as_alone(
    server: ServerProcess,
    manifest: dict[str, Any],
    utterances: list[NDArray[np.float32]],
    reference: list[dict[str, NDArray[np.float32]]],
    boundary: BoundaryReferences,
    folder: Path,
) -> None:
    """Sent at once behind one that fills a window, so that they are batched and padded; the answers must not know."""
    name = f'speakerlens_batch_size_{{}}{{{{kind="explain",variant="{manifest["variant"]}"}}}}'
    bundle = read_bundle(folder)
    before = server.metrics()
    long = server.stub.Identify.future(request(manifest, talk(9.5)), timeout=CALL_SECONDS)
    server.wait_for_metric("speakerlens_requests_in_flight", 1)
    native = {"stages": STAGES, "resolution": pb.RESOLUTION_NATIVE}
    calls = [
        server.stub.Identify.future(request(manifest, audio, **native), timeout=CALL_SECONDS) for audio in utterances
    ]
    for call, audio, expected in zip(calls, utterances, reference, strict=True):
        answer = call.result().answers[0]
        best = int(expected["logits"].argmax())
        assert answer.speakers[0].speaker == manifest["speakers"][best] == answer.explanation.target_speaker
        assert answer.speakers[0].logit == pytest.approx(expected["logits"][best], rel=1e-4)
        posterior = np.exp((expected["logits"] - expected["logits"].max()) / manifest["calibration"]["temperature"])
        assert answer.speakers[0].probability == pytest.approx(posterior[best] / posterior.sum(), rel=1e-3)
        scores = bundle.open_set_scores(expected["logits"], expected["embedding"])
        assert answer.known == (scores[best] >= manifest["calibration"]["threshold"])
        assert distance(np.array(answer.embedding), expected["embedding"]) < 1e-4
        maps = dict(zip(MAPS, map(plane, answer.explanation.saliency), strict=True))
        served = {"features": plane(answer.explanation.log_mel), **maps}
        raw_errors = {name: distance(values, expected[name]) for name, values in served.items()}
        assert raw_errors["features"] < 1e-4
        raw_errors["logits"] = abs(answer.speakers[0].logit / float(expected["logits"][best]) - 1)
        errors = nearest_errors(Case(torch.from_numpy(audio), -1), served, raw_errors, boundary)
        assert max(errors[name] for name in MAPS) < 1e-3, errors
    assert long.result().answers
    after = server.metrics()
    taken, batches = (after[name.format(part)] - before.get(name.format(part), 0) for part in ("sum", "count"))
    assert taken == 7
    assert batches < 7, "nothing was batched: the test shows nothing"


def test_the_fused_map(
    server: ServerProcess,
    manifest: dict[str, Any],
    utterances: list[NDArray[np.float32]],
    reference: list[dict[str, NDArray[np.float32]]],
) -> None:
    for audio, expected in zip(utterances[:2], reference[:2], strict=True):
        [message] = server.identify(request(manifest, audio)).answers[0].explanation.saliency
        shape = expected["features"].shape
        mean = np.mean([displayed(expected[f"saliency_{stage}"], *shape) for stage in manifest["fused_stages"]], axis=0)
        assert distance(plane(message), mean) < 1e-3


def claim(manifest: dict[str, Any], audio: NDArray[np.float32], **fields: object) -> pb.VerifyRequest:
    return pb.VerifyRequest(audio=raw(audio), model=pb.ModelSelector(variant=manifest["variant"]), **fields)  # type: ignore[arg-type]


def direction(server: ServerProcess, manifest: dict[str, Any], audio: NDArray[np.float32]) -> NDArray[np.float64]:
    """What Embed says, at length one."""
    models = [pb.ModelSelector(variant=manifest["variant"])]
    [each] = server.stub.Embed(pb.EmbedRequest(audio=raw(audio), models=models), timeout=CALL_SECONDS).embeddings
    values = np.array(each.values)
    return np.asarray(values / np.linalg.norm(values))


def check_maps(
    message: pb.Explanation,
    audio: NDArray[np.float32],
    against: NDArray[np.float64],
    network: SpeakerNetwork,
    boundary: BoundaryReferences,
) -> None:
    """The maps are those that autograd gives for the cosine."""
    case = Case(torch.from_numpy(audio), -1, torch.from_numpy(against.astype(np.float32)))
    expected = eager(network, case)
    maps = dict(zip(MAPS, map(plane, message.saliency), strict=True))
    served = {"features": plane(message.log_mel), **maps}
    raw_errors = {name: distance(values, expected[name]) for name, values in served.items()}
    assert raw_errors["features"] < 1e-4
    errors = nearest_errors(case, served, raw_errors, boundary)
    assert max(errors[name] for name in MAPS) < 1e-3, errors


def test_two_voices_are_compared_as_embed_and_autograd_say(
    server: ServerProcess,
    manifest: dict[str, Any],
    utterances: list[NDArray[np.float32]],
    network: SpeakerNetwork,
    boundary: BoundaryReferences,
) -> None:
    threshold = manifest["verification"]["thresholds"][0]
    assert threshold["utterances"] == 1
    options = pb.ExplainOptions(stages=STAGES, resolution=pb.RESOLUTION_NATIVE)
    directions = [direction(server, manifest, audio) for audio in utterances]
    decisions = set()
    for one, other in ((0, 1), (1, 2), (3, 4), (3, 3)):  # two of each speaker
        asked = claim(manifest, utterances[one], other=raw(utterances[other]), explain=options)
        answer = server.stub.Verify(asked, timeout=CALL_SECONDS)
        assert answer.score == pytest.approx(directions[one] @ directions[other], abs=1e-5)
        assert answer.threshold == threshold["threshold"]
        assert answer.same == (answer.score >= threshold["threshold"])
        decisions.add(answer.same)
        if one != other:  # one at its maximum has nothing to explain
            check_maps(answer.explanation, utterances[one], directions[other], network, boundary)
            check_maps(answer.other_explanation, utterances[other], directions[one], network, boundary)
    assert decisions == {True, False}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_enrolled_speaker_is_compared_by_mean_and_threshold(
    keeping: ServerProcess,
    manifest: dict[str, Any],
    utterances: list[NDArray[np.float32]],
    network: SpeakerNetwork,
    boundary: BoundaryReferences,
    count: int,
) -> None:
    model, enrolled, audio = pb.ModelSelector(variant=manifest["variant"]), utterances[:count], utterances[5]
    keeping.stub.Enroll(
        pb.EnrollRequest(speaker="anna", utterances=[raw(each) for each in enrolled], models=[model]),
        timeout=CALL_SECONDS,
    )
    mean = np.mean([direction(keeping, manifest, each) for each in enrolled], axis=0)
    threshold = THRESHOLD_OF_THREE if count >= 3 else manifest["verification"]["thresholds"][0]["threshold"]
    options = pb.ExplainOptions(stages=STAGES, resolution=pb.RESOLUTION_NATIVE)
    for each in (audio, enrolled[0]):
        answer = keeping.stub.Verify(
            claim(manifest, each, enrolled_speaker="anna", explain=options), timeout=CALL_SECONDS
        )
        cosine = direction(keeping, manifest, each) @ mean / np.linalg.norm(mean)
        assert answer.score == pytest.approx(cosine, abs=1e-5)
        assert answer.threshold == threshold
        assert answer.same == (answer.score >= threshold)
        if count > 1 or each is audio:
            check_maps(answer.explanation, each, mean, network, boundary)


def test_the_fused_map_of_a_comparison(
    server: ServerProcess, manifest: dict[str, Any], folder: Path, utterances: list[NDArray[np.float32]]
) -> None:
    session = ort.InferenceSession(folder / "verify.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    audio, other = utterances[:2]
    answer = server.stub.Verify(
        claim(manifest, audio, other=raw(other), explain=pb.ExplainOptions()), timeout=CALL_SECONDS
    )
    sides = ((answer.explanation, audio, other), (answer.other_explanation, other, audio))
    for explanation, audio, against in sides:
        reference = direction(server, manifest, against).astype(np.float32)
        inputs = {"audio": audio[None], "lengths": np.array([len(audio)]), "reference": reference[None]}
        expected = {name: value[0] for name, value in zip(names, session.run(names, inputs), strict=True)}
        shape = expected["features"].shape
        mean = np.mean([displayed(expected[f"saliency_{stage}"], *shape) for stage in manifest["fused_stages"]], axis=0)
        [message] = explanation.saliency
        assert distance(plane(message), mean) < 1e-3


def test_odd_but_good_sound_gives_finite_answers(server: ServerProcess, manifest: dict[str, Any]) -> None:
    click = np.zeros(16_000, np.float32)
    click[8000] = 1
    rng = np.random.default_rng(0)
    sounds = [click, voice(0.5), np.clip(voice(1.0) * 50, -1, 1), voice(1.0) + 0.9, voice(1.0) * 1e-4, voice(1.0) * 15]
    sounds.append((rng.integers(-1, 2, 16_000) / 32768).astype(np.float32))
    for sound in sounds:
        answer = server.identify(request(manifest, sound, stages=[*STAGES, pb.STAGE_FUSED])).answers[0]
        values = [plane(message) for message in (*answer.explanation.saliency, answer.explanation.log_mel)]
        assert all(np.isfinite(value).all() for value in values)
        assert np.isfinite([answer.speakers[0].logit, answer.speakers[0].probability, *answer.embedding]).all()


def test_health_answers_while_the_longest_audio_is_explained(server: ServerProcess) -> None:
    """A minute at 48 kHz, every map of every model: decoding, inference and resizing stay off the event loop.

    Serialising the answer does not: the largest one (34 MB: three variants, five stages, float32, 59 s) takes about
    85 ms there.
    """
    message = pb.IdentifyRequest(
        audio=raw(talk(60.0, 48_000), 48_000), explain=pb.ExplainOptions(stages=[*STAGES, pb.STAGE_FUSED])
    )
    calls = [server.stub.Identify.future(message, timeout=CALL_SECONDS) for _ in range(2)]
    waits: list[float] = []
    begun = time.monotonic()
    while not all(call.done() for call in calls):
        started = time.monotonic()
        assert server.status() == "SERVING"
        waits.append(time.monotonic() - started)
        time.sleep(0.01)
    duration = time.monotonic() - begun
    assert all(call.result().answers for call in calls)
    assert len(waits) > 10, "it was over at once: the test shows nothing"
    # An event loop that did the work itself would answer health once or twice in all that time.
    assert max(waits) < 0.25 * duration, waits
    assert np.median(waits) < 0.1, waits
