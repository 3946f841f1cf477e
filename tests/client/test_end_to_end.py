"""The command and the Python client against a real server process, mostly with networks that a test can compute."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

from speakerlens import (
    AsyncSpeakerClient,
    Explain,
    Identification,
    InvalidRequestError,
    NotFoundError,
    SpeakerClient,
)
from tests.serving import toy
from tests.serving.harness import ServerProcess

VARIANTS = ("clean", "da", "act-da")


@pytest.fixture(scope="module")
def toy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    bundles = tmp_path_factory.mktemp("bundles")
    for seed, variant in enumerate(VARIANTS):
        toy.write_bundle(bundles, variant, 1, seed)
    with ServerProcess(bundles) as server:
        yield server


@pytest.fixture(scope="module")
def address(toy_server: ServerProcess) -> str:
    return str(toy_server.ready["grpc"])


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.asarray(0.2 * rng.normal(size=32000).clip(-3, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, samples: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("audio") / "noise.flac"
    soundfile.write(path, samples, 16000)
    return path


def speakerlens(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "speakerlens.cli.main", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_every_way_in_gives_the_same_answer(address: str, recording: Path) -> None:
    decoded, rate = soundfile.read(recording, dtype="float32")
    with SpeakerClient(address) as client:
        from_file = client.identify(recording)
        others = [
            client.identify(recording.read_bytes()),
            client.identify(decoded, rate=rate),
            client.identify(np.stack([decoded, decoded], axis=1), rate=rate),
            client.identify((decoded * 32768).astype(np.int16), rate=rate),
        ]

    async def ask() -> None:
        async with AsyncSpeakerClient(address) as client:
            others.append(await client.identify(recording))

    asyncio.run(ask())
    assert sorted(answer.variant for answer in from_file.answers) == sorted(VARIANTS)
    assert (from_file.audio.seconds, from_file.audio.sample_rate) == (2.0, 16000)
    for other in others:
        assert [answer.best.speaker for answer in other.answers] == [a.best.speaker for a in from_file.answers]
        np.testing.assert_allclose(
            [answer.best.probability for answer in other.answers],
            [answer.best.probability for answer in from_file.answers],
            rtol=1e-5,
        )


def test_scores_and_native_maps_are_the_networks(address: str, recording: Path) -> None:
    decoded, _ = soundfile.read(recording, dtype="float32")
    wanted = toy.expected(toy.weights(VARIANTS.index("da")), decoded)
    with SpeakerClient(address) as client:
        asked = Explain(stages=("s1", "s3"), resolution="native")
        answer = client.identify(recording, variants="da", explain=asked, with_embedding=True).answers[0]
    assert answer.explanation is not None
    assert answer.best.speaker == toy.speakers()[int(wanted["logits"].argmax())]
    assert answer.best.logit == pytest.approx(wanted["logits"].max(), rel=1e-3)
    assert list(answer.explanation.maps) == ["s1", "s3"]
    for stage, plane in answer.explanation.maps.items():
        np.testing.assert_allclose(plane.values, wanted[f"saliency_{stage}"], rtol=1e-3, atol=1e-4)
        assert (len(plane.frequencies_hz), len(plane.times_s)) == plane.values.shape
    assert answer.embedding is not None
    np.testing.assert_allclose(answer.embedding, wanted["embedding"], rtol=1e-3, atol=1e-4)


def test_bytes_are_within_half_a_step_of_floats(address: str, recording: Path) -> None:
    def planes(encoding: str) -> tuple[np.ndarray, np.ndarray]:
        result = client.identify(recording, variants="clean", explain=Explain(encoding=encoding))  # type: ignore[arg-type]
        explanation = result["clean"].explanation
        assert explanation is not None
        assert explanation.log_mel is not None
        return explanation.maps["fused"].values, explanation.log_mel.values

    with SpeakerClient(address) as client:
        for exact, coarse in zip(planes("float32"), planes("uint8"), strict=True):
            assert 0 < np.abs(exact - coarse).max() <= np.ptp(exact) / 255 * 0.51


def test_the_command_identifies_explains_and_draws(address: str, recording: Path, tmp_path: Path) -> None:
    done = speakerlens(
        "identify", recording, "--server", address, "--variants", "all", "--explain", "--json",
        "--plot", tmp_path / "out.png", "--save", tmp_path / "maps.npz",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert sorted(answer["variant"] for answer in document["answers"]) == sorted(VARIANTS)
    decoded, _ = soundfile.read(recording, dtype="float32")
    features = toy.expected(toy.weights(VARIANTS.index("da")), decoded)["features"]
    with np.load(document["arrays"]) as arrays:
        np.testing.assert_allclose(arrays["da@1/log_mel"], features, rtol=1e-3, atol=1e-4)
        assert arrays["da@1/fused"].shape == features.shape
    # Five panels: each is a band of the picture as wide as the frame around it, and none is empty.
    picture = imread(document["plot"])[..., :3]
    frame = (picture[:, 200:1200] < 0.2).all(axis=2).mean(axis=1) > 0.95
    assert np.count_nonzero(np.diff(frame.astype(int)) == 1) >= 5
    assert len(np.unique((picture * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 500


def test_standard_input_and_the_table(address: str, recording: Path) -> None:
    done = speakerlens("identify", "-", "--server", address, "--variants", "act-da@1", stdin=recording.read_bytes())
    assert (done.returncode, done.stderr) == (0, "")
    assert "standard input  (2.00 s, 16000 Hz, 1 channel)" in done.stdout
    assert "act-da@1" in done.stdout


def test_models_and_health(address: str) -> None:
    document = json.loads(speakerlens("models", "--server", address, "--json").stdout)
    assert [model["speakers"] for model in document["models"]] == [toy.speakers()] * 3
    assert document["provider"] == "CPUExecutionProvider"
    done = speakerlens("health", "--server", address)
    assert (done.returncode, done.stdout) == (0, "serving\n")


def test_refusals_are_one_line_and_leave_the_other_files_alone(address: str, recording: Path, tmp_path: Path) -> None:
    text = tmp_path / "letter.wav"
    text.write_text("Dear server, this is not audio.")
    done = speakerlens("identify", text, recording, "--server", address, "--json")
    assert done.returncode == 3
    assert done.stderr.startswith(f"speakerlens: {text}: ")
    assert done.stderr.count("\n") == 1
    refused, answered = map(json.loads, done.stdout.splitlines())
    assert refused["error"]["code"] == "INVALID_ARGUMENT"
    assert len(answered["answers"]) == 3


@pytest.mark.parametrize(
    ("options", "there_is"),
    [(["--variants", "no-such"], "act-da"), (["--variants", "da@9"], "1"), (["--target", "nobody"], "speaker-00")],
)
def test_what_the_server_does_not_have(address: str, recording: Path, options: list[str], there_is: str) -> None:
    done = speakerlens("identify", recording, *options, "--server", address)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert options[1].split("@")[0] in done.stderr
    assert there_is in done.stderr


def test_python_callers_get_the_typed_errors(address: str, recording: Path) -> None:
    with SpeakerClient(address) as client:
        with pytest.raises(NotFoundError, match="no-such"):
            client.identify(recording, variants="no-such")
        with pytest.raises(InvalidRequestError, match=r"0\.5"):
            client.identify(soundfile.read(recording, frames=160)[0], rate=16000)
        assert client.identify(recording).answers


def test_a_batch_answers_as_single_calls_do_and_each_for_itself(address: str, recording: Path) -> None:
    with SpeakerClient(address) as client:
        alone = client.identify(recording, variants="da,clean")
        results = client.identify_batch([recording, b"no audio", recording], variants="da,clean")
        with pytest.raises(InvalidRequestError, match="requests: 0; send 1 to 256"):
            client.identify_batch([])
    assert isinstance(results[1], InvalidRequestError)
    for each in (results[0], results[2]):
        assert isinstance(each, Identification)
        assert [answer.name for answer in each.answers] == ["da@1", "clean@1"]
        for one, other in zip(each.answers, alone.answers, strict=True):
            assert one.best.speaker == other.best.speaker
            assert one.best.probability == pytest.approx(other.best.probability, rel=1e-4)


def test_a_server_that_has_gone(recording: Path, tmp_path: Path) -> None:
    toy.write_bundle(tmp_path, "da", 1, 0)
    with ServerProcess(tmp_path) as server:
        address = str(server.ready["grpc"])
        assert speakerlens("health", "--server", address).returncode == 0
        assert server.stop() == 0
    done = speakerlens("identify", recording, "--server", address)
    assert (done.returncode, done.stderr) == (5, f"speakerlens: no server answers at {address}: Connection refused\n")


def test_trained_networks_are_asked_by_all_means_at_once(server: ServerProcess, bundles: Path, tmp_path: Path) -> None:
    """The evaluation utterances that travel in a bundle are named NN-<speaker>.flac."""
    utterances = sorted(next(bundles.glob("*/*/utterances")).glob("*.flac"))[:4]
    done = speakerlens(
        "identify", *utterances, "--server", server.ready["grpc"], "--variants", "all", "--explain", "--json",
        "--plot", tmp_path / "out.png",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    right = 0
    for utterance, document in zip(utterances, documents, strict=True):
        assert sorted(answer["variant"] for answer in document["answers"]) == sorted(
            path.name for path in bundles.iterdir()
        )
        assert imread(document["plot"]).shape[1] == 1350
        for answer in document["answers"]:
            summary = answer["explanation"]["maps"]["fused"]
            assert summary["rows"] == answer["explanation"]["log_mel"]["rows"] == 80
            assert 0 < summary["peak"]["seconds"] < document["audio"]["seconds"]
            right += answer["speakers"][0]["speaker"] == utterance.stem.partition("-")[2]
    assert right >= len(documents)  # of at least two answers each: far above chance among eight speakers
