"""A full or unwritable disk: enrolment is refused, other calls are answered, the file stays intact."""

import resource
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.gallery.sqlite import SqliteStore
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice

DA = pb.ModelSelector(variant="da")


def enroll(server: ServerProcess, speaker: str) -> pb.EnrollResponse:
    request = pb.EnrollRequest(speaker=speaker, utterances=[raw(voice(1.0))], models=[DA])
    return server.stub.Enroll(request, timeout=CALL_SECONDS)


def names(server: ServerProcess) -> list[str]:
    listed = server.stub.ListSpeakers(pb.ListSpeakersRequest(), timeout=CALL_SECONDS).speakers
    return [each.speaker for each in listed]


def check_refusal(server: ServerProcess, speaker: str, code: str, sentence: str) -> None:
    """Enrolment is refused and counted, and nothing else is touched by it."""
    before = server.metrics()['speakerlens_rejections_total{reason="store"}']
    with pytest.raises(grpc.RpcError) as caught:
        enroll(server, speaker)
    assert (caught.value.code().name, caught.value.details()) == (code, sentence)
    assert server.metrics()['speakerlens_rejections_total{reason="store"}'] == before + 1
    assert names(server) == ["anna"]
    assert server.identify(pb.IdentifyRequest(audio=raw(voice(1.0)), models=[DA])).answers
    verify = pb.VerifyRequest(audio=raw(voice(1.0)), enrolled_speaker="anna", model=DA)
    assert server.stub.Verify(verify, timeout=CALL_SECONDS).same
    assert server.status() == "SERVING"
    assert "Traceback" not in server.log


def check_store(path: Path, speakers: list[str]) -> None:
    store = SqliteStore(path)  # refuses a damaged one
    assert [each.speaker for each in store.page("", 10**6)] == speakers
    store.close()


def test_full_disk_refuses_enrolment(toy_bundles: Path, tmp_path: Path) -> None:
    """A file system of 64 KiB, that the server alone sees."""
    small = tmp_path / "small"
    small.mkdir()
    mount = f'mount -t tmpfs -o size=64k tmpfs "{small}" && exec "$@"'
    within = ("unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    if subprocess.run(["sh", "-c", '"$@"', "sh", *within, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a file system of its own: unshare --map-root-user --mount does not work here")
    with ServerProcess(toy_bundles, f"--speakers={small / 'speakers.db'}", within=within) as server:
        seen = Path(f"/proc/{server.process.pid}/root{small}")
        enroll(server, "anna")
        with pytest.raises(OSError, match="No space left"):
            (seen / "filler").write_bytes(bytes(2**17))
        check_refusal(
            server, "bob", "RESOURCE_EXHAUSTED", "the disk of the speakers' file is full; nothing was changed"
        )
        shutil.copy(seen / "speakers.db", tmp_path / "copy.db")
        check_store(tmp_path / "copy.db", ["anna"])
        (seen / "filler").unlink()
        enroll(server, "bob")
        assert names(server) == ["anna", "bob"]


def test_unwritable_file_refuses_enrolment_until_writable(toy_bundles: Path, tmp_path: Path) -> None:
    path = tmp_path / "speakers.db"
    with ServerProcess(toy_bundles, f"--speakers={path}") as server:
        enroll(server, "anna")
        soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, hard))
        sentence = "the speakers' file cannot be used now (disk I/O error); nothing was changed"
        check_refusal(server, "bob", "UNAVAILABLE", sentence)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (soft, hard))
        enroll(server, "bob")
        assert names(server) == ["anna", "bob"]
    check_store(path, ["anna", "bob"])
    assert [file.name for file in tmp_path.iterdir()] == ["speakers.db"]
