"""What an answer tells of how robust the service is: how its audio sounds, how sure the models are, where they look."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from speakerlens.measures.prediction import scores
from speakerlens.measures.saliency import concentration, deletion_index, estimated_interference
from speakerlens.measures.sound import Sound
from speakerlens.serving.bundle import Bundle
from speakerlens.serving.engine.graphs import ExplainedPrediction, Prediction
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.answers import known
from speakerlens.serving.pipeline.explain import displayed
from speakerlens.serving.pipeline.query import MonitoringScope, QueryOptions
from speakerlens.serving.pipeline.session import ModelOutput, SoundMeasures, WindowOutput
from speakerlens.serving.robustness.drift import Drift


@dataclass(frozen=True)
class MonitoredAnswer:
    """A stretch of audio that was answered.

    Attributes:
        models: that were asked.
        said: by each, or how it failed.
        sounds: how it sounds.
        seconds: how long it is.
        kept: a window of it in which somebody speaks, where samples are taken.
        clipped_share: of the audio as it was received; None where its sounds tell.
    """

    models: Sequence[Model]
    said: Sequence[ModelOutput | Exception]
    sounds: SoundMeasures
    seconds: float
    kept: WindowOutput | None
    clipped_share: float | None = None


class AnswerMeter:
    """Measures answers and counts what it finds, in any thread.

    Args:
        metrics: where it counts.
        drift: compares the same with what was usual when a bundle was made.
    """

    def __init__(self, metrics: Metrics, drift: Drift) -> None:
        self._page = metrics.page
        self._robustness = metrics.robustness
        self._drift = drift

    def answered(self, question: QueryOptions, answer: MonitoredAnswer, request_id: str | None) -> None:
        """Measures and counts an answer; waits for its sound."""
        sound = answer.sounds.whole()
        if sound is not None and answer.clipped_share is not None:
            sound = replace(sound, clipped_share=answer.clipped_share)
        if sound is not None:
            self._sounded(sound, answer.seconds, request_id)
        if question.monitoring is not MonitoringScope.ANSWER:
            return
        for model, said in zip(answer.models, answer.said, strict=True):
            if isinstance(said, Exception):
                continue
            self._predicted(model, said.prediction, request_id)
            if sound is not None:
                self._drift.saw(model.bundle, drifting(sound, answer.seconds))
            explained = said.prediction
            # The map of somebody whom the caller named says little of how the model came to its own answer.
            if isinstance(explained, ExplainedPrediction) and explained.target == explained.logits.argmax():
                self.explained(model, explained, request_id)

    def explained(self, model: Model, prediction: ExplainedPrediction, request_id: str | None) -> None:
        """Counts what a model looked at, by its best speaker's map."""
        bundle, saliency = model.bundle, self._robustness.saliency
        index, gini = looked(bundle, prediction)
        self._page.observe(saliency.deletion_index.labels(bundle.variant), index, request_id)
        self._page.observe(saliency.concentration.labels(bundle.variant), gini, request_id)
        self._drift.saw(bundle, {"deletion_index": index, "concentration": gini})

    def _sounded(self, sound: Sound, seconds: float, request_id: str | None) -> None:
        to = self._robustness.input
        for histogram, value in (
            (to.snr, sound.snr_db),
            (to.speech, sound.speech_share),
            (to.clipped, sound.clipped_share),
            (to.level, sound.level_dbfs),
            (to.bandwidth, sound.bandwidth_hz),
            (to.duration, seconds),
        ):
            self._page.observe(histogram, value, request_id)

    def _predicted(self, model: Model, prediction: Prediction, request_id: str | None) -> None:
        bundle, to = model.bundle, self._robustness.prediction
        logit = float(prediction.logits.max())
        found = scores(prediction.logits, bundle.temperature)
        for histogram, value in (
            (to.top1_probability, found.top1_probability),
            (to.margin, found.margin),
            (to.entropy, found.entropy),
        ):
            self._page.observe(histogram.labels(bundle.variant), value, request_id)
        to.decisions.labels(bundle.variant, "known" if known(model, logit) else "unknown").inc()
        self._drift.saw(bundle, found._asdict() | {"best_logit": logit})


def drifting(sound: Sound, seconds: float) -> dict[str, float]:
    """The measures of sound by the names that a baseline has for them; windows overlap, so `seconds` is what counts."""
    return {**asdict(sound), "seconds": seconds}


def looked(bundle: Bundle, prediction: ExplainedPrediction) -> tuple[float, float]:
    """Deletion index by the estimated floor, and concentration, of the fused map; NaN where they are not defined."""
    fused = displayed(bundle, prediction, "fused")
    return deletion_index(fused, estimated_interference(prediction.features)), concentration(fused)
