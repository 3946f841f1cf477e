"""Bearer tokens, their limits, and what is open without one."""

import hashlib
import queue
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.errors import ResourceExhaustedError, StartupError, UnauthenticatedError
from speakerlens.serving.rpc.tokens import Allowance, Caller, Tokens
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, talk, voice
from tests.serving.test_lifecycle import failing

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


def retry_ms(error: grpc.RpcError) -> int:
    return int({each.key: each.value for each in error.trailing_metadata()}["retry-after-ms"])


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    hashed = hashlib.sha256(BOB.encode()).hexdigest()
    return write(tmp_path, "# who may call", "", f"alice:{ALICE}", f"bob:sha256={hashed} rate=0.001 burst=2")


def test_who_has_no_token_learns_nothing(toy_bundles: Path, tokens: Path) -> None:
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


def test_a_changed_file_counts_from_the_next_call(toy_bundles: Path, tmp_path: Path, tokens: Path) -> None:
    with ServerProcess(toy_bundles, f"--tokens={tokens}") as server:

        def ask(token: str) -> pb.ListModelsResponse:
            return server.stub.ListModels(pb.ListModelsRequest(), metadata=bearer(token), timeout=CALL_SECONDS)

        assert ask(ALICE).models
        write(tmp_path, f"carol:{CAROL}")
        assert ask(CAROL).models
        assert refusal(lambda: ask(ALICE)).code() is grpc.StatusCode.UNAUTHENTICATED
        write(tmp_path, f"carol:{CAROL}", "dave:short")
        assert ask(CAROL).models
        server.wait_for_log(r"ERROR .* the new tokens cannot be used, the old ones stay in force: .*line 2: the token")
        tokens.unlink()
        assert ask(CAROL).models
        write(tmp_path, f"alice:{ALICE}")
        assert ask(ALICE).models
        assert "short" not in server.log


def test_rate_and_quota_are_one_tokens_own(toy_bundles: Path, tmp_path: Path) -> None:
    file = write(tmp_path, f"alice:{ALICE} rate=0.5 burst=2", f"bob:{BOB} seconds-per-day=2.5", f"carol:{CAROL} rate=0")
    with ServerProcess(toy_bundles, f"--tokens={file}", "--token-rate=0.001", "--token-burst=1") as server:

        def ask(token: str) -> pb.IdentifyResponse:
            request = pb.IdentifyRequest(audio=raw(voice(1.0)), models=[pb.ModelSelector(variant="da")])
            return server.stub.Identify(request, metadata=bearer(token), timeout=CALL_SECONDS)

        def list_models(token: str) -> pb.ListModelsResponse:
            return server.stub.ListModels(pb.ListModelsRequest(), metadata=bearer(token), timeout=CALL_SECONDS)

        for _ in range(2):
            list_models(ALICE)
        error = refusal(lambda: list_models(ALICE))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "alice may make 0.5 calls a second" in (error.details() or "")
        hint = retry_ms(error)
        assert 0 < hint <= 2000
        time.sleep(hint / 1000 + 0.05)
        list_models(ALICE)

        for _ in range(30):
            list_models(CAROL)

    write(tmp_path, f"bob:{BOB} seconds-per-day=2.5")
    with ServerProcess(toy_bundles, f"--tokens={file}") as server:
        for _ in range(3):  # the third crosses the limit, and is answered
            ask(BOB)
        error = refusal(lambda: ask(BOB))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "bob has used its 2.5 s of audio of today (UTC)" in (error.details() or "")
        assert 0 < retry_ms(error) <= 24 * 3600 * 1000
        page = server.metrics()
        assert page['speakerlens_rejections_total{reason="quota"}'] == 1
        write(tmp_path, f"bob:{BOB} seconds-per-day=3.5")
        ask(BOB)
        assert refusal(lambda: ask(BOB)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_who_hangs_up_pays_for_what_was_answered(toy_bundles: Path, tmp_path: Path) -> None:
    file = write(tmp_path, f"bob:{BOB} seconds-per-day=1.4")
    more: queue.SimpleQueue[pb.IdentifyStreamRequest | None] = queue.SimpleQueue()
    with ServerProcess(toy_bundles, f"--tokens={file}", "--window-seconds=1") as server:
        answers = server.stub.IdentifyStream(iter(more.get, None), metadata=bearer(BOB), timeout=CALL_SECONDS)
        model = pb.ModelSelector(variant="da")
        form = pb.StreamStart(models=[model], format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=16_000, channels=1)
        more.put(pb.IdentifyStreamRequest(start=form))
        more.put(pb.IdentifyStreamRequest(samples=talk(1.5).tobytes()))
        assert [next(answers).window.end_s for _ in range(2)][-1] > 1.4
        answers.cancel()
        more.put(None)
        request = pb.IdentifyRequest(audio=raw(voice(1.0)), models=[model])
        error = refusal(lambda: server.stub.Identify(request, metadata=bearer(BOB), timeout=CALL_SECONDS))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "bob has used its 1.4 s of audio" in (error.details() or "")


def test_a_new_day_brings_a_new_quota_whatever_the_clock_did() -> None:
    clock = mock.Mock(return_value=1_000_000.0)
    with mock.patch("speakerlens.serving.rpc.tokens.time.time", clock):
        account = Caller("a", Allowance(seconds_per_day=10))
        account.charge(11)
        with pytest.raises(ResourceExhaustedError) as caught:
            account.admit()
        assert caught.value.retry_after_s == pytest.approx(86_400 - 1_000_000 % 86_400)
        for jump in (86_400.0, -10 * 86_400.0):
            clock.return_value += jump
            account.admit()
            account.charge(11)
            with pytest.raises(ResourceExhaustedError):
                account.admit()


def test_every_known_token_is_compared_in_constant_time(tokens: Path) -> None:
    known = Tokens(tokens, Allowance())
    with mock.patch("speakerlens.serving.rpc.tokens.hmac.compare_digest", return_value=False) as compare:
        with pytest.raises(UnauthenticatedError):
            known.account(f"Bearer {ALICE}")
        assert compare.call_count == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("alice", "line 1: write NAME:TOKEN or NAME:sha256=HEX"),
        (f"a b:{ALICE}", "line 1: write NAME:TOKEN"),
        ("alice:", "line 1: the token of alice is neither 16 to 512 printable characters nor"),
        ("alice:too-short", "line 1: the token of alice is neither"),
        ("alice:sha256=abc", "line 1: the token of alice is neither"),
        (f"alice:{ALICE} rate=fast", "line 1: after the token of alice stand rate=, burst= or seconds-per-day="),
        (f"alice:{ALICE} colour=1", "line 1: after the token of alice stand rate="),
        (f"alice:{ALICE} burst=0", "line 1: burst of alice is a number of 1 or more"),
        (f"alice:{ALICE} rate=-1", "line 1: rate of alice is a number of 0 or more"),
        (f"alice:{ALICE} rate=nan", "line 1: rate of alice is a number of 0 or more"),
        (f"alice:{ALICE}\nalice:{BOB}", "line 2: the name or the token is there already"),
        (f"alice:{ALICE}\nbob:{ALICE}", "line 2: the name or the token is there already"),
        ("# nobody", "no token in it"),
    ],
)
def test_refusals_of_a_file_do_not_quote_it(tmp_path: Path, line: str, message: str) -> None:
    file = write(tmp_path, line)
    with pytest.raises(StartupError) as caught:
        Tokens(file, Allowance())
    assert str(caught.value).startswith(f"--tokens {file}")
    assert message in str(caught.value)
    assert not any(secret in str(caught.value) for secret in (ALICE, BOB, "too-short"))


def test_a_file_that_is_not_there_or_that_all_can_read(toy_bundles: Path, tmp_path: Path) -> None:
    status, text = failing("--bundles", str(toy_bundles), f"--tokens={tmp_path / 'none'}")
    assert (status, text) == (1, f"error: --tokens {tmp_path / 'none'}: No such file or directory\n")
    file = write(tmp_path, f"alice:{ALICE}")
    file.chmod(0o644)
    with ServerProcess(toy_bundles, f"--tokens={file}") as server:
        assert (
            f"WARNING speakerlens.serving.rpc.reload --tokens {file}: everybody on this machine can read it"
            in server.log
        )
