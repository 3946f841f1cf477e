"""Saliency maps with the texts that are shown beside them, for plots and saved arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from speakerlens import palette
from speakerlens.results import Answer, Comparison, Explanation
from speakerlens.search_results import SearchAnswer


@dataclass(frozen=True, eq=False)
class CaptionedMaps:
    """The maps of one model for one utterance."""

    name: str
    """The model, such as `act-da@3`."""
    verdict: str
    """The model's answer in a few words."""
    question: str
    """Whose score the maps explain, such as `why f1?`."""
    colour: str
    """Of the variant, as in all other figures."""
    explanation: Explanation


def of_answers(answers: Sequence[Answer]) -> list[CaptionedMaps]:
    """Return the maps of one utterance, in the order of all figures; answers without maps are left out."""
    ordered = sorted(answers, key=lambda answer: (palette.rank(answer.variant), answer.version))
    colours = palette.looks(answer.variant for answer in ordered)
    return [
        CaptionedMaps(
            answer.name,
            _verdict(answer),
            _question(answer, answer.explanation),
            colours[answer.variant].colour,
            answer.explanation,
        )
        for answer in ordered
        if answer.explanation
    ]


def of_comparison(result: Comparison) -> Iterator[list[CaptionedMaps]]:
    """Yield the maps of the audio and, if there is one, of the other utterance."""
    same = "same speaker" if result.same else "different speaker"
    verdict = f"{same}, {result.score:.3f} (threshold {result.threshold:.3f})"
    colour = palette.looks([result.variant])[result.variant].colour
    for explanation in (result.explanation, result.other_explanation):
        if explanation:
            yield [CaptionedMaps(result.name, verdict, "why this score?", colour, explanation)]


def of_search(result: SearchAnswer) -> list[CaptionedMaps]:
    """Return the maps of the best candidate's score, and of its difference to the second."""
    colour = palette.looks([result.variant])[result.variant].colour
    found = []
    for suffix, explanation in (("", result.explanation), ("/difference", result.difference)):
        if explanation:
            question = f"why {explanation.target_speaker}?"
            if suffix and len(result.candidates) > 1:
                question = f"why {explanation.target_speaker} and not {result.candidates[1].speaker}?"
            found.append(CaptionedMaps(f"{result.name}{suffix}", result.summary, question, colour, explanation))
    return found


def _verdict(answer: Answer) -> str:
    verdict = f"{answer.best.speaker}  {answer.best.probability:.1%}"
    return verdict if answer.known else f"{verdict} (unknown: below the model's threshold)"


def _question(answer: Answer, explanation: Explanation) -> str:
    target = explanation.target_speaker
    found = next((score for score in answer.speakers if score.speaker == target), None)
    beside = f" ({found.probability:.1%})" if found and target != answer.best.speaker else ""
    return f"why {target}?{beside}"
