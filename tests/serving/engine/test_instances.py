"""Several instances of a device: all are filled, priorities hold, and their number is chosen by the threads."""

import asyncio
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from speakerlens.serving.engine.graphs import Job
from speakerlens.serving.engine.placement import MOST_INSTANCES, InstanceSession, Occupancy, Placement, instances_of
from speakerlens.serving.engine.queue import Priority, QueueLimits
from speakerlens.serving.engine.session import Engine
from speakerlens.serving.models.reader import read_bundle
from tests.serving import toy
from tests.serving.engine.scene import ONE_BY_ONE, Scene, Task, play, settle
from tests.serving.fakes import TimedWork

ARRIVAL = st.tuples(st.integers(0, 1), st.sampled_from(Priority))


def test_batches_begin_on_every_free_instance() -> None:
    async def scenario(scene: Scene) -> None:
        tasks = [await scene.submit(number) for number in range(5)]
        await asyncio.gather(*tasks)
        assert scene.log == [[0], [1], [2], [3], [4]]
        assert [round(started, 3) for started in scene.work.started] == [0, 0, 1, 1, 2]

    play(scenario, limits=ONE_BY_ONE, instances=2)


def test_a_batch_is_prepared_only_while_all_instances_compute() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.learn()
        tasks = [await scene.submit(number) for number in (1, 2, 3)]
        await settle()
        assert scene.work.prepared == [[1], [2]]
        await asyncio.sleep(0.9985)
        assert scene.work.prepared == [[1], [2], [3]]
        assert scene.log == [[1], [2]]
        await asyncio.gather(*tasks)
        assert scene.work.prepared == scene.log

    play(scenario, TimedWork(fixed_cost=1), limits=ONE_BY_ONE, instances=2)


def test_expected_times_count_all_instances() -> None:
    """Batches take 1 s."""

    async def scenario(scene: Scene) -> None:
        await scene.learn()
        scheduler, [queue, _] = scene.scheduler, scene.batcher.queues
        tasks = [await scene.submit(0)]
        await asyncio.sleep(0.25)
        assert scheduler.running_s() == 0, "an instance is free"
        tasks.append(await scene.submit(0))
        await settle()
        assert abs(scheduler.running_s() - 0.75) < 1e-6, "until the first ends"
        tasks += [await scene.submit(0) for _ in range(4)]
        assert abs(scheduler.queued_s(float("inf")) - 2) < 1e-6
        assert abs(scheduler.delay(queue) - 2.75) < 1e-6
        await asyncio.gather(*tasks)

    play(scenario, TimedWork(fixed_cost=1), limits=ONE_BY_ONE, instances=2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(ARRIVAL, max_size=5), min_size=1, max_size=10), st.integers(1, 3), st.integers(2, 3))
def test_priorities_hold_with_several_instances(
    arrivals: list[list[tuple[int, Priority]]], batch: int, instances: int
) -> None:
    """An interactive job waits for one bulk batch at most to begin; no instance idles, and each job has its result."""

    async def scenario(scene: Scene) -> None:
        tasks: list[Task] = []
        priorities: list[Priority] = []
        begun: list[int] = []
        for together in arrivals:
            for batcher, priority in together:
                await settle()
                begun.append(len(scene.log))
                priorities.append(priority)
                tasks.append(await scene.submit(len(tasks), None, priority, batcher))
            await settle()
            waiting = any(len(queue) for each in scene.batchers for queue in each.queues)
            assert not (waiting and scene.scheduler._free)
            await asyncio.sleep(1.0)
        for number, result in enumerate(await asyncio.gather(*tasks)):
            assert result.result == -number
            [index] = [index for index, computed in enumerate(scene.log) if number in computed]
            bulk = [
                computed for computed in scene.log[begun[number] : index] if priorities[computed[0]] is Priority.BULK
            ]
            assert priorities[number] is Priority.BULK or len(bulk) <= 1
        assert all(len({priorities[number] for number in computed}) == 1 for computed in scene.log)

    play(scenario, limits=QueueLimits(1000, batch, 10**9), instances=instances)


def test_a_source_that_leaves_ends_its_batches_on_all_instances() -> None:
    async def scenario(scene: Scene) -> None:
        tasks = [await scene.submit(number) for number in (1, 2)]
        other = await scene.submit(3, batcher=1)
        await settle()
        await scene.batcher.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in results)
        assert (await other).result == -3

    play(scenario, limits=ONE_BY_ONE, instances=2)


@pytest.mark.parametrize(
    ("configured", "threads", "gpus", "expected"),
    [("auto", 1, 0, 1), ("auto", 2, 0, 2), ("auto", 64, 0, MOST_INSTANCES), ("auto", 8, 1, 1), ("auto", 8, 4, 4),
     ("3", 8, 0, 3), ("2", 1, 0, 2), ("2", 1, 1, 2), ("2", 1, 4, 8)],
)  # fmt: skip
def test_the_number_of_instances(configured: str, threads: int, gpus: int, expected: int) -> None:
    assert instances_of(configured, threads, gpus) == expected


def test_threads_are_shared_by_the_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    assert instances_of("auto", 0, gpus=0) == 4
    assert Placement("cpu", 0, 2).threads_of_instance == 2
    assert Placement("cpu", 8, 4).threads_of_instance == 2
    assert Placement("cpu", 1, 4).threads_of_instance == 1


def test_a_batch_knows_whether_it_is_alone() -> None:
    occupancy = Occupancy()
    with occupancy.batch() as first, occupancy.batch() as second:
        assert (first, second) == (True, False)
    with occupancy.batch() as third:
        assert third


def opened() -> None:
    """Wait until no session is being opened."""
    for thread in threading.enumerate():
        if thread.name == "open-session":
            thread.join(30)


def test_the_session_for_instances_is_opened_once_and_awaited_by_no_batch() -> None:
    begun, go_on = threading.Event(), threading.Event()
    calls: list[None] = []

    def opener() -> str:
        calls.append(None)
        begun.set()
        assert go_on.wait(30)
        return "part"

    session = InstanceSession("clean/1 predict.onnx", "whole", opener)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: session.get(), range(64))) == ["whole"] * 64
        assert begun.wait(30)
        go_on.set()
        opened()
        assert list(pool.map(lambda _: session.get(), range(64))) == ["part"] * 64
    assert len(calls) == 1


@pytest.mark.parametrize("cause", ["the graph", "the thread"])
def test_a_session_that_cannot_be_opened_again_leaves_the_first(
    cause: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : no memory is left\nfor it")

    if cause == "the thread":
        monkeypatch.setattr(threading.Thread, "start", fail)
    session = InstanceSession("clean/1 predict.onnx", "whole", fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert session.get() == "whole"
            opened()
    [record] = caplog.records
    assert record.getMessage().startswith("clean/1 predict.onnx cannot be opened again for batches at the same time: ")
    assert "no memory is left" in record.getMessage()


def test_answers_do_not_depend_on_the_instance(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = read_bundle(toy.write_bundle(tmp_path_factory.mktemp("bundles"), "v", 1))
    engine = Engine(bundle, Placement("cpu", 2, 2))
    samples = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)
    for graph in (engine.predict, engine.explain):  # until a batch begins beside another, one session is open
        assert graph._beside is not None
        assert graph._beside._session is graph._session
        graph._beside.get()
        opened()
        assert graph._beside.get().get_session_options().intra_op_num_threads == 1
        assert graph._session.get_session_options().intra_op_num_threads == 2
    for graph in (engine.predict, engine.explain):
        inputs = graph.prepare([Job(samples), Job(samples[:20_000])])
        occupied = Occupancy()
        with pytest.MonkeyPatch.context() as patch, occupied.batch():
            patch.setattr("speakerlens.serving.engine.session._occupancy", occupied)
            beside = graph.compute(inputs)
        for one, other in zip(graph.compute(inputs), beside, strict=True):
            for first, second in zip(one.arrays(), other.arrays(), strict=True):
                assert_allclose(first, second, rtol=1e-4, atol=1e-6)
