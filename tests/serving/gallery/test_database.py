"""Servers that share a PostgreSQL database: what they see of each other, and what happens while it is away."""

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.errors import StartupError, UnavailableError
from speakerlens.serving.gallery.postgres import PostgresStore
from tests.serving import toy
from tests.serving.gallery.test_store import exemplar
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, talk
from tests.serving.postgres import Postgres

VOICE = talk(1.0)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    toy.write_bundle(folder, "da", 1, seed=2)
    return folder


def until(condition: Callable[[], bool], seconds: float = 20.0) -> float:
    """Wait for a condition, and return the seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.02)
    return time.monotonic() - started


def enroll(server: ServerProcess, name: str) -> None:
    server.stub.Enroll(pb.EnrollRequest(speaker=name, utterances=[raw(VOICE)]), timeout=CALL_SECONDS)


def code(call: Callable[..., object], request: object) -> str:
    try:
        call(request, timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_replicas_see_each_others_changes(bundles: Path, database: str) -> None:
    flag = f"--speakers={database}"
    with ServerProcess(bundles, flag) as first, ServerProcess(bundles, flag) as second:

        def found() -> bool:
            answer = second.stub.Search(pb.SearchRequest(audio=raw(VOICE)), timeout=CALL_SECONDS).answer
            return [each.speaker for each in answer.candidates] == names

        names: list[str] = []
        assert found()
        enroll(first, "anna")
        names = ["anna"]
        until(found)  # within a second, on an idle machine: LOOK_SECONDS
        verify = pb.VerifyRequest(audio=raw(VOICE), enrolled_speaker="anna")
        assert second.stub.Verify(verify, timeout=CALL_SECONDS).same
        first.stub.RemoveSpeaker(pb.RemoveSpeakerRequest(speaker="anna"), timeout=CALL_SECONDS)
        names = []
        until(found)
        assert code(second.stub.Verify, verify) == "NOT_FOUND"


def test_database_that_is_away_leaves_other_calls(bundles: Path) -> None:
    """The server starts without it, says so, and uses it as soon as it is there; then it is killed under the server."""
    postgres = Postgres()
    try:
        address = postgres.make("away")
        postgres.kill()
        verify = pb.VerifyRequest(audio=raw(VOICE), enrolled_speaker="anna")
        with ServerProcess(bundles, f"--speakers={address}") as server:
            for start in (True, False):
                until(lambda: server.metrics().get('speakerlens_store_up{kind="postgres"}') == 0)
                assert server.status() == "SERVING"
                assert server.status("speakerlens.store") == "NOT_SERVING"
                assert server.identify(pb.IdentifyRequest(audio=raw(VOICE))).answers
                assert code(server.stub.Verify, verify) == "UNAVAILABLE"
                assert code(server.stub.ListSpeakers, pb.ListSpeakersRequest()) == "UNAVAILABLE"
                postgres.start()
                until(lambda: server.status("speakerlens.store") == "SERVING")
                if start:
                    enroll(server, "anna")
                assert server.stub.Verify(verify, timeout=CALL_SECONDS).same
                if start:
                    postgres.kill()
            assert "Traceback" not in server.log
    finally:
        postgres.close()


def test_acknowledged_changes_survive_kills_of_the_database() -> None:
    postgres = Postgres()
    try:
        address = postgres.make("kills")
        acknowledged: list[int] = []
        stop = threading.Event()

        def write() -> None:
            store = PostgresStore(address)
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    store.enroll([exemplar(f"{number}", variant) for variant in ("a", "b")], replace=True)
                except UnavailableError:
                    time.sleep(0.05)
                else:
                    acknowledged.append(number)
            store.close()

        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(3):
            goal = len(acknowledged) + 20
            until(partial(_longer, acknowledged, goal))
            postgres.kill()
            postgres.start()
        stop.set()
        writer.join()
        store = PostgresStore(address)
        stored = {each.speaker: 0 for each in store.page("", 10**6)}
        assert {str(number) for number in acknowledged} <= stored.keys()
        assert all(len(store.find(name)) == 2 for name in list(stored)[::7]), "half of an enrolment"
        store.close()
    finally:
        postgres.close()


def _longer(items: list[int], than: int) -> bool:
    return len(items) > than


def test_killed_server_leaves_what_it_acknowledged(bundles: Path, database: str) -> None:
    server = ServerProcess(bundles, f"--speakers={database}")
    names: list[str] = []
    with pytest.raises(grpc.RpcError):
        for number in range(1000):
            if number == 5:
                threading.Timer(0.2, server.process.kill).start()
            enroll(server, f"{number:04}")
            names.append(f"{number:04}")
    server.channel.close()
    server.wait()
    store = PostgresStore(database)
    assert {each.speaker for each in store.page("", 10**4)} >= set(names)
    store.close()


def _newer(postgres: Postgres, name: str) -> None:
    PostgresStore(postgres.address(name)).close()
    postgres.execute(name, "UPDATE speakerlens.state SET schema_version = 9")


def _foreign(postgres: Postgres, name: str) -> None:
    postgres.execute(name, "CREATE SCHEMA speakerlens; CREATE TABLE speakerlens.other (x int)")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [(_newer, "schema version 9, this server reads and writes 1"), (_foreign, "a schema speakerlens of another")],
)
def test_database_of_another_program_is_refused(
    postgres: Postgres, spoil: Callable[[Postgres, str], None], sentence: str
) -> None:
    name = f"spoilt{spoil.__name__}"
    postgres.make(name)
    spoil(postgres, name)
    with pytest.raises(StartupError, match=f"^--speakers: .*{sentence}"):
        PostgresStore(postgres.address(name))


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("postgresql://speakers:secret@127.0.0.1/x", "the URL holds a password; leave it out"),
        ("postgresql://127.0.0.1/x?wrong=1", "not a URL of a database: invalid URI query parameter"),
    ],
)
def test_wrong_address_is_refused_without_its_password(address: str, sentence: str) -> None:
    with pytest.raises(StartupError, match=sentence) as caught:
        PostgresStore(address)
    assert "secret" not in str(caught.value)
