"""The log in both formats: what it holds, and what it never holds."""

import base64
import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import soundfile as sf

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.logging import JsonFormatter
from tests.serving.fuzz.files import whole
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice
from tests.serving.rpc.test_tokens import ALICE, bearer, write
from tests.serving.test_lifecycle import failing_process

ID = "order-4711"


def lines(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.splitlines()]


def test_every_line_is_json_and_names_its_request(toy_bundles: Path, tmp_path: Path) -> None:
    file = write(tmp_path, f"alice:{ALICE}")
    with ServerProcess(toy_bundles, "--log-format=json", "--log-level=debug", f"--tokens={file}") as server:
        good = pb.IdentifyRequest(audio=raw(voice(1.0)), models=[pb.ModelSelector(variant="da")])
        loud = pb.IdentifyRequest(audio=raw(voice(1.0) * 20), models=[pb.ModelSelector(variant="da")])
        metadata = (*bearer(ALICE), ("x-request-id", ID))
        server.stub.Identify(good, metadata=metadata, timeout=CALL_SECONDS)
        with pytest.raises(grpc.RpcError) as caught:
            server.stub.Identify(loud, metadata=bearer(ALICE), timeout=CALL_SECONDS)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        failed = {each.key: each.value for each in caught.value.trailing_metadata()}["x-request-id"]
        with pytest.raises(grpc.RpcError):
            server.stub.Identify(good, timeout=CALL_SECONDS)
        server.wait_for_log('"code": "UNAUTHENTICATED"')
    said = lines(server)
    assert all({"time", "level", "logger", "message"} <= set(line) for line in said)
    assert all(line["time"].endswith("Z") and line["level"] in ("debug", "info", "warning", "error") for line in said)
    (answered,) = [line for line in said if line.get("request_id") == ID]
    assert answered.items() >= {
        "level": "info", "caller": "alice", "method": "Identify", "variant": "da", "code": "OK"
    }.items()  # fmt: skip
    assert 0 < answered["seconds"] < CALL_SECONDS
    trace, summary = [line for line in said if line.get("request_id") == failed]
    assert trace["message"] == "failed unexpectedly"
    assert "FloatingPointError" in trace["exception"]
    assert summary["code"] == "INTERNAL"
    (refused,) = [line for line in said if line.get("code") == "UNAUTHENTICATED"]
    assert "caller" not in refused


def test_a_text_line_names_its_request(toy_server: ServerProcess) -> None:
    toy_server.stub.ListModels(pb.ListModelsRequest(), metadata=(("x-request-id", "text-1"),), timeout=CALL_SECONDS)
    toy_server.wait_for_log(
        "INFO speakerlens.serving.rpc.interceptor request=text-1 method=ListModels variant=_none code=OK seconds=0"
    )


@pytest.mark.parametrize("kind", ["json", "text"])
def test_the_log_holds_no_audio_embedding_or_token(toy_bundles: Path, tmp_path: Path, kind: str) -> None:
    """A whole session, at the most talkative level, with good and bad requests."""
    file = write(tmp_path, f"alice:{ALICE}")
    audio = voice(1.0, seed=11)
    container = io.BytesIO()
    sf.write(container, audio, 16_000, format="WAV", subtype="FLOAT")
    garbage = b"RIFF" + b"private-words-of-a-caller" * 50
    with ServerProcess(toy_bundles, f"--log-format={kind}", "--log-level=debug", f"--tokens={file}") as server:
        answers = []
        for message in (
            pb.IdentifyRequest(audio=raw(audio), with_embedding=True, explain=pb.ExplainOptions()),
            pb.IdentifyRequest(audio=pb.Audio(encoded=container.getvalue()), with_embedding=True),
            pb.IdentifyRequest(audio=pb.Audio(encoded=garbage)),
            pb.IdentifyRequest(audio=raw(audio * 20), with_embedding=True),
            pb.IdentifyRequest(audio=raw(audio), models=[pb.ModelSelector(variant="none")]),
        ):
            try:
                answers.append(server.stub.Identify(message, metadata=bearer(ALICE), timeout=CALL_SECONDS))
            except grpc.RpcError as error:
                assert error.code() is not grpc.StatusCode.UNAUTHENTICATED
            for wrong in (f"{ALICE}x", ALICE[::-1]):
                with pytest.raises(grpc.RpcError):
                    server.stub.Identify(message, metadata=bearer(wrong), timeout=CALL_SECONDS)
    assert len(answers) == 2
    log = server.log
    assert log.count("UNAUTHENTICATED") >= 10
    secrets = [ALICE, ALICE[::-1], "private-words", repr(audio.tobytes()[:8])[2:-1]]
    secrets += [base64.b64encode(blob)[:16].decode() for blob in (audio.tobytes(), garbage, container.getvalue())]
    values = [*audio[:50], *answers[0].answers[0].embedding, *audio[:50] * 20]
    secrets += [f"{value:.4f}"[:6].lstrip("-") for value in np.abs(values) if abs(value) > 0.01]
    found = [secret for secret in secrets if secret in _without_times(log)]
    assert not found


def test_the_log_holds_no_names_that_callers_invent(toy_bundles: Path, tmp_path: Path) -> None:
    """They may be of persons; the caller is told them."""
    name = "Erika Mustermann"
    with ServerProcess(toy_bundles, "--log-level=debug", f"--speakers={tmp_path / 'speakers.db'}") as server:
        stub, audio = server.stub, raw(voice(1.0))
        da = pb.ModelSelector(variant="da")
        stub.Enroll(pb.EnrollRequest(speaker=name, utterances=[audio], models=[da]), timeout=CALL_SECONDS)
        act_da = pb.ModelSelector(variant="act-da")
        calls: tuple[tuple[Any, Any], ...] = (
            (stub.Verify, pb.VerifyRequest(audio=audio, enrolled_speaker=f"{name}'s \x02sister", model=da)),
            (stub.Verify, pb.VerifyRequest(audio=audio, enrolled_speaker=f"{name} jr.", model=da)),
            (stub.Verify, pb.VerifyRequest(audio=audio, enrolled_speaker=name, model=act_da)),
            (stub.RemoveSpeaker, pb.RemoveSpeakerRequest(speaker=f"{name} " * 50)),
            (stub.Identify, pb.IdentifyRequest(audio=audio, models=[pb.ModelSelector(variant=name)])),
            (stub.Identify, pb.IdentifyRequest(audio=audio, explain=pb.ExplainOptions(target_speaker=name))),
        )
        for call, request in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=CALL_SECONDS)
            details = caught.value.details() or ""
            assert name in details
            assert "\x02" not in details
            assert "\x03" not in details
        stub.RemoveSpeaker(pb.RemoveSpeakerRequest(speaker=name), timeout=CALL_SECONDS)
    assert "Mustermann" not in server.log
    assert "no enrolled speaker …" in server.log


def test_uncaught_errors_are_logged() -> None:
    program = (
        "import threading, speakerlens.serving.logging as logs, warnings\n"
        "logs.configure('info', 'json')\n"
        "def fail(): raise ValueError('in a\\nthread')\n"
        "thread = threading.Thread(target=fail, name='worker'); thread.start(); thread.join()\n"
        "warnings.warn('mind this')\n"
        "class Unable:\n"
        "    def __del__(self): raise KeyError('in passing')\n"
        "Unable()\n"
        "raise RuntimeError('at the end')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in said] == ["critical", "warning", "error", "critical"]
    assert said[0]["message"] == "the thread worker ended with an uncaught error"
    assert said[0]["exception"].endswith("ValueError: in a\nthread")
    assert "mind this" in said[1]["message"]
    assert said[2]["message"] == "an error was ignored in Unable.__del__"
    assert said[2]["exception"].endswith("KeyError: 'in passing'")
    assert said[3]["exception"].endswith("RuntimeError: at the end")


def test_what_a_decoder_prints_is_not_in_the_log(toy_bundles: Path) -> None:
    """libsndfile prints a line for this file, in its own process."""
    damaged = bytearray(whole()[-1])
    damaged[1900:1940] = bytes(40)
    with ServerProcess(toy_bundles, "--log-format=json") as server:
        request = pb.IdentifyRequest(audio=pb.Audio(encoded=bytes(damaged)))
        server.stub.Identify(request, timeout=CALL_SECONDS)
        server.wait_for_log('"method": "Identify"')
    assert any("method" in json.loads(line) for line in server.log.splitlines())


def test_a_crash_leaves_a_traceback() -> None:
    program = (
        "import ctypes, speakerlens.serving.logging as logs\n"
        "logs.configure('info', 'json')\n"
        "def crash(): ctypes.string_at(0)\n"
        "crash()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode < 0
    assert "in crash" in done.stderr


def test_a_startup_error_is_logged_as_json(tmp_path: Path) -> None:
    text = failing_process("--bundles", str(tmp_path / "none"), "--log-format=json")
    assert json.loads(text).items() >= {
        "level": "critical", "message": f"--bundles {tmp_path / 'none'}: no such folder"
    }.items()  # fmt: skip


def test_a_line_break_stays_inside_its_line() -> None:
    record = logging.LogRecord("name", logging.INFO, "file", 1, "a\nb %s \x1b", ("ü\r\n",), None)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "a\nb ü\r\n \x1b"


def _without_times(log: str) -> str:
    """The log without its durations and times, which are numbers as well."""
    times = r'^20\S+ \S+|"time": "[^"]*"|"seconds": [0-9.]+|seconds=[0-9.]+'
    return re.sub(times, "", log, flags=re.MULTILINE)
