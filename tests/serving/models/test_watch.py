"""A real server that watches its bundles, and callers who notice nothing."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, talk, voice

WATCH = "--watch=0.1"


def request(version: int = 0, seconds: float = 1.0) -> pb.IdentifyRequest:
    return pb.IdentifyRequest(
        audio=raw(voice(seconds)), models=[pb.ModelSelector(variant="v", version=version)], top_k=1
    )


def expected(seed: int, seconds: float = 1.0) -> float:
    return float(toy.expected(toy.weights(seed), voice(seconds))["logits"].max())


def logit(answer: pb.IdentifyResponse) -> float:
    return answer.answers[0].speakers[0].logit


def publish(root: Path, version: int, seed: int) -> None:
    """As the export does it: written elsewhere, then renamed."""
    folder = toy.write_bundle(root / ".staging", "v", version, seed=seed)
    folder.rename(root / "v" / str(version))


def wait_for_version(server: ServerProcess, version: int) -> None:
    deadline = time.monotonic() + 30
    while server.identify(request()).answers[0].version != version:
        assert time.monotonic() < deadline, f"never answered by version {version}:\n{server.log}"
        time.sleep(0.02)


def health(server: ServerProcess, name: str) -> str:
    try:
        return server.status(name)
    except grpc.RpcError as error:
        return str(error.code().name)


def wait_for_health(server: ServerProcess, name: str, state: str) -> None:
    deadline = time.monotonic() + 30
    while health(server, name) != state:
        assert time.monotonic() < deadline, f"{name} never was {state}:\n{server.log}"
        time.sleep(0.02)


@contextmanager
def traffic(server: ServerProcess) -> Iterator[list[tuple[int, float]]]:
    """Callers who ask without pause and accept no error; gives the versions and scores they got."""
    over, answers = threading.Event(), list[tuple[int, float]]()
    errors: list[grpc.RpcError] = []

    def ask() -> None:
        while not over.is_set():
            try:
                answer = server.identify(request())
            except grpc.RpcError as error:
                errors.append(error)
                return
            answers.append((answer.answers[0].version, logit(answer)))

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        yield answers
    finally:
        over.set()
        for caller in callers:
            caller.join(CALL_SECONDS)
    assert errors == []


def test_new_versions_drop_no_request(tmp_path: Path) -> None:
    """Under load, three times; one slow call is in work with the first version all the while, and it is answered."""
    toy.write_bundle(tmp_path, "v", 1, seed=1)
    with ServerProcess(tmp_path, WATCH, "--keep-versions=1") as server:
        slow = server.stub.Identify.future(request(seconds=toy.SLOW_SECONDS + 3), timeout=CALL_SECONDS)
        server.wait_for_metric("speakerlens_requests_in_flight", 1)
        publish(tmp_path, 2, seed=2)
        server.wait_for_log("v/1 is no longer served")
        assert not slow.done(), "the call was not in work: the test shows nothing"
        with pytest.raises(grpc.RpcError) as caught:
            server.identify(request(version=1))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "models[0].version: no version 1 of v; there are 2"
        assert "unloading v/1" not in server.log
        answer = slow.result()
        assert answer.answers[0].version == 1
        assert logit(answer) == pytest.approx(expected(1, toy.SLOW_SECONDS + 3), rel=1e-4)
        server.wait_for_log("unloading v/1")
        with traffic(server) as answers:
            for version in (3, 10):
                publish(tmp_path, version, seed=version)
                wait_for_version(server, version)
        for version, score in answers:
            assert score == pytest.approx(expected(version), rel=1e-4), f"version {version}"
        seen = [version for version, _ in answers]
        assert set(seen) == {2, 3, 10}
        page = server.metrics()
        assert [name for name in page if name.startswith("speakerlens_model_info")] == [
            f'speakerlens_model_info{{code_revision="toy",training_data_digest="{"0" * 64}",variant="v",version="10"}}'
        ]


def test_a_stream_keeps_its_model(tmp_path: Path) -> None:
    """Its version is replaced while it talks: every answer is the old version's, which then goes."""
    toy.write_bundle(tmp_path, "v", 1, seed=1)
    go_on = threading.Event()

    def live() -> Iterator[pb.IdentifyStreamRequest]:
        form = pb.StreamStart(format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=16_000, top_k=1)
        yield pb.IdentifyStreamRequest(start=form)
        yield pb.IdentifyStreamRequest(samples=talk(3.0).tobytes())
        go_on.wait(CALL_SECONDS)
        yield pb.IdentifyStreamRequest(samples=talk(3.0, seed=1).tobytes())

    with ServerProcess(tmp_path, WATCH, "--keep-versions=1", "--window-seconds=1") as server:
        stream = server.stub.IdentifyStream(live(), timeout=CALL_SECONDS)
        answers = [next(stream)]
        publish(tmp_path, 2, seed=2)
        wait_for_version(server, 2)
        assert "unloading v/1" not in server.log
        go_on.set()
        answers += stream
        given = [each for answer in answers for each in (*answer.window.answers, *answer.whole.answers)]
        assert len(given) > 2
        assert {each.version for each in given} == {1}
        server.wait_for_log("unloading v/1")


@pytest.mark.parametrize("damage", ["overwritten", "emptied", "replaced"])
def test_a_bundle_replaced_by_garbage_stays_in_service(tmp_path: Path, damage: str) -> None:
    """What is loaded goes on; log, metric and health say why nothing else does."""
    toy.write_bundle(tmp_path, "u", 1)
    folder = toy.write_bundle(tmp_path, "v", 1, seed=1)
    with ServerProcess(tmp_path, WATCH) as server:
        assert (server.status("speakerlens.bundle/v"), server.status("speakerlens.model/v")) == ("SERVING", "SERVING")
        with traffic(server) as answers:
            if damage == "replaced":
                shutil.rmtree(folder)
                folder.mkdir()
                (folder / "bundle.json").write_text("garbage", encoding="utf-8")
            else:
                for file in folder.iterdir():
                    with file.open("r+b") as content:
                        content.write(b"garbage" * 99) if damage == "overwritten" else content.truncate()
            server.wait_for_log("ERROR .* refused .*/v/1: ")
            server.wait_for_metric('speakerlens_bundles_refused{reason="unreadable",variant="v"}', 1)
            before = len(answers)
            scanned = server.metrics()["speakerlens_bundles_scan_timestamp_seconds"]
            server.wait_for_metric("speakerlens_bundles_scan_timestamp_seconds", scanned + 0.3)
            while len(answers) < before + 4:
                time.sleep(0.01)
        assert all(score == pytest.approx(expected(1), rel=1e-4) for _, score in answers)
        names = ("", "speakerlens.v1.SpeakerIdentification", "speakerlens.model/v", "speakerlens.bundle/u")
        assert [server.status(name) for name in names] == ["SERVING"] * 4
        assert server.status("speakerlens.bundle/v") == "NOT_SERVING"
        assert server.log.count("refused") == 1
        publish(tmp_path, 2, seed=2)
        wait_for_version(server, 2)
        wait_for_health(server, "speakerlens.bundle/v", "SERVING")


def test_a_refused_new_version_leaves_the_old_in_service(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path, "v", 1, seed=1)
    with ServerProcess(tmp_path, WATCH) as server:
        bad = toy.write_bundle(tmp_path / ".staging", "v", 2, schema_version=1)
        bad.rename(tmp_path / "v" / "2")
        server.wait_for_metric('speakerlens_bundles_refused{reason="manifest",variant="v"}', 1)
        assert server.status("speakerlens.bundle/v") == "NOT_SERVING"
        assert server.identify(request()).answers[0].version == 1
        shutil.rmtree(tmp_path / "v" / "2")
        wait_for_health(server, "speakerlens.bundle/v", "SERVING")
        assert server.metrics()['speakerlens_bundles_refused{reason="manifest",variant="v"}'] == 0


def test_variants_come_and_go(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path, "v", 1, seed=1)
    with ServerProcess(tmp_path, WATCH) as server:
        assert health(server, "speakerlens.model/w") == "NOT_FOUND"
        toy.write_bundle(tmp_path / ".staging", "w", 1).parent.rename(tmp_path / "w")
        wait_for_health(server, "speakerlens.model/w", "SERVING")
        everything = pb.IdentifyRequest(audio=raw(voice(1.0)))
        assert [each.variant for each in server.identify(everything).answers] == ["v", "w"]
        assert server.status("speakerlens.model/w") == "SERVING"
        shutil.rmtree(tmp_path / "v")
        server.wait_for_log("unloading v/1")
        assert [each.variant for each in server.identify(everything).answers] == ["w"]
        wait_for_health(server, "speakerlens.model/v", "NOT_FOUND")


def test_without_watch_the_directory_is_not_rescanned(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path, "v", 1, seed=1)
    with ServerProcess(tmp_path) as server:
        publish(tmp_path, 2, seed=2)
        scanned = server.metrics()["speakerlens_bundles_scan_timestamp_seconds"]
        time.sleep(0.5)
        assert server.identify(request()).answers[0].version == 1
        assert server.metrics()["speakerlens_bundles_scan_timestamp_seconds"] == scanned
