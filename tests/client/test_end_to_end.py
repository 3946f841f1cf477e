"""The command and the client against a real server process, mostly with networks that a test can compute."""

import asyncio
import json
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

from .conftest import TOY_VARIANTS, Command


@pytest.fixture(scope="module")
def address(toy_address: str) -> str:
    return toy_address


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.asarray(0.2 * rng.normal(size=32000).clip(-3, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, samples: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("audio") / "noise.flac"
    soundfile.write(path, samples, 16000)
    return path


def test_every_kind_of_input_gives_the_same_answer(address: str, recording: Path) -> None:
    decoded, rate = soundfile.read(recording, dtype="float32")
    with SpeakerClient(address) as client:
        from_file = client.identify(recording)
        others = [
            client.identify(recording.read_bytes()),
            client.identify(decoded, rate=rate),
            client.identify(np.stack([decoded, decoded], axis=1), rate=rate),
            client.identify((decoded * 32768).astype(np.int16), rate=rate),
        ]

    async def run() -> None:
        async with AsyncSpeakerClient(address) as client:
            others.append(await client.identify(recording))

    asyncio.run(run())
    assert sorted(answer.variant for answer in from_file.answers) == sorted(TOY_VARIANTS)
    assert (from_file.audio.seconds, from_file.audio.sample_rate) == (2.0, 16000)
    for other in others:
        assert [answer.best.speaker for answer in other.answers] == [a.best.speaker for a in from_file.answers]
        np.testing.assert_allclose(
            [answer.best.probability for answer in other.answers],
            [answer.best.probability for answer in from_file.answers],
            rtol=1e-5,
        )


def test_scores_and_native_maps_match_the_network(address: str, recording: Path) -> None:
    decoded, _ = soundfile.read(recording, dtype="float32")
    wanted = toy.expected(toy.weights(TOY_VARIANTS.index("da")), decoded)
    with SpeakerClient(address) as client:
        explain = Explain(stages=("s1", "s3"), resolution="native")
        answer = client.identify(recording, variants="da", explain=explain, with_embedding=True).answers[0]
    assert answer.explanation is not None
    assert answer.best.speaker == toy.speakers()[int(wanted["logits"].argmax())]
    assert answer.best.logit == pytest.approx(wanted["logits"].max(), rel=1e-3)
    assert list(answer.explanation.maps) == ["s1", "s3"]
    for stage, plane in answer.explanation.maps.items():
        np.testing.assert_allclose(plane.values, wanted[f"saliency_{stage}"], rtol=1e-3, atol=1e-4)
        assert (len(plane.frequencies_hz), len(plane.times_s)) == plane.values.shape
    assert answer.embedding is not None
    np.testing.assert_allclose(answer.embedding, wanted["embedding"], rtol=1e-3, atol=1e-4)


def test_uint8_maps_are_within_half_a_step(address: str, recording: Path) -> None:
    def planes(encoding: str) -> tuple[np.ndarray, np.ndarray]:
        result = client.identify(recording, variants="clean", explain=Explain(encoding=encoding))  # type: ignore[arg-type]
        explanation = result["clean"].explanation
        assert explanation is not None
        assert explanation.log_mel is not None
        return explanation.maps["fused"].values, explanation.log_mel.values

    with SpeakerClient(address) as client:
        for exact, coarse in zip(planes("float32"), planes("uint8"), strict=True):
            assert 0 < np.abs(exact - coarse).max() <= np.ptp(exact) / 255 * 0.51


def test_identify_explains_and_draws(command: Command, address: str, recording: Path, tmp_path: Path) -> None:
    done = command(
        "identify", recording, "--server", address, "--variants", "all", "--explain", "--json",
        "--plot", tmp_path / "out.png", "--save", tmp_path / "maps.npz",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert sorted(answer["variant"] for answer in document["answers"]) == sorted(TOY_VARIANTS)
    decoded, _ = soundfile.read(recording, dtype="float32")
    features = toy.expected(toy.weights(TOY_VARIANTS.index("da")), decoded)["features"]
    with np.load(document["arrays"]) as arrays:
        np.testing.assert_allclose(arrays["da@1/log_mel"], features, rtol=1e-3, atol=1e-4)
        assert arrays["da@1/fused"].shape == features.shape
    # Five panels, each a framed band across the picture, and none is empty.
    picture = imread(document["plot"])[..., :3]
    frame = (picture[:, 200:1200] < 0.2).all(axis=2).mean(axis=1) > 0.95
    assert np.count_nonzero(np.diff(frame.astype(int)) == 1) >= 5
    assert len(np.unique((picture * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 500


def test_identify_reads_standard_input(command: Command, address: str, recording: Path) -> None:
    done = command("identify", "-", "--server", address, "--variants", "act-da@1", stdin=recording.read_bytes())
    assert (done.returncode, done.stderr) == (0, "")
    assert "standard input  (2.00 s, 16000 Hz, 1 channel)" in done.stdout
    assert "act-da@1" in done.stdout


def test_models_and_health_of_a_real_server(command: Command, address: str) -> None:
    document = json.loads(command("models", "--server", address, "--json").stdout)
    assert [model["speakers"] for model in document["models"]] == [toy.speakers()] * 3
    assert document["provider"] == "CPUExecutionProvider"
    done = command("health", "--server", address)
    assert (done.returncode, done.stdout) == (0, "serving\n")


def test_refusal_of_one_file_is_one_line(command: Command, address: str, recording: Path, tmp_path: Path) -> None:
    text = tmp_path / "letter.wav"
    text.write_text("Dear server, this is not audio.")
    done = command("identify", text, recording, "--server", address, "--json")
    assert done.returncode == 3
    assert done.stderr.startswith(f"speakerlens: {text}: ")
    assert done.stderr.count("\n") == 1
    refused, answered = map(json.loads, done.stdout.splitlines())
    assert refused["error"]["code"] == "INVALID_ARGUMENT"
    assert len(answered["answers"]) == 3


@pytest.mark.parametrize(
    ("options", "known"),
    [(["--variants", "no-such"], "act-da"), (["--variants", "da@9"], "1"), (["--target", "nobody"], "speaker-00")],
)
def test_unknown_names_exit_with_4(
    command: Command, address: str, recording: Path, options: list[str], known: str
) -> None:
    done = command("identify", recording, *options, "--server", address)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert options[1].split("@")[0] in done.stderr
    assert known in done.stderr


def test_client_raises_typed_errors(address: str, recording: Path) -> None:
    with SpeakerClient(address) as client:
        with pytest.raises(NotFoundError, match="no-such"):
            client.identify(recording, variants="no-such")
        with pytest.raises(InvalidRequestError, match=r"0\.5"):
            client.identify(soundfile.read(recording, frames=160)[0], rate=16000)
        assert client.identify(recording).answers


def test_batch_answers_as_single_calls_do(address: str, recording: Path) -> None:
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


def test_stopped_server_exits_with_5(command: Command, recording: Path, tmp_path: Path) -> None:
    toy.write_bundle(tmp_path, "da", 1, 0)
    with ServerProcess(tmp_path) as server:
        address = str(server.ready["grpc"])
        assert command("health", "--server", address).returncode == 0
        assert server.stop() == 0
    done = command("identify", recording, "--server", address)
    assert (done.returncode, done.stderr) == (5, f"speakerlens: no server answers at {address}: Connection refused\n")


def test_trained_networks_identify_their_speakers(
    command: Command, server: ServerProcess, bundles: Path, tmp_path: Path
) -> None:
    """The evaluation utterances of a bundle are named NN-<speaker>.flac."""
    utterances = sorted(next(bundles.glob("*/*/utterances")).glob("*.flac"))[:4]
    done = command(
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
    assert right >= len(documents)  # at least two answers each: far above chance for eight speakers
