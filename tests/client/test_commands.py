"""The commands of embeddings and enrolment, and `identify` for many files, against a real server."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from tests.serving import toy
from tests.serving.harness import ServerProcess, talk

from .conftest import TOY_VARIANTS, Command

RATE = 16_000
# A second of 16-bit audio is 32 kB.
MESSAGE_BYTES = 100_000

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that stores no speakers and takes small messages only."""
    folder = tmp_path_factory.mktemp("small")
    toy.write_bundle(folder, "da", 1, 1)
    with ServerProcess(folder, f"--max-message-bytes={MESSAGE_BYTES}") as process:
        yield process


def call(command: Command, server: ServerProcess, *arguments: object) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command."""
    done = command(*arguments, "--server", server.ready["grpc"])
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def run(toy_server: ServerProcess, command: Command) -> Run:
    return partial(call, command, toy_server)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("audio")
    paths = [folder / f"{index}.wav" for index in range(5)]
    for seed, path in enumerate(paths):
        sf.write(path, talk(1.0, seed=seed), RATE, subtype="PCM_16")
    return paths


def documents(done: tuple[int, str, str], code: int = 0) -> list[Any]:
    assert done[0] == code, done[2]
    return [json.loads(line) for line in done[1].splitlines()]


def embedding(file: Path, seed: int) -> Any:
    return toy.expected(toy.weights(seed), sf.read(file, dtype="float32")[0])["embedding"]


def test_embed_prints_every_embedding(run: Run, files: list[Path], tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("hello")
    first, refused, second = documents(run("embed", files[0], text, files[1], "--json"), 3)
    assert refused["file"] == str(text)
    assert refused["error"]["code"] == "INVALID_ARGUMENT"
    for document, file in ((first, files[0]), (second, files[1])):
        assert (document["file"], document["audio"]["seconds"]) == (str(file), 1.0)
        found = {each["variant"]: each["values"] for each in document["embeddings"]}
        for seed, variant in enumerate(TOY_VARIANTS):
            np.testing.assert_allclose(found[variant], embedding(file, seed), rtol=1e-3, atol=1e-5)
        assert document["timings"]["inference_s"] > 0
    code, out, _ = run("embed", files[0], "--variants", "da@1")
    assert code == 0
    assert f"{files[0]}  (1.00 s)\nda@1: 6 numbers, norm " in out
    code, out, err = run("embed", files[0], files[1], "--variants", "none-such")
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert "none-such" in err
    assert run("embed", files[0], "--variants", "da@x")[0] == 2


def test_verify_two_files_with_maps(run: Run, files: list[Path], tmp_path: Path) -> None:
    one, other = (embedding(file, 1) for file in files[:2])
    score = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    asked = ("verify", *files[:2], "--variant", "da", "--stages", "s1,fused")
    [document] = documents(
        run(*asked, "--json", "--plot", tmp_path / "why.svg", "--save", tmp_path / "why.npz"),
    )
    assert (document["file"], document["other"]) == (str(files[0]), str(files[1]))
    assert document["score"] == pytest.approx(score, abs=1e-4)
    assert (document["threshold"], document["same"]) == (0.8, score >= 0.8)
    for side in ("audio", "other_audio"):
        assert document[side].pop("evidence")["bandwidth_hz"] == 8000.0
        assert document[side] == {"seconds": 1.0, "sample_rate": RATE, "channels": 1, "speech": True}
    assert list(document["other_explanation"]["maps"]) == ["s1", "fused"]
    for number, kind in ((1, ""), (2, "other_")):
        assert document[f"{kind}plot"] == str(tmp_path / f"why-{number}.svg")
        assert "<svg" in Path(document[f"{kind}plot"]).read_text()
        with np.load(document[f"{kind}arrays"], allow_pickle=False) as arrays:
            assert {"da@1/s1", "da@1/fused", "da@1/log_mel/times_s"} <= set(arrays)
            explanation = document[f"{kind}explanation"]
            assert arrays["da@1/s1"].mean() == pytest.approx(explanation["maps"]["s1"]["mean"], rel=1e-4)
    code, out, _ = run("verify", files[0], files[0], "--variant", "da")
    assert (code, out) == (0, f"{files[0]} and {files[0]}: same speaker (da@1: score 1.000, threshold 0.800)\n")


def test_enroll_speakers_verify_and_forget(run: Run, files: list[Path], tmp_path: Path) -> None:
    assert run("speakers")[1] == "no speaker is enrolled\n"
    code, out, _ = run("enroll", "anna", files[0], files[1], "--variants", "da")
    assert (code, out) == (0, "enrolled anna from 2 utterances in da@1\n")
    [bob] = documents(run("enroll", "bob", files[2], "--variants", "clean,da", "--json"))
    assert [(each["variant"], each["utterances"]) for each in bob["models"]] == [("clean", 1), ("da", 1)]
    [stored] = bob.pop("utterances")
    assert (stored["recording"], stored["agreement"], stored["audio"]["seconds"]) == ("", 0.0, 1.0)
    [listed] = documents(run("speakers", "--json"))
    assert [each["speaker"] for each in listed["speakers"]] == ["anna", "bob"]
    assert listed["speakers"][1] == bob
    code, out, _ = run("speakers")
    assert code == 0
    assert [line.split("│")[1].strip() for line in out.splitlines() if "@1" in line] == ["anna", "bob", ""]

    picture = tmp_path / "bob.png"
    asked = ("verify", files[2], "--enrolled", "bob", "--variant", "clean")
    [document] = documents(run(*asked, "--plot", picture, "--json"))
    assert (document["enrolled"], document["same"], document["plot"]) == ("bob", True, str(picture))
    assert picture.stat().st_size > 10_000
    assert document["explanation"]["target_speaker"] == "bob"
    assert not any(key.startswith("other") for key in document)
    assert run(*asked)[1].startswith(f"{files[2]} and bob: same speaker (clean@1: ")

    code, out, err = run("verify", files[0], "--enrolled", "anna", "--variant", "clean", "--json")
    assert (code, json.loads(out)["error"]["code"], err.count("\n")) == (9, "FAILED_PRECONDITION", 1)
    assert run("forget", "anna")[:2] == (0, "forgot anna\n")
    assert documents(run("forget", "bob", "--json")) == [{"forgotten": "bob"}]
    for gone in (("forget", "anna"), ("verify", files[0], "--enrolled", "anna", "--variant", "da")):
        code, _, err = run(*gone)
        assert (code, err.count("\n")) == (4, 1)
        assert "'anna'" in err


def test_enrolment_takes_all_files_or_none(run: Run, files: list[Path], tmp_path: Path) -> None:
    missing = tmp_path / "missing.wav"
    code, _, err = run("enroll", "carl", files[0], missing)
    assert (code, err) == (3, f"speakerlens: {missing}: No such file or directory\n")
    text = tmp_path / "text.wav"
    text.write_text("hello")
    assert run("enroll", "carl", files[0], text)[0] == 3
    assert run("speakers")[1] == "no speaker is enrolled\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["verify", "a.wav"], "compare with one thing"),
        (["verify", "a.wav", "b.wav", "--enrolled", "anna"], "compare with one thing"),
        (["verify", "-", "-"], "can be read only once"),
        (["verify", "a.wav", "b.wav", "--variant", "da@x"], "after @"),
        (["verify", "a.wav", "b.wav", "--plot", "x.bmp"], "the name must end in"),
        (["enroll", "anna", "-", "-"], "can be read only once"),
        (["enroll", "anna", "a.wav", "--variants", ","], "is not a variant"),
        (["forget", os.fsdecode(b"caf\xe9")], "is not UTF-8"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: list[str], sentence: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert sentence in err


def test_server_without_a_store_names_the_flag(
    command: Command, small_server: ServerProcess, files: list[Path]
) -> None:
    for arguments in (("enroll", "anna", files[0]), ("speakers",), ("forget", "anna")):
        code, out, err = call(command, small_server, *arguments, "--json")
        assert code == 9
        assert json.loads(out)["error"]["code"] == "FAILED_PRECONDITION"
        assert "--speakers" in err


def test_many_files_go_in_calls_within_the_limit(
    small_server: ServerProcess, command: Command, files: list[Path], tmp_path: Path
) -> None:
    run = partial(call, command, small_server)
    text = tmp_path / "text.wav"
    text.write_text("hello")
    large = tmp_path / "large.wav"
    sf.write(large, talk(4.0), RATE, subtype="PCM_16")
    paths = [*files, text, large, files[0]]
    found = documents(run("identify", *paths, "--variants", "da", "--json"), 3)
    assert [document["file"] for document in found] == list(map(str, paths))
    assert [document.get("error", {}).get("code") for document in found] == [
        None, None, None, None, None, "INVALID_ARGUMENT", "INVALID_ARGUMENT", None,
    ]  # fmt: skip
    assert "too large" in found[6]["error"]["message"]
    for document, file in zip(found, paths, strict=True):
        if "error" not in document:
            logits = toy.expected(toy.weights(1), sf.read(file, dtype="float32")[0])["logits"]
            assert document["answers"][0]["speakers"][0]["speaker"] == toy.speakers()[int(logits.argmax())]
    # At 32 kB each, two fit in one call; the large one goes alone, and so does the last.
    metrics = small_server.metrics()
    calls = {name: value for name, value in metrics.items() if 'method="IdentifyBatch"' in name and "_count" in name}
    assert sum(calls.values()) == 3, calls
    code, _, err = run("identify", *files, "--variants", "none-such")
    assert (code, err.count("\n")) == (4, 1)


def test_health_as_json(run: Run) -> None:
    assert documents(run("health", "--json")) == [{"serving": True}]


def test_gallery_is_exported_and_imported(run: Run, files: list[Path], tmp_path: Path) -> None:
    documents(run("enroll", "gina", *files[:2], "--json"))
    file = tmp_path / "gallery.jsonl"
    [done] = documents(run("gallery", "export", file, "--speaker", "gina", "--json"))
    assert done == {"file": str(file), "bytes": file.stat().st_size}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().count('"speaker":"gina"') == 2 * len(TOY_VARIANTS)
    [read] = documents(run("gallery", "import", file, "--json"))
    assert read == {"speakers": 1, "exemplars": 2 * len(TOY_VARIANTS)}
    [migrated] = documents(run("gallery", "migrate", "--json"))
    assert migrated == {"migrated": 0, "must_enroll_again": []}
    assert run("gallery", "export", tmp_path / "none" / "x", "--speaker", "gina")[0] == 7
    assert run("gallery", "export", tmp_path / "x", "--speaker", "nobody")[0] == 4
    assert not (tmp_path / "x").exists()
    assert run("gallery", "migrate", "file")[0] == 2
    run("forget", "gina")


def test_gallery_is_written_through_links_and_into_devices(run: Run, files: list[Path], tmp_path: Path) -> None:
    """Neither is replaced by a file."""
    documents(run("enroll", "gina", *files[:2], "--json"))
    (tmp_path / "link").symlink_to(tmp_path / "target")
    documents(run("gallery", "export", tmp_path / "link", "--json"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text().count("\n") > 2
    device = tmp_path / "full"
    device.symlink_to("/dev/full")
    code, _, err = run("gallery", "export", device)
    assert (code, err) == (7, f"speakerlens: {device}: No space left on device\n")
    assert Path("/dev/full").is_char_device()
    run("forget", "gina")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "{file}: No such file or directory"),
        (b"", "{file}: empty; send a file that was exported"),
        (b"hello", "{file}: line 1: no gallery; send a file that was exported"),
        (b"hello\n", "{file}: line 1: no gallery; send a file that was exported"),
    ],
)
def test_import_of_a_wrong_file_names_it(run: Run, tmp_path: Path, content: bytes | None, sentence: str) -> None:
    file = tmp_path / "g.jsonl"
    if content is not None:
        file.write_bytes(content)
    code, _, err = run("gallery", "import", file)
    assert (code, err) == (3, f"speakerlens: {sentence.format(file=file)}\n")
    assert run("gallery", "import", tmp_path)[2] == f"speakerlens: {tmp_path}: Is a directory\n"


def test_bad_utterances_are_named_by_their_files(run: Run, files: list[Path], tmp_path: Path) -> None:
    bad = {"short": np.full(1600, 0.1), "silent": np.zeros(32_000), "nan": np.append(np.full(31_999, 0.1), np.nan)}
    for name, samples in bad.items():
        sf.write(tmp_path / f"{name}.wav", samples, 16_000, subtype="FLOAT")
    names = [tmp_path / f"{name}.wav" for name in bad]
    code, _, err = run("enroll", "ina", names[0], files[0], names[1], names[2])
    assert code == 3
    assert all(f"{name}: " in err for name in names), err
    assert "utterances[" not in err
    assert str(files[0]) not in err


def test_errors_of_live_audio_name_the_file(run: Run, tmp_path: Path) -> None:
    silent = tmp_path / "silent.wav"
    sf.write(silent, np.zeros(32_000), 16_000)
    assert run("listen", silent)[2].startswith(f"speakerlens: {silent}: silent: ")
    assert run("listen", tmp_path)[2] == f"speakerlens: {tmp_path}: Is a directory\n"


def test_utterances_are_added_to_an_enrolment(run: Run, files: list[Path]) -> None:
    documents(run("enroll", "hugo", files[0], "--json"))
    [added] = documents(run("enroll", "hugo", files[1], "--add", "--json"))
    assert {each["exemplars"] for each in added["models"]} == {2}
    assert len(added["utterances"]) == 1
    run("forget", "hugo")
