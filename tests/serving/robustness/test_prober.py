"""The prober among models that are full, broken, or go while they are asked, on queues of the test's own."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from speakerlens.serving.bundle import Bundle
from speakerlens.serving.engine.graphs import ComparedJob, Comparison, ExplainedPrediction, Job, Prediction
from speakerlens.serving.engine.queue import JobResult, Priority
from speakerlens.serving.errors import Reason, ResourceExhaustedError, UnavailableError
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.reader import read_bundle
from speakerlens.serving.models.registry import Model, Models
from speakerlens.serving.robustness.probes import Prober
from tests.serving import toy
from tests.serving.fakes import until

Errors = Callable[[int], Exception | None]


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test on an event loop of its own."""

    @wraps(test)
    def run(*fixtures: Any, **named: Any) -> None:
        asyncio.run(test(*fixtures, **named))

    return run


class Queue:
    """Answers as the toy network; `errors` says of each call which error to raise instead, if any."""

    def __init__(self, kind: str, errors: Errors) -> None:
        self._kind = kind
        self._errors = errors
        self.calls = 0
        self.at_once = self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def submit(self, job: Any, deadline: float | None, priority: Priority) -> JobResult[Any]:
        assert (deadline, priority) == (None, Priority.BULK)
        self.calls += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            error = self._errors(self.calls)
            if error is not None:
                raise error
            return JobResult(self._answer(job), 0.0, 0.0)
        finally:
            self.at_once -= 1

    def _answer(self, job: Job | ComparedJob) -> object:
        found = {name: value.astype(np.float32) for name, value in toy.expected(toy.weights(0), job.audio).items()}
        maps = tuple(found[f"saliency_s{stage}"] for stage in (1, 2, 3, 4))
        if self._kind == "verify":
            return Comparison(found["embedding"], 1.0, found["features"], maps)
        if self._kind == "predict":
            return Prediction(found["logits"], found["embedding"])
        label = int(found["logits"].argmax())
        return ExplainedPrediction(found["logits"], found["embedding"], label, found["features"], maps)


class FakeModel:
    """A model without an engine."""

    def __init__(self, bundle: Bundle, errors: Errors = lambda _: None) -> None:
        self.bundle = bundle
        self.predict, self.explain, self.verify = (Queue(kind, errors) for kind in ("predict", "explain", "verify"))
        self.closed = False

    async def close(self) -> None:
        self.closed = True


class World:
    """Models, a prober of them that runs, and what it shows."""

    def __init__(self, *models: FakeModel, seconds: float = 600.0) -> None:
        self._codec = ThreadPoolExecutor(1)
        metrics = Metrics()
        self.registry = metrics.registry
        self.models = Models(metrics)
        for model in models:
            self.put(model)
        prober = Prober(self.models, metrics.robustness.probes, self._codec, seconds)
        self._task = asyncio.create_task(prober.run())

    def put(self, model: FakeModel) -> None:
        self.models.put(cast(Model, model))

    def take_out(self, model: FakeModel) -> None:
        self.models.take_out(cast(Model, model))

    def value(self, name: str, variant: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"speakerlens_probe_{name}", {"variant": variant, **labels})

    def clean(self, variant: str) -> float | None:
        return self.value("accuracy_ratio", variant, interference="clean", snr="")

    def ended(self, variant: str) -> bool:
        return bool(self.value("round_timestamp_seconds", variant))

    async def __aenter__(self) -> "World":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        self._codec.shutdown()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between probes are a multiple of their duration, which is long on a busy machine."""
    monkeypatch.setattr("speakerlens.serving.robustness.probes.PAUSES", 0.0)


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Bundle]:
    def write(variant: str, version: int = 1, probes: bool = True) -> Bundle:
        folder = toy.write_bundle(tmp_path, variant, version)
        if probes:
            toy.add_probes(folder)
        return read_bundle(folder)

    return write


@on_a_loop
async def test_probes_run_one_at_a_time(bundle: Callable[..., Bundle]) -> None:
    first, second = FakeModel(bundle("a")), FakeModel(bundle("b"))
    async with World(first, second) as world:
        await until(lambda: world.ended("a") and world.ended("b"))
        assert world.clean("a") == world.clean("b") == 1.0
    for model in (first, second):
        assert (model.predict.calls, model.explain.calls, model.verify.calls) == (8, 8, 2)
        assert model.predict.most_at_once == model.explain.most_at_once == 1


@on_a_loop
async def test_a_broken_engine_fails_its_probes_and_no_others(bundle: Callable[..., Bundle]) -> None:
    def broken(_call: int) -> Exception:
        return UnavailableError(Reason.NOT_SERVING, "the engine of a/1 predict is broken")

    async with World(FakeModel(bundle("a"), broken), FakeModel(bundle("b"))) as world:
        await until(lambda: world.ended("a") and world.ended("b"))
        assert (world.clean("a"), world.clean("b")) == (0.0, 1.0)
        assert world.value("utterances_total", "a", outcome="failed") == 8
        assert world.value("utterances_total", "b", outcome="failed") == 0


@on_a_loop
async def test_probes_wait_for_a_full_queue(bundle: Callable[..., Bundle]) -> None:
    def full(call: int) -> Exception | None:
        return ResourceExhaustedError(Reason.QUEUE_FULL, "later", 0.001) if call % 3 else None

    model = FakeModel(bundle("a"), full)
    async with World(model) as world:
        await until(lambda: world.ended("a"))
        assert world.clean("a") == 1.0
        assert world.value("utterances_total", "a", outcome="failed") == 0
    assert model.predict.calls == 3 * 8


@on_a_loop
async def test_a_model_removed_during_its_round_shows_nothing(bundle: Callable[..., Bundle]) -> None:
    """It stays loaded until it has answered; then the round is over, and shows nothing."""
    model = FakeModel(bundle("a"))
    model.explain.gate.clear()
    async with World(model) as world:
        await until(lambda: model.explain.calls == 1)
        assert world.value("round_timestamp_seconds", "a") == 0.0, "no round yet"
        world.take_out(model)
        assert world.value("round_timestamp_seconds", "a") is None
        await asyncio.sleep(0.05)
        assert not model.closed
        model.explain.gate.set()
        await until(lambda: model.closed)
        await asyncio.sleep(0.05)
        assert model.explain.calls == 1
        assert world.clean("a") is None
        assert world.value("round_timestamp_seconds", "a") is None


@on_a_loop
async def test_a_model_removed_before_its_round_is_not_probed(bundle: Callable[..., Bundle]) -> None:
    """Nothing is left on the page that says a round of it is late."""
    first, second = FakeModel(bundle("a")), FakeModel(bundle("b"))
    first.explain.gate.clear()
    async with World(first, second) as world:
        await until(lambda: first.explain.calls == 1)
        assert world.value("round_timestamp_seconds", "b") == 0.0
        world.take_out(second)
        assert world.value("round_timestamp_seconds", "b") is None
        world.put(second)
        assert world.value("round_timestamp_seconds", "b") == 0.0
        world.put(FakeModel(bundle("b", 2, probes=False)))
        assert world.value("round_timestamp_seconds", "b") is None
        first.explain.gate.set()


@on_a_loop
async def test_a_newer_version_is_probed_at_once_an_older_never(bundle: Callable[..., Bundle]) -> None:
    old, new, last = FakeModel(bundle("a", 1)), FakeModel(bundle("a", 3)), FakeModel(bundle("a", 4, probes=False))
    async with World(old) as world:
        await until(lambda: world.ended("a"))
        world.put(new)
        assert world.clean("a") is None, "what was found is of another version"
        await until(lambda: world.ended("a"))
        assert (old.predict.calls, new.predict.calls) == (8, 8)
        older = FakeModel(bundle("a", 2))
        world.put(older)
        world.take_out(old)
        assert world.clean("a") == 1.0
        world.put(last)
        assert world.clean("a") is None
        await asyncio.sleep(0.05)
        assert older.predict.calls == 0
        assert new.predict.calls == 8


@on_a_loop
async def test_rounds_repeat_after_the_period(bundle: Callable[..., Bundle]) -> None:
    model = FakeModel(bundle("a"))
    async with World(model, seconds=0.2):
        await until(lambda: model.predict.calls >= 24)


@on_a_loop
async def test_an_unexpected_error_ends_only_its_round(
    bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failed = []

    def fail(*_: object) -> None:
        failed.append(1)
        raise KeyError("nobody knows")

    monkeypatch.setattr("speakerlens.serving.robustness.probes._summarise", fail)
    async with World(FakeModel(bundle("a")), seconds=0.1) as world:
        await until(lambda: len(failed) >= 2)
        assert world.clean("a") is None
    assert "probing a/1 failed unexpectedly" in caplog.text
