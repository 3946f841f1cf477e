"""Saliency maps with the texts that are shown beside them, for plots and saved arrays."""

from collections.abc import Iterator
from dataclasses import dataclass

from speakerlens.results import Answer, Comparison, Explanation, Identification


@dataclass(frozen=True, eq=False)
class CaptionedMaps:
    """The maps of one model for one utterance."""

    name: str
    """The model, such as `act-da@3`."""
    verdict: str
    """The model's answer in a few words."""
    subject: str
    """Whose score the maps explain, where the verdict does not say so; empty, or begins with a space."""
    explanation: Explanation


def of_identification(result: Identification) -> list[CaptionedMaps]:
    """Return the maps of one utterance; answers without maps are left out."""
    return [
        CaptionedMaps(answer.name, _verdict(answer), _subject(answer, answer.explanation), answer.explanation)
        for answer in result.answers
        if answer.explanation
    ]


def of_comparison(result: Comparison) -> Iterator[list[CaptionedMaps]]:
    """Yield the maps of the audio and, if there is one, of the other utterance."""
    same = "same speaker" if result.same else "different speaker"
    verdict = f"{same}, {result.score:.3f} (threshold {result.threshold:.3f})"
    for explanation in (result.explanation, result.other_explanation):
        if explanation:
            yield [CaptionedMaps(result.name, verdict, "", explanation)]


def _verdict(answer: Answer) -> str:
    verdict = f"{answer.best.speaker}  {answer.best.probability:.1%}"
    return verdict if answer.known else f"{verdict} (unknown: below the model's threshold)"


def _subject(answer: Answer, explanation: Explanation) -> str:
    target = explanation.target_speaker
    if target == answer.best.speaker:
        return ""
    found = next((score for score in answer.speakers if score.speaker == target), None)
    return f" for {target}" + (f" ({found.probability:.1%})" if found else "")
