"""What of an answer is drawn and saved: maps, with what to call them."""

from collections.abc import Iterator
from dataclasses import dataclass

from speakerlens.results import Answer, Explanation, Identification
from speakerlens.voices import Comparison


@dataclass(frozen=True, eq=False)
class Shown:
    """The maps of one model for one utterance."""

    name: str
    """The model, such as `act-da@3`."""
    verdict: str
    """What it says of the utterance, in a few words."""
    subject: str
    """Whose score the maps explain, where the verdict does not say so; begins with a space."""
    explanation: Explanation


def of_identification(result: Identification) -> list[Shown]:
    """Return what is shown of one utterance: the answers that have maps."""
    return [
        Shown(answer.name, _identified(answer), _subject(answer, answer.explanation), answer.explanation)
        for answer in result.answers
        if answer.explanation
    ]


def of_comparison(result: Comparison) -> Iterator[list[Shown]]:
    """Yield what is shown of the audio and, where there is one, of the other utterance."""
    voice = "the same voice" if result.same else "another voice"
    verdict = f"{voice}, {result.score:.3f} (threshold {result.threshold:.3f})"
    for explanation in (result.explanation, result.other_explanation):
        if explanation:
            yield [Shown(result.name, verdict, "", explanation)]


def _identified(answer: Answer) -> str:
    verdict = f"{answer.best.speaker}  {answer.best.probability:.1%}"
    return verdict if answer.known else f"{verdict} (unknown: below the model's threshold)"


def _subject(answer: Answer, explanation: Explanation) -> str:
    target = explanation.target_speaker
    if target == answer.best.speaker:
        return ""
    found = next((score for score in answer.speakers if score.speaker == target), None)
    return f" for {target}" + (f" ({found.probability:.1%})" if found else "")
