"""Which model answers, and how long it stays: without a network, with real engines."""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from speakerlens.serving.config import Config
from speakerlens.serving.engine.graphs import Job
from speakerlens.serving.engine.placement import Placement
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.engine.session import Engine
from speakerlens.serving.errors import NotFoundError
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.loader import build_model
from speakerlens.serving.models.reader import read_bundle
from speakerlens.serving.models.registry import Model, Models, Selector
from tests.serving import toy
from tests.serving.harness import voice

Scenario = Callable[["World"], Coroutine[Any, Any, None]]


class World:
    """Models, and a maker of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metrics = Metrics()
        self.scheduler = Scheduler("cpu")
        self.models = Models(self.metrics)

    def add(self, variant: str, version: int) -> Model:
        folder = self.root / variant / str(version)
        if not folder.exists():
            toy.write_bundle(self.root, variant, version)
        bundle = read_bundle(folder)
        engine = Engine(bundle, Placement("cpu", 1))
        model = build_model(bundle, engine, self.scheduler, Config(), self.metrics)
        self.models.put(model)
        return model

    def answering(self, *selectors: Selector) -> list[str]:
        return [model.bundle.name for model in self.models.select(selectors)]


def play(root: Path, scenario: Scenario) -> None:
    async def run() -> None:
        world = World(root)
        try:
            await scenario(world)
        finally:
            await world.models.close()
            world.scheduler.close()

    asyncio.run(run())


def test_the_newest_version_is_chosen_by_number(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        for version in (9, 10, 2):
            world.add("v", version)
        world.add("u", 1)
        assert world.answering(Selector("v")) == ["v/10"]
        assert world.answering() == ["u/1", "v/10"]
        assert world.answering(Selector("v", 9), Selector("u")) == ["v/9", "u/1"]
        assert [model.bundle.name for model in world.models] == ["u/1", "v/2", "v/9", "v/10"]
        world.models.take_out(world.models.select([Selector("v", 10)])[0])
        assert world.answering(Selector("v")) == ["v/9"]
        with pytest.raises(NotFoundError, match=r"models\[0\].version: no version 10 of v; there are 2, 9"):
            world.models.select([Selector("v", 10)])

    play(tmp_path, scenario)


def sessions() -> int:
    """How many graphs are open in this process, also those that wait for the garbage collector."""
    return sum(type(thing) is onnxruntime.InferenceSession for thing in gc.get_objects())


def test_a_leased_model_outlives_its_replacement(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The old model answers those who have it; the new one answers who asks now; then the old one goes."""
    caplog.set_level("INFO")

    async def scenario(world: World) -> None:
        world.add("v", 1)
        with world.models.lease([Selector("v")]) as [old]:
            with world.models.lease([Selector("v")]) as [same]:
                assert old is same
                new = world.add("v", 1)
            assert world.models.select([Selector("v")]) == (new,)
            assert (await old.predict.submit(Job(voice(1.0)))).result.logits.shape == (12,)
            assert "unloading" not in caplog.text
        assert "unloading v/1" in caplog.text
        assert (await new.predict.submit(Job(voice(1.0)))).result.logits.shape == (12,)

    play(tmp_path, scenario)


@pytest.mark.parametrize("leased", [True, False])
def test_unused_graphs_are_closed_at_once(tmp_path: Path, leased: bool) -> None:
    """The graphs are closed when the last lease ends, not before and not at the next garbage collection."""

    async def scenario(world: World) -> None:
        gc.collect()
        world.add("v", 2)
        one = sessions()
        old = world.add("v", 1)
        await old.predict.submit(Job(voice(1.0)))
        two = sessions()
        assert two > one
        with world.models.lease([Selector("v", 1)] if leased else [Selector("v", 2)]):
            world.models.take_out(old)
            del old
            await asyncio.sleep(0.05)
            assert sessions() == (two if leased else one)
        await asyncio.sleep(0.05)
        assert sessions() == one
        page = [sample.labels["version"] for each in world.metrics.model_info.collect() for sample in each.samples]
        assert page == ["2"]

    gc.disable()
    try:
        play(tmp_path, scenario)
    finally:
        gc.enable()


def test_an_unknown_version_leases_nothing(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        model = world.add("v", 1)
        with pytest.raises(NotFoundError), world.models.lease([Selector("v"), Selector("v", 7)]):
            pass
        assert not world.models._leases
        with pytest.raises(ZeroDivisionError), world.models.lease([Selector("v")]):
            raise ZeroDivisionError
        assert not world.models._leases
        assert world.models.select([]) == (model,)

    play(tmp_path, scenario)
