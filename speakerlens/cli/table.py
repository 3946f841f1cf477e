"""Print answers as tables on standard output (needs rich, of the extra `client`)."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from speakerlens import palette
from speakerlens.cli.document import peak
from speakerlens.enrolment_results import EnrolledSpeaker
from speakerlens.identification import Identification
from speakerlens.model_results import Catalogue, ModelInfo
from speakerlens.results import OPTIMISTIC, Answer, AudioInfo, ThresholdBasis
from speakerlens.search_results import SearchResult


def print_identification(name: str, result: Identification, least_segments: int = 1) -> None:
    """Print one file's answers: a block of rows per model, the best speaker first.

    Args:
        name: of the file.
        result: the answers.
        least_segments: a timeline with fewer is not printed.
    """
    explained = any(answer.explanation for answer in result.answers)
    audio = result.audio
    _print_audio(name, audio)
    table = Table()
    for heading in ("variant", "speaker"):
        table.add_column(heading, no_wrap=True)
    for heading in ("probability", "score"):
        table.add_column(heading, justify="right", no_wrap=True)
    if explained:
        table.add_column("saliency peak", no_wrap=True)
    answers = sorted(result.answers, key=lambda answer: (palette.rank(answer.variant), answer.version))
    for answer in answers:
        for rank, score in enumerate(answer.speakers):
            first = rank == 0
            cells = [answer.name if first else "", score.speaker, f"{score.probability:.1%}", f"{score.logit:.2f}"]
            if explained:
                cells.append(_peak(answer) if first else "")
            style = ("bold" if answer.known else "bold yellow") if first else "dim"
            table.add_row(*_texts(cells), style=style, end_section=rank == len(answer.speakers) - 1)
    if result.answers:
        _print(table)
    if audio.speech is False:
        _print(Text("no speech was found; the answers are of all of the audio"))
    for failure in result.failures:
        _print(Text(f"{failure.name} failed ({failure.code}): {failure.message}"))
    for answer in answers:
        _print_remarks(answer, least_segments)


def _print_audio(name: str, audio: AudioInfo) -> None:
    channels = _plural(audio.channels, "channel")
    used = channels if audio.channel is None else f"channel {audio.channel} of {audio.channels}"
    reach = "" if audio.bandwidth_hz is None else f", sound up to {audio.bandwidth_hz / 1000:.1f} kHz"
    _print(Text(f"{name}  ({audio.seconds:.2f} s, {audio.sample_rate} Hz, {used}{reach})"))


def print_search(name: str, result: SearchResult) -> None:
    """Print the candidates of a search, best first, the decision, and why no speaker is named."""
    _print_audio(name, result.audio)
    table = Table()
    for heading, justify in (
        ("speaker", "left"),
        ("probability", "right"),
        ("log-likelihood ratio", "right"),
        ("cosine", "right"),
        ("exemplars", "right"),
    ):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    calibrated = result.threshold is not None
    for rank, each in enumerate(result.candidates):
        scores = [f"{each.probability:.1%}", f"{each.log_likelihood_ratio:.2f}"] if calibrated else ["", ""]
        cells = [each.speaker, *scores, f"{each.cosine:.3f}", str(each.exemplars)]
        style = "dim" if rank else "bold" if result.speaker else "bold yellow"
        table.add_row(*_texts(cells), style=style)
    if result.candidates:
        _print(table)
    searched = _plural(result.gallery, "speaker")
    promise = "" if result.false_alarm is None else f", {result.false_alarm:.1%} false alarms promised"
    _print(Text(f"{result.name}, {searched} searched{promise}: {result.speaker or result.decision}"))
    for reason in result.reasons:
        _print(Text(f"{reason.code}: {reason.text}"))
    if result.speaker is None and result.gallery:
        for outlook in result.outlook:
            share = f"{outlook.miss:.0%} ({outlook.low:.0%} to {outlook.high:.0%})"
            _print(Text(f"enrolled speakers are missed in {share}: {outlook.condition}"))


def _print_remarks(answer: Answer, least_segments: int) -> None:
    if len(answer.timeline) >= least_segments:
        _print_timeline(answer)
    for stage, each in (answer.explanation.listening if answer.explanation else {}).items():
        kept = f"{each.kept_score:.1%} for what the {stage} map keeps (drop {each.drop:.0%})"
        line = f"{answer.name}: {each.score:.1%}, {kept}, {each.removed_score:.1%} for what it removes"
        _print(Text(line))
    if not answer.known:
        line = f"{answer.name}: no speaker reaches the model's threshold; the best is {answer.best.speaker}"
        _print(Text(line))
    if answer.threshold_basis is ThresholdBasis.KNOWN:
        _print(Text(f"{answer.name}: {OPTIMISTIC}"))


def _print_timeline(answer: Answer) -> None:
    table = Table(title=Text(f"{answer.name}: timeline"), title_justify="left")
    for heading, justify in (("from", "right"), ("to", "right"), ("speaker", "left"), ("probability", "right")):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for each in answer.timeline:
        speaker = each.speaker if each.known else f"{each.speaker} (unknown)"
        cells = [f"{each.start_s:.1f} s", f"{each.end_s:.1f} s", speaker, f"{each.probability:.0%}"]
        table.add_row(*_texts(cells), style="" if each.known else "yellow")
    _print(table)


def print_catalogue(address: str, catalogue: Catalogue) -> None:
    """Print the loaded models, a row each, and the server's limits."""
    _print(Text(f"models at {address}"))
    table = Table()
    for heading in ("variant", "speakers", "stages", "rate", "threshold", "revision"):
        table.add_column(heading, justify="right" if heading in ("speakers", "rate") else "left")
    for model in catalogue.models:
        stages = ", ".join(stage.stage for stage in model.stages)
        cells = [
            f"{model.variant}@{model.version}",
            "none" if model.without_classifier else str(len(model.speakers)),
            stages,
            f"{model.sample_rate} Hz",
            _threshold(model),
        ]
        table.add_row(*_texts([*cells, _revision(model.code_revision)]))
    _print(table)
    limits = catalogue.limits
    line = f"{limits.min_seconds:g} to {limits.max_seconds:g} s and at most {limits.max_bytes / 2**20:g} MiB a request"
    _print(Text(f"{catalogue.provider}; {line}"))


def _revision(text: str) -> str:
    """Return the revision of the code once where training and export were of the same, such as `1ba2fa3`."""
    revisions = {part.rpartition(" ")[2] for part in text.split(", ")}
    return revisions.pop() if len(revisions) == 1 else text


def _threshold(model: ModelInfo) -> str:
    calibration = model.calibration
    if calibration is None:
        return ""
    noises = f", {_plural(calibration.noises, 'noise')}" if calibration.noises else ""
    rests = f"{_plural(calibration.speakers, 'speaker')}{noises}"
    optimistic = " (optimistic)" if calibration.threshold_basis is ThresholdBasis.KNOWN else ""
    basis = "known" if calibration.threshold_basis is ThresholdBasis.KNOWN else "out-of-set"
    return f"{calibration.threshold:.3f} from {basis} {rests}{optimistic}"


def print_speakers(speakers: Sequence[EnrolledSpeaker]) -> None:
    """Print the enrolled speakers, a row for each model."""
    table = Table()
    for heading in ("speaker", "model", "utterances", "enrolled", "usable"):
        table.add_column(heading, justify="right" if heading == "utterances" else "left")
    for speaker in speakers:
        for rank, model in enumerate(speaker.models):
            cells = [speaker.speaker if rank == 0 else "", f"{model.variant}@{model.version}", str(model.utterances)]
            state = "yes" if model.usable else "no: its bundle is not loaded"
            end = rank == len(speaker.models) - 1
            table.add_row(*_texts([*cells, model.enrolled, state]), end_section=end)
    _print(table if speakers else Text("no speaker is enrolled"))


def _peak(answer: Answer) -> str:
    if not answer.explanation or not answer.explanation.maps:
        return ""
    _, seconds, hertz = peak(next(iter(answer.explanation.maps.values())))
    return f"{seconds:.2f} s, {hertz / 1000:.2f} kHz"


def _texts(cells: Iterable[str]) -> list[Text]:
    # A plain string would be parsed as markup, and a speaker may be called "[anna]".
    return [Text(cell) for cell in cells]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _print(renderable: RenderableType) -> None:
    # A line of text stays one line, also where it is not printed to a terminal.
    Console(file=sys.stdout, highlight=False).print(renderable, soft_wrap=isinstance(renderable, Text))
