"""Several servers behind one client: which calls are repeated, where they go, and how addresses are written."""

import asyncio
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest

from speakerlens import AsyncSpeakerClient, Balancing, ServerUnavailableError, SpeakerClient, StreamOptions, Tls
from speakerlens.balancing import REPEATABLE, SERVICE, Target
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.conftest import ROOT

from .stand_in import StandIn, serving

# May have run when its answer is lost, or writes what it was sent so far.
NEVER_REPEATED = {
    "Enroll",
    "RemoveSpeaker",
    "ImportGallery",
    "ExportGallery",
    "MigrateGallery",
    "IdentifyStream",
    "SearchStream",
}
QUICK = Balancing(first_backoff=0.01, longest_backoff=0.02)
ANY_AUDIO = b"audio"


class Counting(StandIn):
    """Counts the calls; the first `lost` of them end as UNAVAILABLE."""

    def __init__(self, lost: int = 0) -> None:
        super().__init__()
        self.lost = lost
        self.calls = 0

    def _refused(self, context: grpc.ServicerContext, *audios: pb.Audio) -> None:
        self.calls += 1
        super()._refused(context, *audios)
        if self.calls <= self.lost:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server is draining")


@contextmanager
def fleet(*servers: StandIn, healthy: tuple[bool, ...] = ()) -> Iterator[list[str]]:
    with ExitStack() as stack:
        states = healthy or (True,) * len(servers)
        yield [stack.enter_context(serving(each, healthy=state)) for each, state in zip(servers, states, strict=True)]


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_every_method_is_repeatable_or_never_repeated() -> None:
    methods = {method.name: method for method in pb.DESCRIPTOR.services_by_name["SpeakerIdentification"].methods}
    assert pb.DESCRIPTOR.services_by_name["SpeakerIdentification"].full_name == SERVICE
    assert set(REPEATABLE) | NEVER_REPEATED == set(methods)
    assert not set(REPEATABLE) & NEVER_REPEATED
    for name in REPEATABLE:
        assert not methods[name].client_streaming, name
        assert not methods[name].server_streaming, name


READING: list[Callable[[SpeakerClient], Any]] = [
    lambda client: client.identify(ANY_AUDIO),
    lambda client: client.identify_batch([ANY_AUDIO]),
    lambda client: client.embed(ANY_AUDIO),
    lambda client: client.verify(ANY_AUDIO, ANY_AUDIO),
    lambda client: client.speakers(),
    lambda client: client.models(),
]
WRITING: list[Callable[[SpeakerClient], Any]] = [
    lambda client: client.enroll("anna", [ANY_AUDIO]),
    lambda client: client.forget("anna"),
    lambda client: list(client.identify_stream([bytes(9)], StreamOptions(8000))),
]


@pytest.mark.parametrize("call", READING)
def test_lost_call_that_reads_is_repeated(call: Callable[[SpeakerClient], Any]) -> None:
    server = Counting(lost=3)
    with fleet(server) as addresses, SpeakerClient(addresses, timeout=10, balancing=QUICK) as client:
        call(client)
    assert server.calls == 4


@pytest.mark.parametrize("call", WRITING)
def test_lost_call_that_writes_fails_at_once(call: Callable[[SpeakerClient], Any]) -> None:
    server = Counting(lost=1)
    with (
        fleet(server) as addresses,
        SpeakerClient(addresses, timeout=10, balancing=QUICK) as client,
        pytest.raises(ServerUnavailableError, match="draining"),
    ):
        call(client)
    assert server.calls == 1


@pytest.mark.parametrize(("balancing", "attempts"), [(QUICK, 5), (Balancing(attempts=1), 1), (None, 1)])
def test_attempts_are_bounded_and_can_be_turned_off(balancing: Balancing | None, attempts: int) -> None:
    server = Counting(lost=99)
    with (
        fleet(server) as addresses,
        SpeakerClient(addresses, timeout=10, balancing=balancing) as client,
        pytest.raises(ServerUnavailableError, match="draining"),
    ):
        client.identify(ANY_AUDIO)
    assert server.calls == attempts


def test_request_of_megabytes_is_repeated() -> None:
    """gRPC by itself repeats no call above 256 KiB, without a word."""
    server = Counting(lost=1)
    with fleet(server) as addresses, SpeakerClient(addresses, timeout=10, balancing=QUICK) as client:
        client.identify(bytes(3 * 2**20))
    assert server.calls == 2


def test_async_client_repeats_and_spreads_calls() -> None:
    servers = Counting(lost=1), Counting()

    async def run(addresses: list[str]) -> None:
        async with AsyncSpeakerClient(addresses, timeout=10, balancing=QUICK) as client:
            assert await client.is_serving()
            for _ in range(8):
                await client.identify(ANY_AUDIO)

    with fleet(*servers) as addresses:
        asyncio.run(run(addresses))
    assert sum(each.calls for each in servers) == 9
    assert min(each.calls for each in servers) >= 2


def test_server_that_is_not_ready_gets_no_calls() -> None:
    ready, starting = Counting(), Counting()
    with (
        fleet(starting, ready, healthy=(False, True)) as addresses,
        SpeakerClient(",".join(addresses), timeout=10) as client,
    ):
        assert client.is_serving()
        for _ in range(6):
            client.enroll("anna", [ANY_AUDIO])
    assert (starting.calls, ready.calls) == (0, 6)


def test_server_that_is_gone_costs_no_call() -> None:
    servers = Counting(), Counting()
    with fleet(*servers) as addresses, SpeakerClient([free_address(), *addresses], timeout=10) as client:
        assert client.is_serving()
        for _ in range(6):
            client.enroll("anna", [ANY_AUDIO])
    assert sum(each.calls for each in servers) == 6


def test_single_address_is_not_health_checked() -> None:
    """It may be a balancer's, whose servers take turns: one that stops must not close the way to the others."""
    server = Counting()
    with fleet(server, healthy=(False,)) as addresses:
        with SpeakerClient(addresses[0], timeout=10) as client:
            client.identify(ANY_AUDIO)
            assert not client.is_serving()
        with SpeakerClient(addresses[0], timeout=10, balancing=Balancing(attempts=1, health_check=True)) as client:
            with pytest.raises(ServerUnavailableError, match=f"^no server at {addresses[0]} is ready"):
                client.identify(ANY_AUDIO)
            assert not client.is_serving()
    assert server.calls == 1


def test_no_server_at_all_is_one_error() -> None:
    addresses = [free_address(), free_address()]
    started = time.monotonic()
    with SpeakerClient(addresses, timeout=10, balancing=QUICK) as client:
        with pytest.raises(ServerUnavailableError, match=",".join(addresses)):
            client.models()
        with pytest.raises(ServerUnavailableError, match="Connection refused"):
            client.is_serving()
    assert time.monotonic() - started < 9


NAMES = [
    ("a:1", ("a:1",), False),
    ("127.0.0.1:1, 127.0.0.1:2", ("127.0.0.1:1", "127.0.0.1:2"), True),
    (["127.0.0.1:1", "127.0.0.1:2"], ("127.0.0.1:1", "127.0.0.1:2"), True),
    ("ipv4:127.0.0.1:1,127.0.0.1:2", ("127.0.0.1:1", "127.0.0.1:2"), True),
    ("ipv6:[::1]:1,[::1]:2", ("[::1]:1", "[::1]:2"), True),
    ("dns:///a:1", ("dns:///a:1",), True),
    ("unix:/run/x", ("unix:/run/x",), False),
]


@pytest.mark.parametrize(("text", "servers", "several"), NAMES)
def test_address_is_read_in_every_form(text: str | list[str], servers: tuple[str, ...], several: bool) -> None:
    assert Target.parse(text) == Target(servers, several)


def test_lists_become_names_of_grpc() -> None:
    assert Target.parse("127.0.0.1:1,127.0.0.1:2,127.0.0.1:1").name() == "ipv4:127.0.0.1:1,127.0.0.1:2"
    assert Target.parse("127.0.0.1:1,[::1]:2").name() == "ipv6:[::ffff:127.0.0.1]:1,[::1]:2"
    assert Target.parse("no-such-host.invalid:1,127.0.0.1:2").name() == "ipv4:127.0.0.1:2"
    assert Counter(Target.parse("localhost:1,localhost:2").hosts) == Counter(["localhost"])


@pytest.mark.parametrize(
    ("address", "options", "sentence"),
    [
        ([], {}, "address: none"),
        ("a:1,", {}, "address: a part of 'a:1,' is empty"),
        ("a:1,b", {}, "address: b is not HOST:PORT"),
        ("a:1,dns:///b:1", {}, "a list holds HOST:PORT only"),
        ("127.0.0.1:1,10.0.0.1:1", {"token": "secret"}, r"sent to 127\.0\.0\.1:1,10\.0\.0\.1:1 in plain text"),
        ("127.0.0.1:1,127.0.0.2:1", {"tls": True}, "need Tls.server_name"),
    ],
)
def test_wrong_addresses_are_refused_at_once(address: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SpeakerClient(address, **options)


def test_unknown_names_only_are_an_os_error() -> None:
    with pytest.raises(OSError, match=r"no-such-host\.invalid:[12]"):
        SpeakerClient("no-such-host.invalid:1,no-such-host.invalid:2")


def test_list_with_one_name_in_all_certificates_is_accepted() -> None:
    SpeakerClient("127.0.0.1:1,127.0.0.2:1", tls=Tls(server_name="speakers.example.org"), token="secret").close()  # noqa: S106
    SpeakerClient("localhost:1,localhost:2", tls=True).close()


@pytest.mark.parametrize(
    "values", [{"attempts": 0}, {"attempts": 6}, {"first_backoff": 0}, {"longest_backoff": 0.01}, {"retry_bytes": -1}]
)
def test_wrong_balancing_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values)).replace("longest", "first")):
        Balancing(**values)


def test_page_has_the_service_config_for_other_clients() -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "scaling.md").read_text("utf-8"), re.DOTALL)
    assert json.loads(shown) == Balancing().service_config(several=True)
