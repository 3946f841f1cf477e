"""`models add`: from a downloaded folder to a served model without a classifier, beside one that has one."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import jsonschema
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray

from speakerlens.cli.main import main
from speakerlens.export.bundle import ExportError, schema
from speakerlens.export.verify import verify_bundle, verify_files
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.models.reader import read_bundle
from speakerlens.serving.rpc.health import MODEL
from speakerlens.training.data.audio import read_audio
from speakerlens.training.data.manifest import Corpus
from tests.serving import toy
from tests.serving.api.requests import inputs, requested
from tests.serving.harness import ServerProcess, plane, raw, talk
from tests.training.pyannote_files import write_pyannote
from tests.training.toy import SPEAKERS, make_corpus
from tests.training.wespeaker_reference import ReferenceResNet, make

NAMED, PLAIN, CALIBRATED = "clean", "wespeaker-voxceleb-resnet10-lm", "my-voices"
Audio = NDArray[np.float32]


@pytest.fixture(scope="module")
def foreign() -> ReferenceResNet:
    return make((1, 1, 1, 1), False, classes=0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("added") / "corpus")


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory, foreign: ReferenceResNet) -> Path:
    return write_pyannote(tmp_path_factory.mktemp("download") / "wespeaker-voxceleb-resnet10-LM", foreign, 10)


@pytest.fixture(scope="module")
def bundles(downloaded: Path, corpus: Corpus) -> Path:
    """A toy bundle with a classifier, and the network with and without recordings to calibrate on."""
    root = corpus.root.parent / "bundles"
    toy.write_bundle(root, NAMED, 1)
    words = ["models", "add", str(downloaded), "--bundles", str(root)]
    assert main(words) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speakerlens.export.parity.SECONDS", (1.0, 1.6))
        assert main([*words, "--corpus", str(corpus.root), "--name", CALIBRATED]) == 0
    return root


@pytest.fixture(scope="module")
def server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    store = tmp_path_factory.mktemp("store") / "speakers.sqlite"
    with ServerProcess(bundles, f"--speakers={store}") as process:
        yield process


def selector(variant: str) -> pb.ModelSelector:
    return pb.ModelSelector(variant=variant)


def test_bundle_describes_a_network_without_classifier(bundles: Path) -> None:
    folder = bundles / PLAIN / "1"
    manifest = json.loads((folder / "bundle.json").read_text())
    jsonschema.validate(manifest, schema("bundle"))
    assert (manifest["speakers"], manifest["calibration"], manifest["verification"]) == ([], None, None)
    assert (manifest["network"]["head"], manifest["probes"], len(manifest["utterances"])) == ("none", None, 20)
    assert not (folder / "explain.onnx").exists()
    parity = json.loads((folder / "parity.json").read_text())
    assert parity["holds"]
    assert {figure["runtime"] for figure in parity["figures"]} == {
        "predict.onnx", "verify.onnx", "model.ts predict", "model.ts verify",
    }  # fmt: skip
    assert {figure["seconds"] for figure in parity["figures"]} == {1.0, 1.6, 2.3, 3.0}
    assert {figure["batch"] for figure in parity["figures"]} == {1, 3, 8}
    bundle = read_bundle(folder)
    assert (bundle.speakers, bundle.has_classifier, bundle.calibration) == ((), False, None)


def test_bundle_with_a_corpus_is_calibrated_and_probed(bundles: Path) -> None:
    bundle = read_bundle(bundles / CALIBRATED / "1")
    assert bundle.verification_thresholds
    assert bundle.verification_basis == "out-of-set speakers"
    assert bundle.search is not None
    # The network was trained on none of the corpus' speakers.
    assert bundle.search.speakers == len(SPEAKERS)
    assert bundle.probes is not None
    assert bundle.probes.voices is not None
    assert bundle.probes.voices.speakers == SPEAKERS
    assert bundle.baseline.clean["deletion_index"].samples > 0
    assert {"best_cosine", "snr_db"} <= bundle.baseline.clean.keys()
    assert bundle.baseline.probes[0].utterances == 3


def test_adding_again_reuses_the_bundle(
    bundles: Path, downloaded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "add", str(downloaded), "--bundles", str(bundles)]) == 0
    assert f"{bundles / PLAIN / '1'}: was already there; no classifier, no threshold" in capsys.readouterr().out
    assert [each.name for each in (bundles / PLAIN).iterdir()] == ["1"]
    assert main(["models", "add", str(bundles / PLAIN / "1"), "--bundles", str(tmp_path)]) == 0
    assert verify_files(tmp_path / PLAIN / "1")["variant"] == PLAIN
    assert main(["models", "add", str(bundles / PLAIN / "1"), "--bundles", str(tmp_path)]) == 0
    assert "was already there" in capsys.readouterr().out
    (tmp_path / PLAIN / "1" / "bundle.json").write_text('{"created": "yesterday"}')
    assert main(["models", "add", str(bundles / PLAIN / "1"), "--bundles", str(tmp_path)]) == 2
    assert "another bundle is there, made yesterday; remove it" in capsys.readouterr().err


def test_damaged_bundle_is_not_added(bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = shutil.copytree(bundles / PLAIN / "1", tmp_path / PLAIN / "1")
    (damaged / "predict.onnx").write_bytes(b"rubbish")
    assert main(["models", "add", str(damaged), "--bundles", str(tmp_path / "served")]) == 1
    assert "predict.onnx changed: its digest is not the one" in capsys.readouterr().err
    assert not (tmp_path / "served").exists()
    with pytest.raises(ExportError, match=r"predict\.onnx changed"):
        verify_files(damaged)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nowhere"], "nowhere: no such file or folder; give the folder that you downloaded"),
        ([".", "--name", "My Model"], "--name My Model: a name has small letters, digits and hyphens"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], reason: str, downloaded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(downloaded)
    assert main(["models", "add", *words]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("variant", [PLAIN, CALIBRATED])
def test_served_embedding_is_that_of_the_foreign_network(
    server: ServerProcess, variant: str, foreign: ReferenceResNet, corpus: Corpus
) -> None:
    for clip in corpus.utterances("test"):
        audio = read_audio(clip.path, clip.start, clip.duration)
        answer = server.stub.Embed(pb.EmbedRequest(audio=raw(audio), models=[selector(variant)]), timeout=60)
        expected = foreign.embed(audio)
        found = torch.tensor(list(answer.embeddings[0].values))
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.99999
        assert (found - expected).norm() < 1e-4 * expected.norm()


def test_voices_are_compared_with_maps_of_the_score(server: ServerProcess) -> None:
    explain = pb.ExplainOptions(stages=[pb.STAGE_FUSED])
    for variant, basis in ((PLAIN, pb.THRESHOLD_BASIS_NONE), (CALIBRATED, pb.THRESHOLD_BASIS_OUT_OF_SET_SPEAKERS)):
        request = pb.VerifyRequest(
            audio=raw(talk(1.0, seed=1)), other=raw(talk(1.2, seed=2)), model=selector(variant), explain=explain
        )
        answer = server.stub.Verify(request, timeout=60)
        assert answer.threshold_basis == basis
        assert math.isinf(answer.threshold) == (variant == PLAIN)
        assert answer.same == (answer.score >= answer.threshold)
        for explanation in (answer.explanation, answer.other_explanation):
            assert 0.3 < plane(explanation.saliency[0]).max() <= 1.0


@pytest.mark.parametrize("variant", [PLAIN, CALIBRATED])
def test_identify_is_refused_and_search_is_named(server: ServerProcess, variant: str) -> None:
    audio, models = raw(talk(1.0)), [selector(NAMED), selector(variant)]
    with pytest.raises(grpc.RpcError) as caught:
        server.identify(pb.IdentifyRequest(audio=audio, models=models))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    details = str(caught.value.details())
    assert details.startswith(f"models[1]: {variant}/1 has no classifier and names no speakers; enrol your speakers")
    assert "use Search" in details
    batch = pb.IdentifyBatchRequest(requests=[pb.IdentifyRequest(audio=audio, models=models)])
    [result] = server.stub.IdentifyBatch(batch, timeout=60).results
    assert (result.failure.code, "Search" in result.failure.message) == ("FAILED_PRECONDITION", True)
    start = pb.StreamStart(format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=16000, models=models)
    with pytest.raises(grpc.RpcError) as caught:
        list(server.stub.IdentifyStream(iter([pb.IdentifyStreamRequest(start=start)]), timeout=60))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_command_line_says_what_to_use_instead(
    server: ServerProcess, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = str(corpus.utterances("test")[0].path)
    assert main(["identify", sound, "--variants", PLAIN, "--server", server.ready["grpc"]]) == 9
    error = capsys.readouterr().err
    assert "--variants: " in error
    assert "use `speakerlens search`, or `speakerlens verify` for two recordings" in error
    assert main(["verify", sound, sound, "--variant", PLAIN, "--server", server.ready["grpc"]]) == 0
    assert "not decided" in capsys.readouterr().out
    assert main(["verify", sound, sound, "--variant", PLAIN, "--json", "--server", server.ready["grpc"]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["threshold"], found["same"], found["threshold_basis"]) == (None, False, "none")


def test_inference_protocol_gives_the_embedding_alone(server: ServerProcess, foreign: ReferenceResNet) -> None:
    audio = talk(1.0)
    with triton.InferenceServerClient(server.ready["grpc"]) as client:
        metadata = client.get_model_metadata(PLAIN)
        assert [(each.name, list(each.shape)) for each in metadata.outputs] == [("embedding", [-1, 12])]
        assert not client.get_model_config(PLAIN).config.parameters
        result = client.infer(PLAIN, inputs({"audio": audio[None]}), outputs=requested("embedding"), client_timeout=60)
        found = torch.from_numpy(result.as_numpy("embedding")[0].copy())
        assert torch.nn.functional.cosine_similarity(found, foreign.embed(audio), dim=0) > 0.99999
        for outputs in (None, requested("probabilities"), requested("embedding", "saliency")):
            with pytest.raises(triton.InferenceServerException, match=r"has no classifier and names no .* use Search"):
                client.infer(PLAIN, inputs({"audio": audio[None]}), outputs=outputs, client_timeout=60)


def test_verification_can_be_repeated(bundles: Path) -> None:
    assert verify_bundle(bundles / PLAIN / "1", lambda done, total: None)["holds"]


def test_identify_without_models_asks_those_that_name(server: ServerProcess) -> None:
    answers = server.identify(pb.IdentifyRequest(audio=raw(talk(1.0)))).answers
    assert [answer.variant for answer in answers] == [NAMED]


def test_models_are_listed_with_what_they_lack(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    models = server.stub.ListModels(pb.ListModelsRequest(), timeout=60).models
    assert {model.variant: model.without_classifier for model in models} == {
        NAMED: False, PLAIN: True, CALIBRATED: True,
    }  # fmt: skip
    assert not server.stub.GetModel(pb.GetModelRequest(model=selector(PLAIN)), timeout=60).model.speakers
    assert server.status(MODEL + PLAIN) == "SERVING"
    assert main(["models", "--json", "--server", server.ready["grpc"]]) == 0
    listed = {each["variant"]: each for each in json.loads(capsys.readouterr().out)["models"]}
    assert (listed[PLAIN]["without_classifier"], listed[PLAIN]["speakers"]) == (True, [])
    assert main(["models", "--server", server.ready["grpc"]]) == 0
    assert "none" in capsys.readouterr().out
    assert "speakerlens_model_info{" in server.metrics_text()


def test_enrolled_speaker_is_found_and_verified(server: ServerProcess, corpus: Corpus) -> None:
    sounds = {
        speaker: [
            np.tile(read_audio(clip.path, clip.start, clip.duration), 6)
            for clip in corpus.utterances("dev")
            if clip.speaker == speaker
        ]
        for speaker in SPEAKERS
    }
    for speaker, utterances in sounds.items():
        request = pb.EnrollRequest(
            speaker=speaker, utterances=[raw(audio) for audio in utterances], models=[selector(CALIBRATED)]
        )
        server.stub.Enroll(request, timeout=60)
    audio = raw(sounds[SPEAKERS[1]][0])
    found = server.stub.Search(pb.SearchRequest(audio=audio, model=selector(CALIBRATED)), timeout=60)
    assert found.answer.candidates[0].speaker == SPEAKERS[1]
    against = pb.VerifyRequest(audio=audio, enrolled_speaker=SPEAKERS[1], model=selector(CALIBRATED))
    assert server.stub.Verify(against, timeout=60).score > 0.99


def test_probes_run_on_enrolled_voices(bundles: Path) -> None:
    with ServerProcess(bundles, "--probe-seconds=3600") as server:
        name = 'speakerlens_probe_utterances_total{{outcome="{}",variant="' + CALIBRATED + '"}}'
        server.wait_for_log(rf"probes of {CALIBRATED}/1: \d+ of \d+ right", 60)
        metrics = server.metrics()
        assert metrics.get(name.format("failed"), 0) == 0
        assert metrics[name.format("right")] > 0
    assert "more were right at export" not in server.log
