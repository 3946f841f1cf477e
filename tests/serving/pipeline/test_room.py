"""What is refused for want of room, and what is not: models of one request, and windows that are asked again."""

from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speakerlens.serving.config import Config
from speakerlens.serving.engine.graphs import PREDICTED, Job
from speakerlens.serving.errors import Reason, ResourceExhaustedError
from speakerlens.serving.models.registry import Model, Selector
from speakerlens.serving.pipeline.answers import Answer, Failed
from speakerlens.serving.pipeline.decode import RawAudio
from speakerlens.serving.pipeline.explain import ExplainOptions
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.query import Query
from tests.serving import toy
from tests.serving.harness import talk, voice
from tests.serving.models.test_repository import World, play


def asked(root: Path, scenario: Callable[[Pipeline, World], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Plays a scenario with the core and its loaded models."""

    async def run(world: World) -> None:
        await world.load()
        with ThreadPoolExecutor(2) as codec:
            await scenario(world.identifier(codec, Config(bundles=root, **settings)), world)

    play(root, run)


def query(samples: np.ndarray, *names: str, explain: bool = False) -> Query:
    return Query(
        audio=RawAudio(samples.astype("<f4").tobytes(), "float32", 16_000, 1),
        models=tuple(map(Selector, names)),
        explain=ExplainOptions() if explain else None,
    )


def fill(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves no room in a model's queue."""

    def refuse(*_: object) -> None:
        raise ResourceExhaustedError(Reason.QUEUE_FULL, f"{model.bundle.name} is full", 0.5)

    monkeypatch.setattr(model.predict, "check_room", refuse)


def test_model_without_room_fails_by_name_while_another_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, variant in enumerate("ab"):
        toy.write_bundle(tmp_path, variant, 1, seed=seed)

    async def scenario(core: Pipeline, world: World) -> None:
        with world.models.lease([]) as models:
            fill(models[0], monkeypatch)
            full, answered = (await core.identify(query(voice(1.0), "a", "b"), models)).answers
            assert isinstance(full, Failed)
            assert (full.variant, full.code, full.message) == ("a", "RESOURCE_EXHAUSTED", "a/1 is full")
            assert isinstance(answered, Answer)
            fill(models[1], monkeypatch)
            with pytest.raises(ResourceExhaustedError, match="a/1 is full"):
                await core.identify(query(voice(1.0), "a", "b"), models)

    asked(tmp_path, scenario)


def test_windows_of_admitted_request_find_room_in_full_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among them those that are explained again, when all the work has been done but this."""
    toy.write_bundle(tmp_path, "v", 1, seed=1)
    audio = np.concatenate([talk(3.0, seed=1), talk(12.0, seed=6)])
    again: list[Job] = []

    async def scenario(core: Pipeline, world: World) -> None:
        with world.models.lease([]) as models:
            submit = models[0].explain.submit

            async def watched(job: Job, *arguments: Any) -> Any:
                if job.target != PREDICTED:
                    again.append(job)
                return await submit(job, *arguments)

            monkeypatch.setattr(models[0].explain, "submit", watched)
            [answer] = (await core.identify(query(audio, "v", explain=True), models)).answers
            assert isinstance(answer, Answer)
        assert any(np.array_equal(job.audio, audio[: len(job.audio)]) for job in again), "the first was not among them"

    asked(tmp_path, scenario, window_seconds=3.0, queue_size=1)


def test_a_refusal_for_want_of_a_place_says_when_to_come_again(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path, "v", 1, seed=1)

    async def scenario(core: Pipeline, world: World) -> None:
        with (
            world.models.lease([]) as models,
            core.admit(query(voice(1.0)), models, ()),
            pytest.raises(ResourceExhaustedError) as caught,
        ):
            await core.identify(query(voice(1.0)), models)
        assert caught.value.reason is Reason.IN_FLIGHT
        assert caught.value.retry_after_s

    asked(tmp_path, scenario, max_in_flight=1)
