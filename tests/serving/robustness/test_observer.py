"""What answers tell of robustness, with toy bundles in this process; and what is done with samples of them."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from speakerlens.measures.prediction import scores
from speakerlens.measures.saliency import concentration, deletion_index, estimated_interference
from speakerlens.measures.sound import join, measure_sound
from speakerlens.serving.config import Config
from speakerlens.serving.engine.admission import Admission
from speakerlens.serving.engine.graphs import ExplainedPrediction
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import RequestError
from speakerlens.serving.metrics.robustness import AGREEMENTS, SNR_BANDS
from speakerlens.serving.models.registry import Selector
from speakerlens.serving.pipeline.decode import RawAudio
from speakerlens.serving.pipeline.explain import ExplainOptions, displayed
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.observer import MonitoringScope
from speakerlens.serving.pipeline.query import Query
from speakerlens.serving.pipeline.windows import WindowCutter
from speakerlens.serving.robustness import observer, sampling
from speakerlens.serving.robustness.observer import RobustnessObserver
from speakerlens.serving.robustness.sampling import band_of
from tests.serving import toy
from tests.serving.fakes import until
from tests.serving.harness import talk, voice
from tests.serving.models.test_repository import World
from tests.serving.models.test_repository import play as play_world

SEEDS = {"act-da": 3, "clean": 0, "da": 2}


class Scene:
    """Three toy variants, loaded, and the core that answers."""

    def __init__(self, world: World, core: Pipeline) -> None:
        self.models, self.scheduler, self.core = world.models, world.scheduler, core
        self._value = world.metrics.registry.get_sample_value

    def value(self, name: str, **labels: str) -> float:
        return self._value(f"speakerlens_{name}", labels) or 0.0

    def compared(self, first: str, second: str) -> float:
        pair = {"first": first, "second": second}
        labels = (pair | {"snr_band": band, "agreement": how} for band, how in product(SNR_BANDS, AGREEMENTS))
        return sum(self.value("shadow_comparisons_total", **each) for each in labels)

    async def ask(self, samples: NDArray[np.float32], *names: str, rate: int = 16_000, **fields: Any) -> None:
        audio = RawAudio(samples.astype("<f4").tobytes(), "float32", rate, samples.ndim)
        query = Query(audio=audio, models=tuple(map(Selector, names)), **fields)
        with self.models.lease(query.models) as models:
            await self.core.identify(query, models)

    async def settled(self, name: str, least: float, **labels: str) -> None:
        await until(lambda: self.value(name, **labels) >= least)


def play(root: Path, scenario: Callable[[Scene], Coroutine[Any, Any, None]], **settings: Any) -> None:
    for variant, seed in SEEDS.items():
        toy.write_bundle(root, variant, 1, seed)
    config = Config(bundles=root, **{"window_seconds": 10.0, **settings})

    async def run(world: World) -> None:
        with ThreadPoolExecutor(2) as codec:
            watcher = RobustnessObserver(config, world.metrics, world.models, world.scheduler)
            await world.load()
            try:
                await scenario(
                    Scene(
                        world,
                        Pipeline(
                            world.models,
                            config,
                            world.metrics,
                            codec,
                            watcher,
                            Admission(config.max_in_flight, config.codec_threads),
                        ),
                    )
                )
            finally:
                await watcher.close()
        assert not world.models._leases

    play_world(root, run)


def test_an_answer_gets_the_measures_of_the_baseline(tmp_path: Path) -> None:
    audio = talk(2.5)

    async def scenario(scene: Scene) -> None:
        await scene.ask(audio, "clean", "da")
        await scene.settled("prediction_entropy_nats_count", 1, variant="da")
        sound = measure_sound(audio)
        assert scene.value("input_duration_seconds_sum") == pytest.approx(2.5)
        assert scene.value("input_speech_ratio_sum") == pytest.approx(sound.speech_share)
        assert scene.value("input_bandwidth_hertz_sum") == pytest.approx(sound.bandwidth_hz)
        assert scene.value("input_clipped_ratio_count") == 1
        for name in ("snr_decibels", "level_decibels"):
            assert scene.value(f"input_{name}_bucket", le="+Inf") == 1
        for variant in ("clean", "da"):
            logits = toy.expected(toy.weights(SEEDS[variant]), audio)["logits"]
            found = scores(logits, toy.TEMPERATURE)
            names = ("top1_probability", "margin", "entropy_nats")
            for name, expected in zip(names, found, strict=True):
                total = scene.value(f"prediction_{name}_sum", variant=variant)
                assert total == pytest.approx(expected, rel=1e-3, abs=1e-5), name
            decision = "known" if logits.max() / toy.SCALE >= toy.THRESHOLD else "unknown"
            assert scene.value("prediction_decisions_total", variant=variant, decision=decision) == 1
            assert scene.value("drift_samples", variant=variant, measure="best_logit") == 1
            assert scene.value("drift_samples", variant=variant, measure="snr_db") == 1
        assert scene.value("prediction_margin_count", variant="act-da") == 0
        assert scene.value("saliency_concentration_count", variant="clean") == 0

    play(tmp_path, scenario)


def test_clipping_is_measured_before_resampling_and_mixing(tmp_path: Path) -> None:
    """Resampled, the flat tops are gone."""
    samples = talk(2.0)
    loud = np.clip(6.0 * samples / np.abs(samples).max(), -1.0, 1.0)
    quiet = 0.5 * samples / np.abs(samples).max()
    share = float(np.mean(np.abs(loud) == 1.0))
    assert share > 0.01

    async def scenario(scene: Scene) -> None:
        await scene.ask(loud, "da", rate=48_000)
        await scene.settled("input_clipped_ratio_count", 1)
        assert scene.value("input_clipped_ratio_sum") == pytest.approx(share, rel=0.1)
        await scene.ask(np.stack([loud, quiet], axis=1), "da", rate=16_000)
        await scene.settled("input_clipped_ratio_count", 2)
        assert scene.value("input_clipped_ratio_sum") == pytest.approx(1.5 * share, rel=0.1)
        await scene.ask(quiet, "da", rate=8_000)
        await scene.settled("input_clipped_ratio_count", 3)
        assert scene.value("input_clipped_ratio_sum") == pytest.approx(1.5 * share, rel=0.1)

    play(tmp_path, scenario)


def test_only_maps_of_the_top_speaker_are_measured(tmp_path: Path) -> None:
    audio = talk(2.0)
    answer = toy.expected(toy.weights(SEEDS["clean"]), audio)
    best = int(answer["logits"].argmax())

    async def scenario(scene: Scene) -> None:
        for target in (None, toy.speakers()[best], toy.speakers()[best - 1]):
            await scene.ask(audio, "clean", explain=ExplainOptions(target_speaker=target))
        await scene.settled("prediction_margin_count", 3, variant="clean")
        assert scene.value("saliency_concentration_count", variant="clean") == 2
        [model] = scene.models.select([Selector("clean")])
        maps = tuple(answer[f"saliency_s{stage}"].astype(np.float32) for stage in range(1, 5))
        features = answer["features"].astype(np.float32)
        explained = ExplainedPrediction(answer["logits"], answer["embedding"], best, features, maps)
        fused = displayed(model.bundle, explained, "fused")
        index = deletion_index(fused, estimated_interference(features))
        assert scene.value("saliency_concentration_sum", variant="clean") == pytest.approx(
            2 * concentration(fused), rel=1e-3
        )
        assert scene.value("saliency_deletion_index_sum", variant="clean") == pytest.approx(2 * index, rel=1e-3)

    play(tmp_path, scenario)


def test_long_audio_counts_once_with_all_its_windows(tmp_path: Path) -> None:
    audio = np.concatenate([talk(4.0), 0.001 * voice(5.0)])

    async def scenario(scene: Scene) -> None:
        await scene.ask(audio, "clean")
        await scene.settled("prediction_margin_count", 1, variant="clean")
        shape = scene.core.windowing(scene.models.select([Selector("clean")]))
        cutter = WindowCutter(shape)
        whole = join([measure_sound(window.samples) for window in cutter.feed(audio) + cutter.finish()])
        assert scene.value("input_duration_seconds_sum") == pytest.approx(9.0)
        assert scene.value("input_speech_ratio_count") == 1
        assert scene.value("input_speech_ratio_sum") == pytest.approx(whole.speech_share)

    play(tmp_path, scenario, window_seconds=3.0)


@pytest.mark.parametrize(
    ("monitoring", "counted"),
    [(MonitoringScope.ANSWER, (1, 1)), (MonitoringScope.SOUND, (1, 0)), (MonitoringScope.NOTHING, (0, 0))],
)
def test_the_monitoring_scope_limits_what_is_counted(
    tmp_path: Path, monitoring: MonitoringScope, counted: tuple[int, int]
) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.ask(talk(1.0), "clean", monitoring=monitoring)
        await scene.ask(talk(1.0), "da")
        await scene.settled("prediction_margin_count", 1, variant="da")
        found = scene.value("input_duration_seconds_count"), scene.value("prediction_margin_count", variant="clean")
        assert found == (counted[0] + 1, counted[1])
        # An answer that names no speaker is not sampled.
        expected = 2 if monitoring is MonitoringScope.ANSWER else 1
        await scene.settled("background_total", expected, work="shadow", outcome="done")
        assert scene.value("background_total", work="shadow", outcome="done") == expected

    play(tmp_path, scenario, shadow_share=1.0)


def test_a_failing_measure_fails_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(observer, "measure_sound", broken)

    async def scenario(scene: Scene) -> None:
        await scene.ask(talk(7.0), "clean")
        await scene.settled("prediction_margin_count", 1, variant="clean")
        assert scene.value("input_duration_seconds_count") == 0
        assert "the sound of a request could not be measured" in caplog.text
        monkeypatch.setattr("speakerlens.serving.robustness.observer.scores", broken)
        await scene.ask(talk(1.0), "clean")
        await until(lambda: "an answer could not be measured" in caplog.text)

    play(tmp_path, scenario, window_seconds=3.0)


def test_sampled_maps_of_requests_without_maps(tmp_path: Path) -> None:
    """Of those who asked for none; those who did are measured anyway."""

    async def scenario(scene: Scene) -> None:
        for _ in range(3):
            await scene.ask(talk(1.0), "clean", "da")
        await scene.ask(talk(1.0), "clean", explain=ExplainOptions())
        await scene.settled("background_total", 3, work="saliency", outcome="done")
        await scene.settled("saliency_deletion_index_count", 4, variant="clean")
        assert scene.value("saliency_deletion_index_count", variant="da") == 3
        assert scene.value("saliency_deletion_index_count", variant="act-da") == 0
        assert scene.value("drift_samples", variant="da", measure="concentration") == 3
        assert scene.value("answers_total", variant="da", kind="explain") == 0
        assert scene.value("batch_size_sum", variant="da", kind="explain") == 3

    play(tmp_path, scenario, saliency_share=1.0)


def test_shadow_compares_all_variants_on_the_same_audio(tmp_path: Path) -> None:
    audio = [talk(1.0, seed=seed) for seed in range(6)]

    async def scenario(scene: Scene) -> None:
        for samples in audio:
            await scene.ask(samples, "da")
        await scene.settled("background_total", 6, work="shadow", outcome="done")
        for first, second in (("act-da", "clean"), ("act-da", "da"), ("clean", "da")):
            expected: dict[tuple[str, str], int] = {}
            for samples in audio:
                best = [toy.expected(toy.weights(SEEDS[name]), samples)["logits"].argmax() for name in (first, second)]
                key = band_of(measure_sound(samples).snr_db), "same" if best[0] == best[1] else "different"
                expected[key] = expected.get(key, 0) + 1
            for (band, agreement), count in expected.items():
                labels = {"first": first, "second": second, "snr_band": band, "agreement": agreement}
                assert scene.value("shadow_comparisons_total", **labels) == count
        # The one that was asked is not computed again, and shadows are no answers.
        assert scene.value("batch_size_sum", variant="da", kind="predict") == 6
        assert scene.value("batch_size_sum", variant="clean", kind="predict") == 6
        assert scene.value("answers_total", variant="clean", kind="predict") == 0
        assert scene.value("prediction_margin_count", variant="clean") == 0

    play(tmp_path, scenario, shadow_share=1.0)


def test_a_failing_variant_does_not_stop_the_comparison(tmp_path: Path) -> None:
    """Too loud audio makes the toy answer with NaN."""
    toy.write_bundle(tmp_path, "aa-frail", 1, seed=5, nan_peak=0.5)

    async def scenario(scene: Scene) -> None:
        loud = talk(1.0)
        loud *= 0.9 / np.abs(loud).max()
        await scene.ask(loud, "clean")
        await scene.settled("background_total", 1, work="shadow", outcome="failed")
        assert scene.compared("clean", "da") == scene.compared("act-da", "clean") == 1
        assert scene.compared("aa-frail", "clean") == 0

    play(tmp_path, scenario, shadow_share=1.0)


def test_variants_are_compared_on_common_speakers_only(tmp_path: Path) -> None:
    """Two models disagree only about speakers that both know."""
    toy.write_bundle(tmp_path, "new", 1, seed=0, speakers=[f"new-{name}" for name in toy.speakers()])

    async def scenario(scene: Scene) -> None:
        await scene.ask(talk(1.0), "clean")
        await scene.settled("background_total", 1, work="shadow", outcome="done")
        assert scene.value("batch_size_sum", variant="new", kind="predict") == 1
        assert scene.compared("clean", "new") == scene.compared("act-da", "new") == 0
        assert scene.compared("clean", "da") == 1

    play(tmp_path, scenario, shadow_share=1.0)


def test_one_window_with_speech_is_sampled_of_long_audio(tmp_path: Path) -> None:
    audio = np.concatenate([0.001 * voice(5.0), talk(10.0)])

    async def scenario(scene: Scene) -> None:
        await scene.ask(audio, "clean")
        before = scene.value("batch_size_sum", variant="clean", kind="predict")
        await scene.settled("background_total", 1, work="shadow", outcome="done")
        await scene.settled("background_total", 1, work="saliency", outcome="done")
        assert scene.value("batch_size_sum", variant="da", kind="predict") == 1
        assert scene.value("batch_size_sum", variant="clean", kind="explain") == 1
        assert scene.value("batch_size_sum", variant="clean", kind="predict") == before

    play(tmp_path, scenario, window_seconds=3.0, shadow_share=1.0, saliency_share=1.0)


def test_samples_wait_and_skip_models_removed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits keeps no model; the sample of one that is gone is dropped."""

    async def scenario(scene: Scene) -> None:
        idle = False
        monkeypatch.setattr(type(scene.scheduler), "idle", property(lambda _: idle))
        await scene.ask(talk(1.0), "clean")
        await scene.ask(talk(1.0), "da")
        await asyncio.sleep(5 * sampling.POLL_SECONDS)
        assert scene.value("background_total", work="saliency", outcome="done") == 0
        assert not scene.models._leases
        scene.models.take_out(scene.models.select([Selector("clean")])[0])
        idle = True
        await scene.settled("background_total", 1, work="saliency", outcome="done")
        assert scene.value("background_total", work="saliency", outcome="dropped") == 1
        assert scene.value("saliency_concentration_count", variant="da") == 1
        assert scene.value("saliency_concentration_count", variant="clean") == 0

    play(tmp_path, scenario, saliency_share=1.0)


def test_answers_of_all_variants_are_compared_when_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(scene: Scene) -> None:
        monkeypatch.setattr(type(scene.scheduler), "idle", False)
        await scene.ask(talk(1.0))
        await scene.settled("background_total", 1, work="shadow", outcome="done")

    play(tmp_path, scenario, shadow_share=1.0)


def test_a_single_variant_is_not_compared(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        for name in ("clean", "da"):
            scene.models.take_out(scene.models.select([Selector(name)])[0])
        await scene.ask(talk(1.0))
        await scene.settled("prediction_margin_count", 1, variant="act-da")
        assert all(
            scene.value("background_total", work="shadow", outcome=outcome) == 0
            for outcome in ("done", "dropped", "failed")
        )

    play(tmp_path, scenario, shadow_share=1.0)


def test_a_variant_that_fails_is_counted_by_name(tmp_path: Path) -> None:
    """Too loud audio makes the toy answer with NaN."""
    toy.write_bundle(tmp_path, "frail", 1, seed=5, nan_peak=0.5)

    async def scenario(scene: Scene) -> None:
        loud = talk(1.0)
        loud *= 0.9 / np.abs(loud).max()
        await scene.ask(loud, "clean", "frail")
        assert scene.value("model_failures_total", variant="frail", code="INTERNAL") == 1
        with pytest.raises(FloatingPointError):
            await scene.ask(loud, "frail")
        assert scene.value("model_failures_total", variant="frail", code="INTERNAL") == 2
        assert scene.value("model_failures_total", variant="clean", code="INTERNAL") == 0
        await scene.settled("input_duration_seconds_count", 1)
        assert scene.value("prediction_margin_count", variant="frail") == 0

    play(tmp_path, scenario)


def test_a_full_queue_is_not_a_model_failure(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        [model] = scene.models.select([Selector("clean")])
        full = replace(model.predict._limits, max_waiting=0)
        model.predict._limits = full
        with pytest.raises(RequestError):
            await scene.ask(talk(1.0), "clean", priority=Priority.BULK)
        assert scene.value("model_failures_total", variant="clean", code="RESOURCE_EXHAUSTED") == 0
        await scene.ask(talk(1.0), "clean", "da")
        assert scene.value("model_failures_total", variant="clean", code="RESOURCE_EXHAUSTED") == 1

    play(tmp_path, scenario)


def test_nothing_is_measured_without_a_metrics_page(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.ask(talk(1.0), "clean")
        await asyncio.sleep(0.2)
        assert scene.value("answers_total", variant="clean", kind="predict") == 1
        assert scene.value("input_duration_seconds_count") == 0
        assert scene.value("batch_size_sum", variant="da", kind="predict") == 0
        assert scene.value("batch_size_sum", variant="clean", kind="explain") == 0

    play(tmp_path, scenario, metrics=False, shadow_share=1.0, saliency_share=1.0)


def test_snr_bands_include_their_lower_border() -> None:
    borders = {-3.0: "below_0", 0.0: "0_to_5", 5.0: "5_to_10", 10.0: "10_to_20", 20.0: "above_20", math.inf: "unknown"}
    assert {snr: band_of(snr) for snr in borders} == borders
    assert band_of(math.nan) == "unknown"
    assert band_of(4.999) == "0_to_5"
