"""Admission in virtual time: what is admitted is answered in time; what is refused is refused at once."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speakerlens.serving.engine.admission import (
    CAUTION,
    LONG_SECONDS,
    MAX_SPEED,
    MIN_SPEED,
    PATIENT_SECONDS,
    Admission,
    Admitted,
)
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import DeadlineError, Reason, ResourceExhaustedError
from tests.serving.engine.scene import ONE_BY_ONE, Scene, play
from tests.serving.fakes import TimedWork
from tests.serving.virtual_time import current_loop, run_virtual

DEADLINE_SECONDS, SECONDS = 1.0, 3.0


class FakeServer:
    """An admission, and the calls in progress."""

    def __init__(self, most: int = 100) -> None:
        self.admission = Admission(most, 2)
        self.calls: dict[Admitted, ExitStack] = {}

    def admit(
        self, cost: float, left: float | None = None, priority: Priority = Priority.INTERACTIVE, live: bool = False
    ) -> Admitted:
        """Admit a call with `left` seconds to its deadline."""
        deadline = None if left is None else current_loop().time() + left
        stack = ExitStack()
        call = stack.enter_context(self.admission.admit(cost, 4, deadline, priority, live))
        self.calls[call] = stack
        return call

    def check(self, left: float | None) -> None:
        self.admission.check(None if left is None else current_loop().time() + left)

    def release(self, call: Admitted) -> None:
        self.calls.pop(call).close()


def with_server(scenario: Callable[[FakeServer], Coroutine[Any, Any, None]], most: int = 100) -> None:
    async def main() -> None:
        await scenario(FakeServer(most))

    run_virtual(main())


def test_call_is_refused_where_work_before_it_takes_too_long() -> None:
    async def scenario(server: FakeServer) -> None:
        for _ in range(4):
            server.admit(0.1, 0.8)
        expected = CAUTION * 0.4 + 0.1
        with pytest.raises(
            ResourceExhaustedError, match=r"an answer is expected in 0\.5 s but may take longer"
        ) as caught:
            server.admit(0.1, expected - 0.01)
        assert caught.value.reason is Reason.QUEUE_FULL
        assert caught.value.retry_after_s == pytest.approx(0.4)
        assert server.admission.left == pytest.approx(0.4), "a refused call holds nothing"
        server.admit(0.1, expected + 0.01)

    with_server(scenario)


def test_call_is_refused_before_its_message_is_read() -> None:
    async def scenario(server: FakeServer) -> None:
        server.check(0.001)
        for _ in range(4):
            server.admit(0.1, 0.75)
        with pytest.raises(ResourceExhaustedError, match="try again later"):
            server.check(0.9)
        server.check(1.1)
        server.check(None)

    with_server(scenario)


@pytest.mark.parametrize("left", [-1.0, 0.0, 0.5])
def test_deadline_below_own_work_is_the_reason_itself(left: float) -> None:
    async def scenario(server: FakeServer) -> None:
        other = server.admit(0.1)
        with pytest.raises(DeadlineError, match=r"the deadline (passed|cannot be met)"):
            server.admit(0.51, left)
        assert server.admission.left == other.left

    with_server(scenario)


def test_idle_server_tries_a_call_against_the_estimate() -> None:
    """Nothing else would correct an estimate that one slow batch has raised."""

    async def scenario(server: FakeServer) -> None:
        call = server.admit(0.51, 0.5)
        assert call.latest == call.deadline
        with pytest.raises(DeadlineError):
            server.admit(0.51, 0.5)
        server.release(call)
        with pytest.raises(DeadlineError):
            server.admit(0.51, 0.0)

    with_server(scenario)


def test_deadline_sooner_than_the_expected_answer_is_the_reason() -> None:
    """The estimate itself says so, without caution; when to try again is said all the same."""

    async def scenario(server: FakeServer) -> None:
        for _ in range(4):
            server.admit(0.1, 0.8)
        server.admit(0.3)
        await asyncio.sleep(0.42)
        for refused in (lambda: server.check(0.39), lambda: server.admit(0.1, 0.49)):
            with pytest.raises(DeadlineError, match=r"about 0\.\d+ s of work wait before it") as caught:
                refused()
            assert caught.value.retry_after_s == pytest.approx(0.7)

    with_server(scenario)


def test_running_batch_is_counted_though_its_calls_are_due_later() -> None:
    async def scenario(server: FakeServer) -> None:
        server.admission = Admission(9, 2, lambda: 0.5)
        server.admit(0.7, 10.0)
        with pytest.raises(DeadlineError):
            server.check(0.4)
        with pytest.raises(DeadlineError):
            server.admit(0.1, 0.55)
        server.admit(0.1, 1.15)

    with_server(scenario)


def test_no_admitted_call_is_made_late() -> None:
    """The third call would come before the first two, of which the second has no time left for it."""

    async def scenario(server: FakeServer) -> None:
        await asyncio.sleep(3.0)
        server.admit(0.2, 30.0)
        server.admit(0.7, 1.5)
        with pytest.raises(ResourceExhaustedError):
            server.admit(0.9, 1.4)
        server.admit(0.3, 1.4)

    with_server(scenario)


def test_waiting_bulk_work_delays_interactive_calls_by_its_share() -> None:
    async def scenario(server: FakeServer) -> None:
        for _ in range(4):
            server.admit(0.1, 0.8)
        server.admit(1.0, None, Priority.BULK)
        expected = CAUTION * 1.25 * 0.4 + 0.1
        with pytest.raises(ResourceExhaustedError):
            server.admit(0.1, expected - 0.01)
        server.admit(0.1, expected + 0.01)

    with_server(scenario)


def test_bulk_call_waits_for_interactive_work_that_is_due_later() -> None:
    async def scenario(server: FakeServer) -> None:
        server.admit(0.4, 20.0)
        with pytest.raises(ResourceExhaustedError):
            server.admit(0.1, CAUTION * 0.4 + 0.09, Priority.BULK)
        server.admit(0.1, CAUTION * 0.4 + 0.11, Priority.BULK)

    with_server(scenario)


def test_only_work_due_before_a_patient_call_refuses_it() -> None:
    async def scenario(server: FakeServer) -> None:
        for _ in range(8):
            server.admit(0.5)
        server.check(8.0)

    with_server(scenario)


def test_idle_server_tries_a_call_after_slow_progress() -> None:
    async def scenario(server: FakeServer) -> None:
        calls = [server.admit(0.0), server.admit(0.0)]
        await asyncio.sleep(1.0)
        calls[0].advance()
        for call in calls:
            server.release(call)
        server.admit(0.4, 0.5)

    with_server(scenario)


def test_two_places_hold_one_stream() -> None:
    async def scenario(server: FakeServer) -> None:
        server.admit(0.0, live=True)
        with pytest.raises(ResourceExhaustedError, match="1 live streams"):
            server.admit(0.0, live=True)
        server.admit(0.1)

    with_server(scenario, most=2)


def test_calls_are_due_by_deadline_and_length_within_bounds() -> None:
    async def scenario(server: FakeServer) -> None:
        soon, patient, longer = server.admit(0.1, 1.0), server.admit(0.1), server.admit(0.5)
        assert soon.due == pytest.approx(1.0)
        assert PATIENT_SECONDS <= patient.due < longer.due < 2 * PATIENT_SECONDS
        long = server.admit(LONG_SECONDS + 0.1)
        assert long.priority is Priority.BULK
        assert sorted(server.calls) == [soon, patient, longer, long]
        live = server.admit(0.0, live=True)
        assert live.due == current_loop().time()
        await asyncio.sleep(2)
        assert live.due == current_loop().time()

    with_server(scenario)


def test_next_step_is_dropped_once_the_rest_comes_too_late() -> None:
    async def scenario(server: FakeServer) -> None:
        call = server.admit(0.8, 2.0)
        latest = [call.latest]
        for _ in range(3):
            call.advance()
            latest.append(call.latest)
        assert latest == pytest.approx([1.7, 1.8, 1.9, 2.0])
        assert server.admit(0.8).latest is None

    with_server(scenario)


def test_slow_progress_refuses_more_and_is_forgotten_soon() -> None:
    """Work takes three times as long as estimated for some seconds."""

    async def scenario(server: FakeServer) -> None:
        server.admit(0.5)
        for _ in range(40):
            call = server.admit(0.4)
            for _ in range(4):
                await asyncio.sleep(0.3)
                call.advance()
            server.release(call)
        with pytest.raises(DeadlineError):
            server.admit(0.1, CAUTION * 0.5 + 0.2, Priority.BULK)
        await asyncio.sleep(6)
        server.admit(0.1, CAUTION * 0.5 + 0.2, Priority.BULK)

    with_server(scenario)


@pytest.mark.parametrize("seconds", [4.0, 4e9])
def test_call_with_a_minute_is_admitted_after_a_pause(seconds: float) -> None:
    async def scenario(server: FakeServer) -> None:
        calls = [server.admit(0.02) for _ in range(60)]
        current_loop().advance(seconds)
        for call in calls[:30]:
            call.advance()
            server.release(call)
        server.check(60.0)
        for _ in range(30):
            server.admit(0.02, 60.0)

    with_server(scenario)


def test_places_are_bounded_and_streams_get_half() -> None:
    async def scenario(server: FakeServer) -> None:
        streams = [server.admit(0.0, live=True) for _ in range(2)]
        with pytest.raises(ResourceExhaustedError, match="2 live streams are in work already") as caught:
            server.admit(0.0, live=True)
        assert caught.value.retry_after_s
        server.admit(0.1)
        server.admit(0.1)
        with pytest.raises(ResourceExhaustedError, match="4 requests are in work already") as caught:
            server.admit(0.1)
        assert caught.value.reason is Reason.IN_FLIGHT
        server.release(streams[0])
        server.admit(0.1)

    with_server(scenario, most=4)


def test_ended_streams_leave_their_places() -> None:
    async def scenario(server: FakeServer) -> None:
        for _ in range(3):
            for stream in [server.admit(0.0, live=True) for _ in range(2)]:
                server.release(stream)

    with_server(scenario, most=4)


def test_retry_hint_is_the_work_at_the_measured_speed() -> None:
    async def scenario(server: FakeServer) -> None:
        calls = [server.admit(1.0, 60.0) for _ in range(20)]
        for call in calls[:12]:
            for _ in range(4):
                await asyncio.sleep(0.125)  # twice as fast as one core
                call.advance()
            server.release(call)
        with pytest.raises(ResourceExhaustedError) as caught:
            server.admit(1.0, 6.0)
        assert caught.value.retry_after_s == pytest.approx(server.admission.left / 2, rel=0.15)

    with_server(scenario)


def test_calls_that_are_due_together_decode_in_order_of_arrival() -> None:
    async def scenario(server: FakeServer) -> None:
        order: list[int] = []

        async def decode(index: int, call: Admitted) -> None:
            async with call.turn():
                order.append(index)
                await asyncio.sleep(1.0)

        async with asyncio.TaskGroup() as group:
            for index in range(8):
                group.create_task(decode(index, server.admit(0.1)))
        assert order == sorted(order)

    with_server(scenario)


def test_every_fifth_turn_to_decode_is_for_bulk_calls() -> None:
    async def scenario(server: FakeServer) -> None:
        order: list[Priority] = []

        async def decode(call: Admitted) -> None:
            async with call.turn():
                order.append(call.priority)
                await asyncio.sleep(1.0)

        async with asyncio.TaskGroup() as group:
            for priority in [Priority.INTERACTIVE] * 2 + [Priority.BULK] * 3 + [Priority.INTERACTIVE] * 10:
                group.create_task(decode(server.admit(0.1, priority=priority)))
        assert [index for index, each in enumerate(order) if each is Priority.BULK] == [6, 11, 14]

    with_server(scenario)


def test_calls_decode_in_turn_interactive_and_due_first() -> None:
    """Two at a time; one that gives up while it waits leaves its turn to the next."""

    async def scenario(server: FakeServer) -> None:
        order: list[str] = []

        async def decode(name: str, call: Admitted) -> None:
            async with call.turn():
                order.append(name)
                await asyncio.sleep(1.0)

        calls = {
            "first": server.admit(0.1),
            "second": server.admit(0.1),
            "heavy": server.admit(2 * LONG_SECONDS),
            "bulk": server.admit(0.1, 9.0, Priority.BULK),
            "patient": server.admit(0.1),
            "given up": server.admit(0.1, 3.0),
            "urgent": server.admit(0.1, 4.0),
        }
        tasks = {name: asyncio.create_task(decode(name, call)) for name, call in calls.items()}
        await asyncio.sleep(0.5)
        tasks["given up"].cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert order == ["first", "second", "urgent", "patient", "bulk", "heavy"]
        async with calls["first"].turn(), calls["second"].turn():
            assert current_loop().time() == pytest.approx(3.0)

    with_server(scenario)


EVENT = st.one_of(
    st.tuples(
        st.just("admit"), st.floats(0, 3), st.none() | st.floats(-1, 20), st.sampled_from(Priority), st.booleans()
    ),
    st.tuples(st.sampled_from(["advance", "release"]), st.integers(0, 30)),
    st.tuples(st.just("wait"), st.floats(0, 3)),
)


@settings(deadline=None)
@given(st.lists(EVENT, max_size=40))
def test_admitted_work_is_always_released(events: list[Any]) -> None:
    async def scenario(server: FakeServer) -> None:
        for kind, *arguments in events:
            if kind == "admit":
                try:
                    call = server.admit(*arguments)
                except (ResourceExhaustedError, DeadlineError):
                    continue
                assert call.live or call.deadline > current_loop().time()
            elif kind == "wait":
                await asyncio.sleep(arguments[0])
            elif arguments[0] < len(server.calls):
                call = list(server.calls)[arguments[0]]
                server.release(call) if kind == "release" else call.advance()
            assert server.admission.left == pytest.approx(sum(each.left for each in server.calls if not each.live))
            assert all(each.left >= 0 and not math.isnan(each.left) for each in server.calls)
            assert MIN_SPEED <= server.admission._speed.value <= MAX_SPEED
            assert server.admission._calls == sorted(
                server.admission._calls, key=lambda each: (each.priority, each.due)
            )
        for call in list(server.calls):
            server.release(call)
        assert server.admission.left == 0
        server.admit(0.4, 0.5)

    with_server(scenario)


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("times", [3, 10])
def test_admitted_calls_are_answered_in_time_under_overload(speed: float, times: int) -> None:
    """Calls of four windows each; the device is slower, as fast, or faster than estimated."""
    outcomes: list[str] = []

    async def call(scene: Scene, admission: Admission) -> None:
        started = scene.time
        deadline = started + DEADLINE_SECONDS
        try:
            admission.check(deadline)
            with admission.admit(0.04, 4, deadline, Priority.INTERACTIVE) as admitted:
                for _ in range(4):
                    await scene.batcher.submit(0, admitted.latest, admitted.priority, admitted.due)
                    admitted.advance()
            outcomes.append("answered")
        except (DeadlineError, ResourceExhaustedError):
            outcomes.append("refused" if scene.time == started else "late")

    async def scenario(scene: Scene) -> None:
        admission, callers = Admission(1000, 2), []
        while scene.time < SECONDS:
            callers.append(asyncio.create_task(call(scene, admission)))
            await asyncio.sleep(0.04 / speed / times)
        await asyncio.gather(*callers)

    play(scenario, TimedWork(fixed_cost=1, compute_s=0.01 / speed), ONE_BY_ONE)
    capacity = SECONDS * speed / 0.04
    assert outcomes.count("answered") > 0.9 * capacity
    assert outcomes.count("late") <= 0.01 * outcomes.count("answered")


def test_waiting_windows_of_streams_delay_a_call() -> None:
    async def main() -> None:
        waiting = [2.0]
        admission = Admission(100, 2, queued_s=lambda due: waiting[0])
        with admission.admit(0.1, 1, None, Priority.INTERACTIVE, live=True):
            deadline = current_loop().time() + 1.0
            with pytest.raises(DeadlineError):
                admission.check(deadline)
            with pytest.raises(DeadlineError), admission.admit(0.1, 4, deadline, Priority.INTERACTIVE):
                pass
            waiting[0] = 0.1
            admission.check(deadline)
            with admission.admit(0.1, 4, deadline, Priority.INTERACTIVE):
                pass

    run_virtual(main())


def test_speed_does_not_fall_by_idle_time() -> None:
    async def scenario(server: FakeServer) -> None:
        for _ in range(20):
            first, second = server.admit(0.01), server.admit(0.01)
            for call in (first, second):
                for _ in range(4):
                    await asyncio.sleep(0.0025)
                    call.advance()
                server.release(call)
            await asyncio.sleep(0.2)
        assert server.admission._speed.value == pytest.approx(1.0, rel=0.1)

    with_server(scenario)


def test_speed_of_long_steps_is_their_own() -> None:
    async def scenario(server: FakeServer) -> None:
        first, _ = server.admit(40.0), server.admit(40.0)
        for _ in range(4):
            await asyncio.sleep(10.0)
            first.advance()
        assert server.admission._speed.value == pytest.approx(1.0, rel=0.1)

    with_server(scenario)
