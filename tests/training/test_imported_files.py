"""Files of foreign networks: read without their packages, nothing executed; what does not fit is named."""

import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from speakerlens.training.errors import UserError
from speakerlens.training.imported.folder import find_files, variant_name
from speakerlens.training.imported.pickles import StandIn, read_pickle
from speakerlens.training.imported.source import Source, read_source
from tests.training.pyannote_files import TASK, checkpoint_of, pyannote_classes, write_config, write_pyannote
from tests.training.pyannote_files import write_safetensors as safetensors_folder
from tests.training.test_import_wespeaker import sounds
from tests.training.wespeaker_reference import ReferenceResNet, make, write

SMALL = (1, 1, 1, 1)  # a ResNet10


@pytest.fixture(scope="module")
def small() -> ReferenceResNet:
    return make(SMALL, False, classes=0)


def source_of(folder: Path) -> Source:
    return read_source(*find_files(folder))


def embedding(source: Source, audio: np.ndarray[Any, Any]) -> torch.Tensor:
    with torch.inference_mode():
        return source.model(source.config(1.0), 0).activations(torch.from_numpy(audio)[None]).embedding[0]


def plain_config(folder: Path, network: ReferenceResNet) -> Path:
    return write(folder, network)[0].parent


WRITERS: dict[str, Callable[[Path, ReferenceResNet], Path]] = {
    "pyannote": lambda folder, network: write_pyannote(folder, network, 10),
    "wespeaker": plain_config,
    "safetensors of pyannote": lambda folder, network: safetensors_folder(folder, network, depth=10),
    "safetensors of wespeaker": lambda folder, network: safetensors_folder(folder, network, "", depth=10),
}


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_gives_the_reference_embedding(form: str, small: ReferenceResNet, tmp_path: Path) -> None:
    source = source_of(WRITERS[form](tmp_path / "net", small))
    assert not any(name.split(".")[0] == "pyannote" for name in sys.modules)
    for audio in sounds():
        expected, found = small.embed(audio), embedding(source, audio)
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.99999
        assert (found - expected).norm() < 1e-4 * expected.norm()


def test_resnet34_has_all_218_tensors(tmp_path: Path) -> None:
    source = source_of(write_pyannote(tmp_path, make((3, 4, 6, 3), False, 0)))
    assert len(source.weights.encoder) == 218
    assert (source.settings.model, source.network.blocks, source.network.mel_bins) == ("ResNet34", (3, 4, 6, 3), 80)


def test_checkpoint_of_pyannote_needs_no_configuration(small: ReferenceResNet, tmp_path: Path) -> None:
    folder = write_pyannote(tmp_path, small, 10)
    (folder / "config.yaml").unlink()
    assert source_of(folder).settings.model == "ResNet10"


def test_configuration_may_be_flat(small: ReferenceResNet, tmp_path: Path) -> None:
    folder = write_pyannote(tmp_path, small, 10)
    content = yaml.safe_load((folder / "config.yaml").read_text())["model"]
    (folder / "config.yaml").write_text(yaml.safe_dump({"_target_": content["_target_"]}))
    assert source_of(folder).settings.depth == 10


def test_foreign_objects_become_inert_stand_ins(small: ReferenceResNet, tmp_path: Path) -> None:
    content = read_pickle(write_pyannote(tmp_path, small, 10) / "pytorch_model.bin")
    about = content["pyannote.audio"]
    assert isinstance(about["specifications"], StandIn)
    assert type(about["specifications"]).__module__ == TASK
    problem = about["specifications"].state["problem"]
    assert (type(problem).__name__, problem.arguments) == ("Problem", (3,))
    assert not callable(problem)


class Caller:
    """Pickles to a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "system"), (os.mkdir, "mkdir"), (exec, "exec"), (getattr, "getattr"), (shutil.rmtree, "rmtree")],
)
@pytest.mark.parametrize("where", ["pyannote.audio", "hyper_parameters", "state_dict"])
def test_call_in_a_pickle_is_refused_by_name(
    function: object, name: str, where: str, small: ReferenceResNet, tmp_path: Path
) -> None:
    marker = tmp_path / "executed"
    folder = tmp_path / "net"
    folder.mkdir()
    with pyannote_classes() as task:
        content = checkpoint_of(small.state_dict(), task, "WeSpeakerResNet10")
        content[where]["more"] = Caller(function, str(marker))
        torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"its pickle calls \S*{name}, .*nothing of it was executed"):
        source_of(folder)
    assert not marker.exists()


def raw(content: bytes) -> Callable[[Path, ReferenceResNet], object]:
    return lambda file, network: file.write_bytes(content)


def cut(file: Path, network: ReferenceResNet) -> None:
    file.write_bytes(file.read_bytes()[:-3000])


def zipped(file: Path, network: ReferenceResNet) -> None:
    inner = file.with_name("avg_model.pt")
    file.rename(inner)
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(inner, "voxceleb_resnet34/avg_model.pt")
    inner.unlink()


def script(file: Path, network: ReferenceResNet) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(file))


def names(*others: str) -> Callable[[Path, ReferenceResNet], object]:
    return lambda file, network: torch.save({name: torch.ones(2, 2) for name in others}, file)


ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(200)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:366edf44\nsize 26645418\n"
WRONG: list[tuple[str, Callable[[Path, ReferenceResNet], object], str]] = [
    ("a pointer", raw(POINTER), "a Git LFS pointer of 77 bytes, not the file of 26.6 MB"),
    ("a page", raw(b"<!DOCTYPE html>\n<html><title>Log in"), "a web page, not the file; the site asked for a login"),
    ("an error", raw(b"Access to model pyannote/x is restricted."), "a text file .'Access to model pyannote/x is"),
    ("nothing", raw(b""), "an empty file; download it again"),
    ("an ONNX graph", raw(ONNX), "an ONNX graph, from which no saliency map can be made; give the PyTorch weights"),
    ("a cut file", cut, r"a PyTorch file that was cut off after 0\.\d MB; download it again"),
    ("an archive", zipped, r"a zip archive .of voxceleb_resnet34/avg_model.pt.; unpack it and give the folder"),
    ("a program", script, "a TorchScript program, which would have to be executed"),
    ("a tar.gz", raw(b"\x1f\x8b\x08" + bytes(99)), "a gzip archive; unpack it and give the folder"),
    ("GGUF", raw(b"GGUF" + bytes(99)), "a GGUF file; give the PyTorch or safetensors file that it was made from"),
    ("Keras", raw(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file, such as Keras writes; what fits is a ResNet"),
    ("ECAPA", names("layer1.conv.weight", "layer2.se_res2block.0.conv.weight"), "by its names it is an ECAPA-TDNN"),
    ("SpeechBrain's", names("blocks.1.tdnn1.conv.conv.weight", "asp_bn.norm.weight"), "it is an ECAPA-TDNN"),
    ("CAM++", names("head.conv1.weight", "xvector.tdnn.linear.weight"), r"by its names it is a CAM\+\+ network"),
    ("x-vector", names("frame_1.kernel.weight", "seg_1.weight"), "by its names it is an x-vector network"),
    ("segmentation", names("sincnet.conv1d.0.weight", "lstm.weight_ih_l0"), "it is pyannote's segmentation"),
    ("SimAM", names("front.layer1.0.conv1.weight", "pooling.weight"), "by its names it is a SimAM-ResNet"),
    ("ERes2Net", names("layer1.0.convs.0.weight", "layer1_downsample.weight"), "by its names it is an ERes2Net"),
    ("WavLM", names("encoder.layers.0.self_attn.k_proj.weight", "wavlm.mask_emb"), "it is a transformer on waveforms"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_file_is_refused_with_what_it_is(
    change: Callable[[Path, ReferenceResNet], object], reason: str, small: ReferenceResNet, tmp_path: Path
) -> None:
    folder = write_pyannote(tmp_path, small, 10)
    change(folder / "pytorch_model.bin", small)
    with pytest.raises(UserError, match=reason) as caught:
        source_of(folder)
    assert str(folder / "pytorch_model.bin") in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_target_": "pyannote.audio.models.embedding.XVectorSincNet"}, "_target_ is .*XVectorSincNet; of pyannote's"),
        ({"_target_": "pyannote.audio.models.segmentation.PyanNet"}, "of pyannote's networks only WeSpeakerResNet34"),
        ({"window_type": "povey"}, "model.window_type must be hamming"),
        ({"sample_rate": 8000}, "model.sample_rate must be 16000"),
        ({"num_mel_bins": 40}, "with 40 mel bins"),
        (
            {"_target_": "pyannote.audio.models.embedding.WeSpeakerResNet34"},
            "is of a ResNet10, but .* is of a ResNet34",
        ),
    ],
)
def test_wrong_configuration_is_refused(
    changes: dict[str, Any], reason: str, small: ReferenceResNet, tmp_path: Path
) -> None:
    folder = write_pyannote(tmp_path, small, 10)
    write_config(folder, 10, **changes)
    with pytest.raises(UserError, match=reason):
        source_of(folder)


def test_checkpoint_of_another_task_is_refused(small: ReferenceResNet, tmp_path: Path) -> None:
    with pyannote_classes() as task:
        torch.save(checkpoint_of(small.state_dict(), task, "PyanNet"), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="_target_ is PyanNet; of pyannote's networks only"):
        source_of(tmp_path)


def test_plain_weights_without_configuration_are_refused(small: ReferenceResNet, tmp_path: Path) -> None:
    (plain_config(tmp_path, small) / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"no config.yaml beside it, and the file does not say what features"):
        source_of(tmp_path)


def test_cut_safetensors_file_is_refused(small: ReferenceResNet, tmp_path: Path) -> None:
    file = safetensors_folder(tmp_path, small, depth=10) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"not a whole safetensors file .*; download it again"):
        source_of(tmp_path)


def test_folder_without_weights_says_what_lies_there(small: ReferenceResNet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        find_files(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no file of weights there \(it is empty\)"):
        find_files(tmp_path)
    (tmp_path / "README.md").touch()
    write_pyannote(tmp_path / "embedding", small)
    with pytest.raises(UserError, match=r"no weights there, but in .*embedding; give that folder"):
        find_files(tmp_path)
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"several files of weights, a.pt, b.pt; give the one to import"):
        find_files(tmp_path)
    assert find_files(tmp_path / "a.pt") == (tmp_path / "a.pt", None)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("wespeaker-voxceleb-resnet34-LM", "wespeaker-voxceleb-resnet34-lm"),
        ("models--pyannote--wespeaker-voxceleb-resnet34-LM/snapshots/837717dd", "wespeaker-voxceleb-resnet34-lm"),
        ("My Voices_2", "my-voices-2"),
        ("声", "imported"),
    ],
)
def test_model_is_named_after_its_folder(folder: str, name: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True)
    assert variant_name(tmp_path / folder) == name
    (tmp_path / folder / "model.safetensors").touch()
    assert variant_name(tmp_path / folder / "model.safetensors") == name
