"""TLS: who is trusted, and certificates that change while the server serves."""

import datetime
import time
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from speakerlens.serving.rpc.expiry import earliest_expiry
from tests.serving.certificates import Pair, channel, issue, replace
from tests.serving.harness import ServerProcess
from tests.serving.startup import failing

EXPIRY = 'speakerlens_tls_certificate_expiry_timestamp_seconds{file="certificate"}'


def flags(pair: Pair) -> tuple[str, str]:
    return f"--tls-certificate={pair.certificate}", f"--tls-key={pair.key}"


def greets(address: str, authority: bytes, client: Pair | None = None) -> bool:
    """Whether a new connection comes about; what it fails with otherwise is UNAVAILABLE."""
    with channel(address, authority, client) as connection:
        try:
            health_pb2_grpc.HealthStub(connection).Check(health_pb2.HealthCheckRequest(), timeout=20)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            return False
        return True


def test_a_new_certificate_is_used_for_new_connections(toy_bundles: Path, tmp_path: Path) -> None:
    first, second = trustme.CA(), trustme.CA()
    pair = issue(tmp_path / "server", first)
    old, new = first.cert_pem.bytes(), second.cert_pem.bytes()
    with ServerProcess(toy_bundles, *flags(pair)) as server:
        address = server.ready["grpc"]
        assert greets(address, old)
        assert not greets(address, new)
        assert server.metrics()[EXPIRY] == earliest_expiry(pair.certificate.read_bytes())
        with channel(address, old) as lasting:
            stub = health_pb2_grpc.HealthStub(lasting)
            stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
            issue(tmp_path / "server", second)
            assert greets(address, new)
            assert not greets(address, old)
            stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert "reloaded the TLS files" in server.log

        expires = datetime.datetime(2031, 2, 3, tzinfo=datetime.UTC)
        soon = second.issue_cert("localhost", "127.0.0.1", not_after=expires)
        replace(pair.key, soon.private_key_pem.bytes())
        replace(pair.certificate, soon.cert_chain_pems[0].bytes())
        assert server.metrics()[EXPIRY] == expires.timestamp(), "without a handshake"

        replace(pair.certificate, b"not a certificate")
        assert greets(address, new)
        server.wait_for_log(r"ERROR .* the new TLS files cannot be used, the previous ones stay.*: --tls-certificate")
        replace(pair.key, b"")
        assert greets(address, new)
        pair.key.unlink()
        assert greets(address, new)
        issue(tmp_path / "server", first)
        assert greets(address, old)
        assert "PRIVATE KEY" not in server.log


def test_a_key_of_another_certificate_is_not_used(toy_bundles: Path, tmp_path: Path) -> None:
    """As between the two moves of a renewal."""
    authority = trustme.CA()
    pair = issue(tmp_path / "server", authority)
    with ServerProcess(toy_bundles, *flags(pair)) as server:
        replace(pair.key, authority.issue_cert("localhost").private_key_pem.bytes())
        assert greets(server.ready["grpc"], authority.cert_pem.bytes())
        server.wait_for_log("are not a pair: key values mismatch")


def test_client_certificates_need_the_right_authority(toy_bundles: Path, tmp_path: Path) -> None:
    right, wrong = trustme.CA(), trustme.CA()
    pair = issue(tmp_path / "server", right)
    good, bad = issue(tmp_path / "good", right, "client"), issue(tmp_path / "bad", wrong, "client")
    with ServerProcess(toy_bundles, *flags(pair), f"--tls-client-ca={good.authority}") as server:
        address, root = server.ready["grpc"], right.cert_pem.bytes()
        assert greets(address, root, good)
        assert not greets(address, root)
        assert not greets(address, root, bad)
        replace(good.authority, wrong.cert_pem.bytes())
        assert greets(address, root, bad)
        assert not greets(address, root, good)


def test_plain_text_connections_fail(toy_bundles: Path, tmp_path: Path) -> None:
    pair = issue(tmp_path / "server", trustme.CA())
    with ServerProcess(toy_bundles, *flags(pair)) as server:
        with pytest.raises(grpc.RpcError) as caught:
            server.status()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "--tls-certificate {certificate}: No such file or directory"),
        ("garbage", "--tls-certificate {certificate} and --tls-key {key} are not a pair: "),
        ("mismatch", "--tls-certificate {certificate} and --tls-key {key} are not a pair: key values mismatch"),
        ("authority", "--tls-client-ca {authority}: no certificate in PEM"),
    ],
)
def test_invalid_files_are_startup_errors(toy_bundles: Path, tmp_path: Path, change: str, message: str) -> None:
    pair = issue(tmp_path / "server", trustme.CA())
    if change == "missing":
        pair.certificate.unlink()
    elif change == "garbage":
        pair.certificate.write_text("no PEM")
    elif change == "mismatch":
        replace(pair.key, trustme.CA().issue_cert("localhost").private_key_pem.bytes())
    else:
        pair.authority.write_text("no PEM")
    text = failing("--bundles", str(toy_bundles), *flags(pair), f"--tls-client-ca={pair.authority}")
    assert text.startswith(message.format(**vars(pair)))


def test_a_public_key_file_is_warned_about(toy_bundles: Path, tmp_path: Path) -> None:
    pair = issue(tmp_path / "server", trustme.CA())
    pair.key.chmod(0o644)
    with ServerProcess(toy_bundles, *flags(pair)) as server:
        assert (
            f"WARNING speakerlens.serving.rpc.reload --tls-key {pair.key}: every user of this machine can read it"
            in server.log
        )


def test_handshakes_during_a_change_succeed(toy_bundles: Path, tmp_path: Path) -> None:
    """Every connection sees one of the two certificates, whole."""
    authority = trustme.CA()
    pair = issue(tmp_path / "server", authority)
    deadline = time.monotonic() + 60
    with ServerProcess(toy_bundles, *flags(pair)) as server:
        for _ in range(10):
            assert time.monotonic() < deadline
            issue(tmp_path / "server", authority)
            assert all(greets(server.ready["grpc"], authority.cert_pem.bytes()) for _ in range(3))
