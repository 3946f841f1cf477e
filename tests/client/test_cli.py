"""The command `speakerlens` against the stand-in: in this process, or in its own where that makes a difference."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb

from .conftest import Command, speakerlens
from .stand_in import VARIANTS, StandIn, log_mel, mel_centres, saliency, serving

NOBODY = "127.0.0.1:1"
# Like an installation without the extra `client`: the packages cannot be imported.
WITHOUT_EXTRA = """
import sys
for name in ("rich", "matplotlib"):
    sys.modules[name] = None
from speakerlens import __version__
from speakerlens.cli.main import CLIENT, PARTS, main
sys.exit(main())
"""


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the one line of a command that failed with this code."""
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("speakerlens: ")
    return done.stderr


def test_json_holds_answers_and_a_summary_of_the_maps(command: Command, address: str, flac_file: Path) -> None:
    done = command("identify", flac_file, "--server", address, "--variants", "act-da", "--explain", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["file"] == str(flac_file)
    assert document["audio"] == {"seconds": 2.0, "sample_rate": 16000, "channels": 1}
    assert document["timings"] == {"decode_s": 0.001, "queue_s": 0.002, "inference_s": 0.003, "encode_s": 0.004}
    (answer,) = document["answers"]
    assert (answer["variant"], answer["version"], answer["known"]) == ("act-da", 3, True)
    assert answer["speakers"][0] == {"speaker": "anna", "probability": 0.9, "logit": 27.0}
    assert answer["explanation"]["target_speaker"] == "anna"
    summary = answer["explanation"]["maps"]["fused"]
    assert (summary["rows"], summary["columns"], summary["seconds"]) == (80, 198, [0.0125, 1.9825])
    values = saliency("act-da")
    row, column = np.unravel_index(values.argmax(), values.shape)
    assert summary["peak"]["value"] == 1.0
    assert summary["peak"]["seconds"] == pytest.approx(0.0125 + 0.01 * column)
    assert summary["mean"] == pytest.approx(values.mean(), rel=1e-6)
    assert summary["hertz"][0] < summary["peak"]["hertz"] < summary["hertz"][1]
    assert row == 60
    assert answer["explanation"]["log_mel"]["mean"] == pytest.approx(log_mel().mean(), rel=1e-4)


def test_without_explain_json_has_no_explanation(
    command: Command, address: str, flac_file: Path, stand_in: StandIn
) -> None:
    done = command("identify", flac_file, "--server", address, "--top-k", 2, "--json")
    answers = json.loads(done.stdout)["answers"]
    assert [answer["variant"] for answer in answers] == list(VARIANTS)
    assert all("explanation" not in answer and len(answer["speakers"]) == 2 for answer in answers)
    assert stand_in.last is not None
    assert not stand_in.last.HasField("explain")


def test_table_names_speakers_and_saliency_peaks(command: Command, address: str, flac_file: Path) -> None:
    done = command("identify", flac_file, "--server", address, "--explain")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    best = next(line for line in lines if "act-da@3" in line)
    assert [cell.strip() for cell in best.split("│")[1:-1]] == [
        "act-da@3",
        "anna",
        "90.0%",
        "27.00",
        f"1.61 s, {mel_centres(80)[60] / 1000:.2f} kHz",
    ]
    assert any("[bold]$x^$" in line for line in lines)  # a name, not markup
    assert "clean@3: no speaker reaches the model's threshold; the best is anna" in done.stdout


def test_standard_input(command: Command, address: str, stand_in: StandIn, flac: bytes) -> None:
    done = command("identify", "-", "--server", address, "--json", stdin=flac)
    assert json.loads(done.stdout)["file"] == "-"
    assert stand_in.last is not None
    assert stand_in.last.audio.encoded == flac
    assert "standard input  (2.00 s" in command("identify", "-", "--server", address, stdin=flac).stdout


def test_closed_standard_input_is_unreadable(address: str) -> None:
    command = f"{sys.executable} -m speakerlens identify - --server {address} --json <&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (3, "speakerlens: standard input: Bad file descriptor\n")
    assert json.loads(done.stdout)["error"]["code"] == "UNREADABLE"


def test_file_name_that_is_not_utf8(address: str, flac: bytes, tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.flac")
    Path(name).write_bytes(flac)
    drawn = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.svg")
    done = speakerlens("identify", name, "--server", address, "--plot", drawn)
    assert (done.returncode, done.stderr) == (0, "")
    assert "caf\ufffd.flac" in done.stdout
    assert "\ufffd.svg" in done.stdout
    assert Path(drawn).read_bytes().count(b"<svg") == 1
    done = speakerlens("identify", name, "--server", address, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["file"] == name


def test_plots_and_arrays_of_several_files_are_numbered(
    command: Command, address: str, flac_file: Path, tmp_path: Path
) -> None:
    done = command(
        "identify", flac_file, flac_file, "--server", address, "--variants", "da", "--json",
        "--plot", tmp_path / "out.svg", "--save", tmp_path / "maps.npz", "--stages", "s2,fused", "--target", "carl",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert [document["plot"] for document in documents] == [str(tmp_path / f"out-{number}.svg") for number in (1, 2)]
    assert (tmp_path / "out-2.svg").read_text().count("<svg") == 1
    assert documents[1]["answers"][0]["explanation"]["target_speaker"] == "carl"
    with np.load(documents[1]["arrays"], allow_pickle=False) as arrays:
        assert set(arrays) == {
            f"da@3/{name}{axis}"
            for name in ("s2", "fused", "log_mel")
            for axis in ("", "/frequencies_hz", "/times_s")
        }  # fmt: skip
        np.testing.assert_array_equal(arrays["da@3/s2"], saliency("da"))
        assert arrays["da@3/log_mel/times_s"].shape == (198,)


def test_failure_of_one_file_does_not_stop_the_others(
    command: Command, address: str, stand_in: StandIn, flac_file: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.wav"
    text.write_text("hello")
    stand_in.refuse, stand_in.refuse_content = (grpc.StatusCode.INVALID_ARGUMENT, "audio: not audio"), b"hello"
    missing = tmp_path / "missing.wav"
    done = command("identify", text, missing, flac_file, "--server", address, "--json")
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        f"speakerlens: {text}: not audio",
        f"speakerlens: {missing}: No such file or directory",
    ]
    refused, unread, answered = (json.loads(line) for line in done.stdout.splitlines())
    assert refused == {"file": str(text), "error": {"code": "INVALID_ARGUMENT", "message": "audio: not audio"}}
    assert unread == {"file": str(missing), "error": {"code": "UNREADABLE", "message": "No such file or directory"}}
    assert answered["answers"][0]["speakers"][0]["speaker"] == "anna"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 3),
        (grpc.StatusCode.NOT_FOUND, 4),
        (grpc.StatusCode.UNAVAILABLE, 5),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 6),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 6),
        (grpc.StatusCode.INTERNAL, 7),
    ],
)
def test_each_status_has_its_exit_code(
    command: Command, address: str, stand_in: StandIn, flac_file: Path, status: grpc.StatusCode, code: int
) -> None:
    stand_in.refuse = status, "the server's\nown message"
    assert "the server's own message" in one_line(command("identify", flac_file, "--server", address), code)


def test_unreachable_server_is_reported_once(command: Command, flac_file: Path) -> None:
    done = command("identify", flac_file, flac_file, "--server", NOBODY)
    assert f"no server answers at {NOBODY}" in one_line(done, 5)
    assert str(flac_file) not in done.stderr
    for name in ("models", "health"):
        assert f"no server answers at {NOBODY}" in one_line(command(name, "--server", NOBODY), 5)


def test_timeout_is_kept(command: Command) -> None:
    started = time.monotonic()
    done = command("models", "--server", "10.255.255.1:50051", "--timeout", 0.5)  # an address that drops packets
    assert done.returncode in (5, 6)
    assert time.monotonic() - started < 10


def test_models_as_a_table_and_as_json(command: Command, address: str) -> None:
    done = command("models", "--server", address)
    assert done.returncode == 0
    for text in ("act-da@3", "16000 Hz", "s2, fused", "CPUExecutionProvider; 0.5 to 60 s and at most 32 MiB"):
        assert text in done.stdout
    document = json.loads(command("models", "--server", address, "--json").stdout)
    assert [model["variant"] for model in document["models"]] == list(VARIANTS)
    assert document["limits"] == {"max_bytes": 32 * 2**20, "min_seconds": 0.5, "max_seconds": 60.0, "max_requests": 256}


def test_health_reports_whether_the_server_is_ready(command: Command, stand_in: StandIn) -> None:
    with serving(stand_in) as address:
        done = command("health", "--server", address)
        assert (done.returncode, done.stdout, done.stderr) == (0, "serving\n", "")
    with serving(stand_in, healthy=False) as address:
        assert "is not ready" in one_line(command("health", "--server", address), 5)


def test_installation_without_the_extra_names_it(address: str, flac_file: Path, tmp_path: Path) -> None:
    bare = ("-c", WITHOUT_EXTRA)
    identify = ("identify", flac_file, "--server", address)
    assert json.loads(speakerlens(*identify, "--explain", "--json", program=bare).stdout)["answers"]
    assert speakerlens("health", "--server", address, program=bare).returncode == 0
    for command in (identify, ("models", "--server", address)):
        sentence = one_line(speakerlens(*command, program=bare), 2)
        assert "tables need rich (--json needs nothing): pip install 'speakerlens[client]'" in sentence
    sentence = one_line(speakerlens(*identify, "--json", "--plot", tmp_path / "out.png", program=bare), 2)
    assert "plots need matplotlib: pip install 'speakerlens[client]'" in sentence


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--variants", "da@x"], "'da@x' needs a whole number"),
        (["--stages", "s9"], "stage: 's9' is not one of"),
        (["--plot", "out.bmp"], "--plot out.bmp: the name must end in .png, .svg, .pdf"),
        (["--save", "out.npy"], "--save out.npy: the name must end in .npz"),
        (["--plot", "no-such-folder/out.png"], "there is no folder no-such-folder"),
        (["-", "-"], "can be read only once"),
    ],
)
def test_wrong_usage_is_refused_before_any_call(
    command: Command, flac_file: Path, options: list[str], sentence: str
) -> None:
    assert sentence in one_line(command("identify", flac_file, *options, "--server", NOBODY), 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--server", "localhost"], "'localhost' is not HOST:PORT"),
        (["--server", "localhost:99999"], "is not HOST:PORT"),
        (["--timeout", "inf"], "'inf' is not a number of seconds above 0"),
        (["--top-k", "-1"], "'-1' is not a whole number of 1 or more"),
    ],
)
def test_wrong_option_values_are_named(command: Command, options: list[str], sentence: str) -> None:
    done = command("identify", "x.wav", *options)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_result_that_cannot_be_written(command: Command, address: str, flac_file: Path, tmp_path: Path) -> None:
    (tmp_path / "maps.npz").mkdir()
    done = command("identify", flac_file, "--server", address, "--save", tmp_path / "maps.npz")
    assert f"cannot write {tmp_path / 'maps.npz'}: Is a directory" in one_line(done, 7)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("identify", "--variants --top-k --explain --stages --target --plot --save"),
        ("listen", "--rate --channels --format --variants"),
        ("embed", "--variants"),
        ("verify", "--enrolled --variant --explain --stages --plot --save"),
        ("enroll", "--variants"),
        ("speakers", ""),
        ("forget", ""),
        ("models", ""),
        ("health", ""),
    ],
)
def test_help_names_every_option_and_exit_code(command: Command, name: str, options: str) -> None:
    assert f"\n  {name} " in command("--help").stdout
    text = command(name, "--help").stdout
    for option in [*options.split(), "--json", "--server", "--timeout", "--token-file"]:
        assert f"\n  {option} " in text or f"\n  {option}\n" in text
    for code in range(2, 10):
        assert f"\n  {code}  " in text
    own, _, connection = text.partition("\nconnection:\n")
    assert "--json" in own
    assert "--server" in connection
    assert f"\n  speakerlens {name}" in text.partition("\nexamples:")[2]


def test_many_files_take_few_calls(command: Command, address: str, stand_in: StandIn, flac_file: Path) -> None:
    files = [flac_file] * 11 + [flac_file.with_name("missing.wav")] + [flac_file] * 7
    done = command("identify", *files, "--server", address, "--variants", "da", "--json")
    assert done.returncode == 3
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert [document["file"] for document in documents] == list(map(str, files))
    assert [index for index, document in enumerate(documents) if "error" in document] == [11]
    assert stand_in.batches == [8, 7, 3]


def test_calls_hold_at_most_the_files_the_server_allows(
    command: Command, address: str, stand_in: StandIn, flac_file: Path
) -> None:
    stand_in.max_requests = 3
    done = command("identify", *[flac_file] * 8, "--server", address, "--variants", "da", "--json")
    assert done.returncode == 0
    assert stand_in.batches == [3, 3, 2]


def test_failure_of_a_whole_batch_is_reported_once(command: Command, flac_file: Path) -> None:
    stand_in = StandIn()
    refusal = pb.Failure(code="NOT_FOUND", message="there is no such variant")
    result = pb.IdentifyBatchResult(failure=refusal)
    stand_in.IdentifyBatch = lambda request, context: pb.IdentifyBatchResponse(results=[result] * len(request.requests))  # type: ignore[method-assign]
    with serving(stand_in) as address:
        done = command("identify", *[flac_file] * 9, "--server", address, "--json")
    assert one_line(done, 4) == "speakerlens: there is no such variant\n"
    assert done.stdout.count("\n") == 1


def test_closed_output_pipe_is_not_an_error(address: str, flac_file: Path) -> None:
    command = f"{sys.executable} -m speakerlens identify {' '.join([str(flac_file)] * 9)} --server {address} --json"
    done = subprocess.run(["bash", "-c", f"{command} | head -c 1"], capture_output=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (b"{", b"")
