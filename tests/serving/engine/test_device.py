"""Which device a graph is opened on, and what is said where CUDA does not work; ONNX Runtime is replaced."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from speakerlens.serving.bundle import BundleError
from speakerlens.serving.engine import session
from speakerlens.serving.engine.session import CPU, CUDA, Engine, fell_back
from speakerlens.serving.errors import StartupError
from speakerlens.serving.models.reader import read_bundle
from tests.serving import toy

DRIVER = "CUDA failure 35: CUDA driver version is insufficient"
REAL = onnxruntime.InferenceSession


@pytest.fixture(autouse=True)
def _forget_warnings() -> None:
    session._warn_of_cpu.cache_clear()


def with_cuda(monkeypatch: pytest.MonkeyPatch, error: str | None) -> None:
    """Pretend that ONNX Runtime is built for CUDA, which raises `error`, or is left out without an error if None."""

    def open_session(content: bytes, options: Any, providers: Sequence[Any], enable_fallback: int = 1) -> Any:
        if providers != [CPU]:
            assert not enable_fallback, "ONNX Runtime's own fallback prints to stdout"
            if error is not None:
                raise RuntimeError(error)
        return REAL(content, options, providers=[CPU])

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])


@pytest.mark.parametrize(("error", "reason"), [(DRIVER, DRIVER), (None, "libonnxruntime_providers_cuda.so")])
def test_cuda_build_on_the_cpu_warns_once_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str], error: str | None, reason: str,
) -> None:  # fmt: skip
    bundle = read_bundle(toy.write_bundle(tmp_path, "v", 1))
    with_cuda(monkeypatch, error)
    with caplog.at_level(logging.WARNING):
        assert Engine(bundle, "auto", 1).provider == CPU
    assert [reason in record.getMessage() for record in caplog.records] == [True]
    assert capsys.readouterr().out == ""
    assert fell_back("auto", CPU)
    assert not fell_back("cpu", CPU)
    assert not fell_back("auto", CUDA)
    with pytest.raises(StartupError, match="--device cuda: this ONNX Runtime runs on CPU") as caught:
        Engine(bundle, "cuda", 1)
    assert reason in str(caught.value)


def test_broken_graph_is_refused_whatever_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read_bundle(toy.write_bundle(tmp_path, "v", 1))
    (bundle.folder / "predict.onnx").write_bytes(b"x" * 99)
    with_cuda(monkeypatch, DRIVER)
    with pytest.raises(BundleError, match=r"predict\.onnx cannot be opened"):
        Engine(bundle, "auto", 1)


def test_cpu_build_does_not_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with caplog.at_level(logging.WARNING):
        Engine(read_bundle(toy.write_bundle(tmp_path, "v", 1)), "auto", 1)
    assert not caplog.records
    assert not fell_back("auto", CPU)


def test_cuda_libraries_are_preloaded_without_output() -> None:
    code = (
        "import onnxruntime; called = []; "
        "onnxruntime.preload_dlls = lambda: (called.append(1), print('Failed to load libcublas')); "
        "import speakerlens.serving.engine.session; print(called)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert process.stdout == "[1]\n"
