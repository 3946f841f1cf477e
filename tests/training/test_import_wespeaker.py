"""Imported networks answer as a written-out network of the same structure and names; what does not fit is refused."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch.nn import functional as F

from speakerlens.training.checkpoint import Run, load_run
from speakerlens.training.cli import main
from speakerlens.training.data.audio import read_audio
from speakerlens.training.data.manifest import Corpus, load_corpus, write_corpus
from speakerlens.training.evaluation.calibration import calibrate
from speakerlens.training.evaluation.metrics import fit_temperature
from tests.training.toy import SPEAKERS
from tests.training.wespeaker_reference import SCALE, ReferenceResNet, make, write

Audio = NDArray[np.float32]
STRUCTURES = {"ResNet18": ((2, 2, 2, 2), False), "ResNet34": ((3, 4, 6, 3), False), "ResNet50": ((3, 4, 6, 3), True)}


def sounds() -> list[Audio]:
    """Of different lengths, and changing in time at different rates: what stays the same is taken off as the mean."""
    rng = np.random.default_rng(0)
    made = []
    for length, hertz, high in ((16000, 3, False), (20011, 7, True), (9001, 11, False)):
        noise = rng.standard_normal(length)
        noise = np.diff(noise, prepend=0.0) if high else np.cumsum(noise) / 30
        envelope = np.sin(np.pi * hertz * np.arange(length) / 16000) ** 2
        made.append((0.1 * noise * envelope + 0.001 * rng.standard_normal(length)).astype(np.float32))
    return made


def import_run(folder: Path, corpus: Path, files: tuple[Path, Path], speakers: str | None, *more: str) -> int:
    words = ["import-wespeaker", str(files[0]), "--config", str(files[1]), "--corpus", str(corpus), *more]
    if speakers is not None:
        (folder / "speakers.txt").write_text(speakers, encoding="utf-8")
        words += ["--speakers", str(folder / "speakers.txt")]
    return main([*words, "--out", str(folder / "run"), "--device", "cpu"])


def answers(run: Run, audio: Audio) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        logits, embedding = run.network(torch.from_numpy(audio)[None])
    return logits[0], embedding[0]


@pytest.mark.parametrize("model", STRUCTURES)
def test_imported_outputs_equal_the_reference_network(model: str, toy_corpus: Path, tmp_path: Path) -> None:
    reference = make(*STRUCTURES[model], classes=9)  # three speakers at three speeds
    assert import_run(tmp_path, toy_corpus, write(tmp_path, reference), "\n".join(SPEAKERS)) == 0
    run = load_run(tmp_path / "run")
    assert (run.variant, run.speakers, run.finished) == (model.lower(), SPEAKERS, True)
    assert (run.config.head.scale, run.config.data.crop_seconds) == (SCALE, 1.5)
    expected = [reference.embed(audio) for audio in sounds()]
    apart = min(float((expected[i] - expected[j]).norm()) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert apart > 0.01 * expected[0].norm(), "sounds that all give the same embedding would show nothing"
    for audio, embedding in zip(sounds(), expected, strict=True):
        ours, answer = answers(run, audio)
        assert (answer - embedding).norm() < min(1e-4 * float(embedding.norm()), 1e-2 * apart)
        torch.testing.assert_close(ours, reference.scores(audio, 3), rtol=0, atol=1e-3)


def test_numbered_speakers_are_put_in_order(toy_corpus: Path, tmp_path: Path) -> None:
    reference = make((1, 1, 1, 1), False, classes=4)
    assert import_run(tmp_path, toy_corpus, write(tmp_path, reference), "cyd 0\nada 3\neve 2\nbob 1\n") == 0
    run = load_run(tmp_path / "run")
    assert run.speakers == ("cyd", "bob", "eve", "ada"), "a listed speaker may lack in the corpus"
    torch.testing.assert_close(answers(run, sounds()[0])[0], reference.scores(sounds()[0], 4), rtol=0, atol=1e-3)


@pytest.mark.parametrize("prefixes", ["module.", "model.", "module.model."])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_wrapped_weights_are_unwrapped(toy_corpus: Path, tmp_path: Path, prefixes: str, wrapper: str | None) -> None:
    reference = make((1, 1, 1, 1), False, classes=3)
    files = write(tmp_path, reference)
    weights: dict[str, Any] = {f"{prefixes}{name}": tensor for name, tensor in reference.state_dict().items()}
    torch.save({wrapper: weights, "epoch": 3} if wrapper else weights, files[0])
    assert import_run(tmp_path, toy_corpus, files, "\n".join(SPEAKERS)) == 0
    embedding = reference.embed(sounds()[0])
    assert (answers(load_run(tmp_path / "run"), sounds()[0])[1] - embedding).norm() < 1e-4 * embedding.norm()


@pytest.fixture
def confusing(toy_corpus: Path, tmp_path: Path) -> Corpus:
    """The toy corpus with one of six dev utterances mislabelled, so that the best scale is finite."""
    clips = [
        replace(clip, speaker="bob") if clip.path.stem == "ada-4" else clip for clip in load_corpus(toy_corpus).clips
    ]
    return write_corpus(tmp_path / "corpus", clips)


@pytest.mark.parametrize("classes", [0, 7], ids=["no classifier", "one of other speakers"])
def test_speakers_are_enrolled(
    classes: int, confusing: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = make((1, 1, 1, 1), False, classes)
    audios = [read_audio(clip.path, clip.start, clip.duration) for clip in confusing.utterances("train")]
    with torch.no_grad():  # or random weights would give everybody nearly the same direction
        reference.seg_1.bias.sub_(torch.stack([reference.embed(audio) for audio in audios]).mean(0))
    more = ["--enrol"] if classes else []
    assert import_run(tmp_path, confusing.root, write(tmp_path, reference), None, *more) == 0
    run = load_run(tmp_path / "run")
    assert run.speakers == SPEAKERS
    means = torch.zeros(3, 12)
    for clip, audio in zip(confusing.utterances("train"), audios, strict=True):
        embedding = reference.embed(audio)
        means[SPEAKERS.index(str(clip.speaker))] += embedding / embedding.norm()
    torch.testing.assert_close(run.network.head.state_dict()["weight"], means / 3, rtol=1e-3, atol=1e-3)
    scale = run.config.head.scale
    cosine = F.cosine_similarity(reference.embed(audios[0])[None], means)
    torch.testing.assert_close(answers(run, audios[0])[0], scale * cosine, rtol=1e-3, atol=1e-3 * scale)
    assert 0.02 < scale < 99, "found within the bounds of the search"
    assert calibrate(run.network, confusing, SPEAKERS).temperature == pytest.approx(1.0, abs=0.01)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("temperature", [0.01, 100.0])
def test_scale_at_the_bound_of_its_search_warns(
    temperature: float,
    toy_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `fit_temperature` finds it for scores that are always right, or always wrong."""
    right = torch.eye(3)[[0, 1, 2, 0]]
    scores = right if temperature < 1 else -right
    found = fit_temperature(scores, torch.tensor([0, 1, 2, 0]))
    assert found == pytest.approx(temperature, rel=1e-3)
    monkeypatch.setattr("speakerlens.training.evaluation.calibration.fit_temperature", lambda *_: found)
    files = write(tmp_path, make((1, 1, 1, 1), False, 0))
    assert import_run(tmp_path, toy_corpus, files, None) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert f"{toy_corpus}: the scale {1 / temperature:g} is at the bound of its search" in line


@pytest.mark.parametrize("calibrated", [False, True])
def test_network_without_classifier_only_embeds(
    calibrated: bool, toy_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = make((1, 1, 1, 1), False, classes=3)
    write(tmp_path, reference)
    more = ["--no-classifier", "--corpus", str(toy_corpus)] if calibrated else []
    assert main(["import-wespeaker", str(tmp_path), *more, "--out", str(tmp_path / "run")]) == 0
    assert "without a classifier" in capsys.readouterr().out
    run = load_run(tmp_path / "run")
    assert (run.speakers, run.network.classes, run.finished) == ((), 0, True)
    assert run.corpus_folder == (toy_corpus.resolve() if calibrated else None)
    assert len(run.corpus_digest) == 64
    logits, embedding = answers(run, sounds()[0])
    assert logits.shape == (0,)
    expected = reference.embed(sounds()[0])
    assert (embedding - expected).norm() < 1e-4 * expected.norm()
    assert main(["evaluate", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "has no classifier whose accuracy could be measured" in capsys.readouterr().err


def test_speakers_without_a_corpus_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, make((1, 1, 1, 1), False, classes=3))
    assert main(["import-wespeaker", str(tmp_path), "--enrol", "--out", str(tmp_path / "run")]) == 2
    assert "--speakers and --enrol make a classifier, which needs --corpus" in capsys.readouterr().err


def test_imported_run_is_evaluated(toy_corpus: Path, tmp_path: Path) -> None:
    assert import_run(tmp_path, toy_corpus, write(tmp_path, make((1, 2, 1, 1), True, 3, width=2)), "ada\nbob\ncyd") == 0
    assert main(["evaluate", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "resnet17" in page
    assert "imported" in page


def settings(**changes: Any) -> Callable[[ReferenceResNet, Path], None]:
    """Put `changes` into config.yaml; a dictionary is laid over the section of that name."""

    def change(reference: ReferenceResNet, folder: Path) -> None:
        content = yaml.safe_load((folder / "config.yaml").read_text())
        for key, value in changes.items():
            content[key] = content.get(key, {}) | value if isinstance(value, dict) else value
        (folder / "config.yaml").write_text(yaml.safe_dump(content))

    return change


def weights(change: Callable[[dict[str, Any]], object]) -> Callable[[ReferenceResNet, Path], None]:
    def apply(reference: ReferenceResNet, folder: Path) -> None:
        content = reference.state_dict()
        change(content)
        torch.save(content, folder / "avg_model.pt")

    return apply


def raw(name: str, content: bytes) -> Callable[[ReferenceResNet, Path], None]:
    def change(reference: ReferenceResNet, folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


Broken = tuple[str, Callable[[ReferenceResNet, Path], None], str]
BROKEN: list[Broken] = [
    ("no weights", raw("avg_model.pt", b"rubbish"), "cannot be read as weights"),
    ("no configuration", lambda reference, folder: (folder / "config.yaml").unlink(), "not a readable configuration"),
    ("no YAML", raw("config.yaml", b"{"), "not a readable configuration"),
    ("a list", raw("config.yaml", b"[1]"), "must be a section of keys"),
    ("another model", settings(model="ECAPA_TDNN_c512"), "model is ECAPA_TDNN_c512; only WeSpeaker's plain ResNets"),
    ("attention in it", settings(model="SimAM_ResNet34_ASP"), "only WeSpeaker's plain ResNets"),
    ("another depth", settings(model="ResNet34"), "has the blocks of a ResNet10, 1-1-1-1 basic, but"),
    ("another pooling", settings(model_args={"pooling_func": "ASTP"}), "model_args.pooling_func must be TSTP"),
    ("two layers", settings(model_args={"two_emb_layer": True}), "model_args.two_emb_layer must be false"),
    ("two layers in it", weights(lambda w: w.update({"seg_2.weight": torch.ones(12, 12)})), "has two embedding layers"),
    ("another embedding", settings(model_args={"embed_dim": 13}), "its embedding has 12 values, but"),
    ("no embedding", settings(model_args={"embed_dim": None}), "model_args.embed_dim must be a whole number above 0"),
    ("half the mel bins", settings(model_args={"feat_dim": 40}), "fbank_args.num_mel_bins must be 40"),
    ("mel bins", settings(model_args={"feat_dim": 40}, dataset_args={"fbank_args": {}}), "with 40 mel bins"),
    ("8 kHz", settings(dataset_args={"resample_rate": 8000}), "dataset_args.resample_rate must be 16000"),
    ("variance", settings(dataset_args={"cmvn_args": {"norm_var": True}}), "cmvn_args.norm_var must be false"),
    ("frames", settings(dataset_args={"fbank_args": {"frame_shift": 20}}), "fbank_args.frame_shift must be 10"),
    ("learnt features", settings(dataset_args={"frontend": "s3prl"}), "dataset_args.frontend must be fbank"),
    ("no scale", settings(projection_args={"scale": -1}), "projection_args.scale must be a number above 0"),
    ("hours", settings(dataset_args={"num_frms": 10**6}), "data.crop_seconds must be at most 60, not 10000"),
    ("sub-centres", settings(projection_args={"project_type": "arc_margin_intertopk_subcenter"}), "use --enrol to fit"),
    (
        "plain softmax",
        weights(lambda w: w.update({"projection.trans.0.weight": w.pop("projection.weight")})),
        "--enrol",
    ),
    ("classes missing", weights(lambda w: w.update({"projection.weight": torch.ones(4, 12)})), "has 4 classes, but 3"),
    ("classes askew", weights(lambda w: w.update({"projection.weight": torch.ones(3, 11)})), "of 12 values"),
    ("a weight missing", weights(lambda w: w.pop("layer2.0.bn1.bias")), "lacks layer2.0.bn1.bias"),
    ("a weight too many", weights(lambda w: w.update({"pool.linear1.bias": torch.ones(1)})), "pool.linear1.bias"),
    ("a weight askew", weights(lambda w: w.update({"bn1.bias": torch.ones(5)})), "bn1.bias has the shape 5"),
    ("no number", weights(lambda w: w["bn1.bias"].fill_(torch.nan)), "bn1.bias contains NaN"),
    ("no ResNet", weights(lambda w: w.pop("conv1.weight")), "not a WeSpeaker ResNet"),
    ("no tensors", weights(lambda w: w.update({"epoch": 3})), "must be a dictionary of tensors"),
]


@pytest.mark.parametrize(("change", "reason"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_unsupported_file_is_refused_with_the_reason(
    toy_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[ReferenceResNet, Path], None],
    reason: str,
) -> None:
    reference = make((1, 1, 1, 1), False, classes=3)
    files = write(tmp_path, reference)
    change(reference, tmp_path)
    assert import_run(tmp_path, toy_corpus, files, "\n".join(SPEAKERS)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert reason in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("speakers", "more", "reason"),
    [
        (None, [], "has a classifier; name its classes with --speakers, or leave it out with --enrol"),
        ("", [], "names 0 speakers"),
        ("ada\nbob\nada", [], "names ada twice"),
        ("ada 0\nbob 1\ncyd 3", [], "its numbers must be 0 to 2"),
        ("ada\nbob\neve", [], "1 of its speakers are not among the 3 listed: cyd"),
        ("ada\nbob\neve", ["--enrol"], "has other speakers than those listed, such as cyd"),
    ],
)
def test_unsuitable_list_of_speakers_is_refused(
    toy_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    speakers: str | None,
    more: list[str],
    reason: str,
) -> None:
    files = write(tmp_path, make((1, 1, 1, 1), False, classes=3))
    assert import_run(tmp_path, toy_corpus, files, speakers, *more) == 2
    assert reason in capsys.readouterr().err


def test_existing_run_is_not_overwritten(toy_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path, make((1, 1, 1, 1), False, classes=3))
    assert import_run(tmp_path, toy_corpus, files, "\n".join(SPEAKERS)) == 0
    assert import_run(tmp_path, toy_corpus, files, "\n".join(SPEAKERS)) == 2
    assert "already contains a run" in capsys.readouterr().err


class Evil:
    """Pickles to a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_checkpoint_is_not_executed(toy_corpus: Path, tmp_path: Path) -> None:
    files = write(tmp_path, make((1, 1, 1, 1), False, classes=3))
    torch.save({"conv1.weight": Evil(tmp_path / "pwned")}, files[0])
    assert import_run(tmp_path, toy_corpus, files, "\n".join(SPEAKERS)) == 2
    assert not (tmp_path / "pwned").exists()
