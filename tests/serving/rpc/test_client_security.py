"""The client against servers that want TLS, certificates or tokens, and what it says where that fails."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from speakerlens import AsyncSpeakerClient, ServerUnavailableError, SpeakerClient, Tls, UnauthenticatedError
from tests.serving.certificates import Pair, issue
from tests.serving.harness import ServerProcess
from tests.serving.rpc.test_tokens import ALICE, write

SECONDS = 60.0


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def client_pair(folder: Path, authority: trustme.CA) -> Pair:
    return issue(folder / "client", authority, "client")


@pytest.fixture(scope="module")
def guarded(toy_bundles: Path, folder: Path, authority: trustme.CA, client_pair: Pair) -> Iterator[ServerProcess]:
    """Wants a certificate and a token; its own certificate is for another name than its address."""
    pair = issue(folder / "server", authority, "speakers.example.org")
    tokens = write(folder, f"alice:{ALICE}")
    flags = (f"--tls-certificate={pair.certificate}", f"--tls-key={pair.key}", f"--tls-client-ca={pair.authority}")
    with ServerProcess(toy_bundles, *flags, f"--tokens={tokens}") as server:
        yield server


@pytest.fixture
def tls(client_pair: Pair) -> Tls:
    return Tls(client_pair.authority, client_pair.certificate, client_pair.key, "speakers.example.org")


def test_a_client_with_token_and_certificate_is_accepted(guarded: ServerProcess, tls: Tls) -> None:
    with SpeakerClient(guarded.ready["grpc"], timeout=SECONDS, tls=tls, token=ALICE) as client:
        assert client.is_serving()
        assert client.models().models

    async def ask() -> None:
        async with AsyncSpeakerClient(guarded.ready["grpc"], timeout=SECONDS, tls=tls, token=ALICE) as client:
            assert await client.is_serving()
            assert (await client.models()).models

    asyncio.run(ask())


@pytest.mark.parametrize("token", [None, ALICE + "x"])
def test_a_missing_or_wrong_token_is_refused(guarded: ServerProcess, tls: Tls, token: str | None) -> None:
    message = "requires a token: no valid bearer token"
    with SpeakerClient(guarded.ready["grpc"], timeout=SECONDS, tls=tls, token=token) as client:
        assert client.is_serving()
        with pytest.raises(UnauthenticatedError, match=message):
            client.models()

    async def ask() -> None:
        async with AsyncSpeakerClient(guarded.ready["grpc"], timeout=SECONDS, tls=tls, token=token) as client:
            await client.models()

    with pytest.raises(UnauthenticatedError, match=message):
        asyncio.run(ask())


def test_connection_errors_name_their_cause(
    guarded: ServerProcess, toy_server: ServerProcess, client_pair: Pair, folder: Path
) -> None:
    stranger = issue(folder / "stranger", trustme.CA(), "client")
    ca, name = client_pair.authority, "speakers.example.org"
    cases: list[tuple[ServerProcess, bool | Tls, str]] = [
        (guarded, Tls(ca), "its certificate is for another name; if that is right, set Tls.server_name"),
        (guarded, Tls(stranger.authority, server_name=name), "not from a trusted authority; set Tls.ca"),
        (guarded, True, "not from a trusted authority"),
        (guarded, False, "closed the connection; it may require TLS"),
        (guarded, Tls(ca, server_name=name), "or a client certificate that it trusts"),
        (guarded, Tls(ca, stranger.certificate, stranger.key, name), "or a client certificate that it trusts"),
        (toy_server, Tls(ca), "it does not speak TLS"),
    ]
    for server, tls, words in cases:
        address = server.ready["grpc"]
        with (
            SpeakerClient(address, timeout=SECONDS, tls=tls) as client,
            pytest.raises(ServerUnavailableError, match=words) as caught,
        ):
            client.is_serving()
        assert str(caught.value).startswith(f"no connection to the server at {address}: ")


def test_invalid_credentials_are_refused(client_pair: Pair, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no PEM")
    with pytest.raises(ValueError, match=r"token: it would be sent to example.org:1 in plain text; use TLS"):
        SpeakerClient("example.org:1", token=ALICE)
    for token in ("", "two words\n", "ü" * 20):
        with pytest.raises(ValueError, match="token: empty, or not printable ASCII"):
            SpeakerClient(token=token)
    with pytest.raises(ValueError, match="a certificate and its key belong together"):
        SpeakerClient(tls=Tls(certificate=client_pair.certificate))
    with pytest.raises(ValueError, match=r"garbage.pem holds no certificate in PEM"):
        SpeakerClient(tls=Tls(garbage))
    with pytest.raises(ValueError, match="are not a certificate and its key in PEM"):
        SpeakerClient(tls=Tls(certificate=client_pair.certificate, key=garbage))
    with pytest.raises(FileNotFoundError):
        SpeakerClient(tls=Tls(tmp_path / "none"))


def speakerlens(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "speakerlens", *arguments]
    environment = {"PATH": "/usr/bin", "PYTHONPATH": str(Path(__file__).parents[3])}
    environment |= {f"SPEAKERLENS_CLIENT_{name}": value for name, value in variables.items()}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_line_takes_credentials(guarded: ServerProcess, client_pair: Pair, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(ALICE + "\n", encoding="utf-8")
    server, name = guarded.ready["grpc"], "speakers.example.org"
    files = {
        "TLS_CA": str(client_pair.authority),
        "TLS_CERTIFICATE": str(client_pair.certificate),
        "TLS_KEY": str(client_pair.key),
    }
    flags = [f"--{key.lower().replace('_', '-')}={value}" for key, value in files.items()]
    flags += [f"--server={server}", f"--tls-server-name={name}", f"--token-file={token}"]
    done = speakerlens("models", "--json", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"variant": "da"' in done.stdout
    done = speakerlens("models", "--json", **files, SERVER=server, TLS_SERVER_NAME=name, TOKEN=ALICE)
    assert (done.returncode, done.stderr) == (0, "")
    done = speakerlens("health", **files, SERVER=server, TLS_SERVER_NAME=name)
    assert (done.returncode, done.stdout) == (0, "serving\n")
    done = speakerlens("models", "--json", **files, SERVER=server, TLS_SERVER_NAME=name)
    assert done.returncode == 8
    assert done.stderr.startswith(f"speakerlens: the server at {server} requires a token: ")
    done = speakerlens("models", "--json", f"--server={server}", "--no-tls", **files)
    assert done.returncode == 5
    assert "it may require TLS" in done.stderr


def test_wrong_credential_flags_are_refused(tmp_path: Path) -> None:
    done = speakerlens("health", "--token-file", str(tmp_path / "none"))
    assert (done.returncode, done.stderr) == (2, f"speakerlens: {tmp_path / 'none'}: No such file or directory\n")
    done = speakerlens("health", TLS="perhaps")
    assert (done.returncode, done.stderr) == (
        2, "speakerlens: SPEAKERLENS_CLIENT_TLS: 'perhaps' is neither true nor false\n"
    )  # fmt: skip
    done = speakerlens("health", "--server=h:1", TOKEN=ALICE)
    assert done.returncode == 2
    assert "it would be sent to h:1 in plain text" in done.stderr
    assert ALICE not in done.stderr
