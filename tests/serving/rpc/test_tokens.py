"""Bearer tokens, and what is open without one."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.errors import StartupError, UnauthenticatedError
from speakerlens.serving.rpc.auth import Tokens
from tests.serving.harness import CALL_SECONDS, ServerProcess
from tests.serving.startup import failing

ALICE, BOB, CAROL = "alice-" + "a" * 20, "bob-" + "b" * 20, "carol-" + "c" * 20


def write(folder: Path, *lines: str) -> Path:
    path = folder / "tokens"
    new = folder / "tokens.new"
    new.write_text("\n".join(lines) + "\n", encoding="utf-8")
    new.chmod(0o600)
    new.rename(path)
    return path


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def refusal(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    hashed = hashlib.sha256(BOB.encode()).hexdigest()
    return write(tmp_path, "# who may call", "", f"alice:{ALICE}", f"bob:sha256={hashed}")


def test_a_missing_and_a_wrong_token_get_the_same_status(toy_bundles: Path, tokens: Path) -> None:
    with ServerProcess(toy_bundles, f"--tokens={tokens}") as server:
        models = server.stub.ListModels
        wrong: list[tuple[tuple[str, str], ...]] = [
            (),
            bearer(""),
            bearer("x" * 26),
            bearer(ALICE[:-1]),
            bearer(ALICE + "a"),
            (("authorization", ALICE),),
            (("authorization", f"Basic {ALICE}"),),
            bearer(hashlib.sha256(BOB.encode()).hexdigest()),
            bearer("sha256=" + hashlib.sha256(BOB.encode()).hexdigest()),
            (*bearer(ALICE), *bearer(BOB)),
        ]
        said = set()
        for metadata in wrong:
            error = refusal(lambda m=metadata: models(pb.ListModelsRequest(), metadata=m, timeout=CALL_SECONDS))  # type: ignore[misc]
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            said.add(error.details())
        assert len(said) == 1
        garbage: grpc.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(
            "/speakerlens.v1.SpeakerIdentification/Identify"
        )
        error = refusal(lambda: garbage(b"\xff\xff", timeout=CALL_SECONDS))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        page = server.metrics()
        assert page['speakerlens_rejections_total{reason="unauthenticated"}'] == len(wrong) + 1

        for metadata in (bearer(ALICE), (("authorization", f"bearer  {ALICE}"),), bearer(BOB)):
            assert models(pb.ListModelsRequest(), metadata=metadata, timeout=CALL_SECONDS).models
        assert server.status() == "SERVING", "health needs no token"
        stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        error = refusal(lambda: next(stub.ServerReflectionInfo(iter([question]))))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert next(stub.ServerReflectionInfo(iter([question]), metadata=bearer(ALICE))).list_services_response.service
        assert ALICE not in server.log
        assert BOB not in server.log


def test_a_changed_file_is_used_from_the_next_call(toy_bundles: Path, tmp_path: Path, tokens: Path) -> None:
    with ServerProcess(toy_bundles, f"--tokens={tokens}") as server:

        def ask(token: str) -> pb.ListModelsResponse:
            return server.stub.ListModels(pb.ListModelsRequest(), metadata=bearer(token), timeout=CALL_SECONDS)

        assert ask(ALICE).models
        write(tmp_path, f"carol:{CAROL}")
        assert ask(CAROL).models
        assert refusal(lambda: ask(ALICE)).code() is grpc.StatusCode.UNAUTHENTICATED
        write(tmp_path, f"carol:{CAROL}", "dave:short")
        assert ask(CAROL).models
        server.wait_for_log(r"ERROR .* the new tokens cannot be used, the previous ones stay.*: .*line 2: the token")
        tokens.unlink()
        assert ask(CAROL).models
        write(tmp_path, f"alice:{ALICE}")
        assert ask(ALICE).models
        assert "short" not in server.log


def test_every_token_is_compared_in_constant_time(tokens: Path) -> None:
    known = Tokens(tokens)
    with mock.patch("speakerlens.serving.rpc.auth.hmac.compare_digest", return_value=False) as compare:
        with pytest.raises(UnauthenticatedError):
            known.caller(f"Bearer {ALICE}")
        assert compare.call_count == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("alice", "line 1: write NAME:TOKEN or NAME:sha256=HEX"),
        (f"a b:{ALICE}", "line 1: write NAME:TOKEN"),
        ("alice:", "line 1: the token of alice is neither 16 to 512 printable characters nor"),
        ("alice:too-short", "line 1: the token of alice is neither"),
        ("alice:sha256=abc", "line 1: the token of alice is neither"),
        (f"alice:{ALICE} rate=5", "line 1: the token of alice is neither"),
        (f"alice:{ALICE}\nalice:{BOB}", "line 2: the name or the token is used before"),
        (f"alice:{ALICE}\nbob:{ALICE}", "line 2: the name or the token is used before"),
        ("# nobody", "no token in it"),
    ],
)
def test_errors_about_a_file_do_not_quote_it(tmp_path: Path, line: str, message: str) -> None:
    file = write(tmp_path, line)
    with pytest.raises(StartupError) as caught:
        Tokens(file)
    assert str(caught.value).startswith(f"--tokens {file}")
    assert message in str(caught.value)
    assert not any(secret in str(caught.value) for secret in (ALICE, BOB, "too-short"))


def test_a_missing_or_public_file_is_reported(toy_bundles: Path, tmp_path: Path) -> None:
    text = failing("--bundles", str(toy_bundles), f"--tokens={tmp_path / 'none'}")
    assert text == f"--tokens {tmp_path / 'none'}: No such file or directory"
    file = write(tmp_path, f"alice:{ALICE}")
    file.chmod(0o644)
    with ServerProcess(toy_bundles, f"--tokens={file}") as server:
        assert (
            f"WARNING speakerlens.serving.rpc.reload --tokens {file}: every user of this machine can read it"
            in server.log
        )
