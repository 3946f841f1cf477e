"""A corpus of one's own recordings: a folder per speaker, and folders of interference."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from speakerlens.training.data.manifest import SHORTEST_UTTERANCE, Kind, Split, write_corpus
from speakerlens.training.data.prepare.collection import Collection, collection_pieces, musan, recordings, rirs
from speakerlens.training.data.prepare.folder_settings import FolderSettings, check_settings
from speakerlens.training.data.prepare.grouping import compiled, joined, same_content
from speakerlens.training.data.prepare.inspection import Source, passed_over, read_whole
from speakerlens.training.data.prepare.pieces import REMEDY, TOO_QUIET, Piece, convert, split_randomly, too_short
from speakerlens.training.data.prepare.speakers import Speaker, list_speakers
from speakerlens.training.data.prepare.survey import BAD_FILES, Finding, Survey, describe, every, some
from speakerlens.training.errors import UserError
from speakerlens.training.files import building


def prepare_folder(out: Path, settings: FolderSettings, console: Console) -> None:
    """Make a corpus in `out`: 16 kHz mono WAV and FLAC files stay in place, all others are converted.

    All files are read whole before anything is written.

    Raises:
        UserError: a setting is wrong, a folder or file is missing, or more files than allowed are damaged or too short;
            the message names them all.
    """
    check_settings(settings)
    survey = Survey()
    with building(out) as folder:
        speakers = list_speakers(settings, survey)
        collections = _collections(settings)
        speech, *others = _read(speakers, collections, settings, survey, console)
        pieces = _speech_pieces(speakers, speech, settings, survey)
        for collection, sources in zip(collections, others, strict=True):
            pieces += collection_pieces(collection, sources, settings.shares)
        clips = convert(pieces, folder, console)
        survey.write(folder)
        corpus = write_corpus(folder, clips)
    if summary := survey.summary():
        console.print(summary, soft_wrap=True, markup=False, highlight=False)
    console.print(f"{out}: {describe(corpus)}", soft_wrap=True, markup=False)


def _read(
    speakers: Sequence[Speaker],
    collections: Sequence[Collection],
    settings: FolderSettings,
    survey: Survey,
    console: Console,
) -> list[dict[Path, Source]]:
    """Read all files whole; return the usable ones of speech, then of each collection, and report the others.

    Raises:
        UserError: more files than allowed cannot be used; names them all.
    """
    jobs = [("speech", [path for speaker in speakers for path in speaker.paths], settings.channel)]
    jobs += [(collection.name, collection.paths, collection.channel) for collection in collections]
    usable: list[dict[Path, Source]] = []
    problems = []
    for what, paths, channel in jobs:
        sources, refused = read_whole(paths, what, console, channel)
        cut = {
            path: f"{path}: cut short, holds {source.seconds:g} s of {source.facts.promised:g} s"
            for path, source in sources.items()
            if source.facts.cut_short
        }
        survey.add(Finding.UNREADABLE, refused.values())
        survey.add(Finding.CUT, cut.values())
        usable.append({path: source for path, source in sources.items() if path not in cut})
        if bad := [*refused.values(), *cut.values()]:
            problems.append(f"{len(bad)} of {len(paths)} files cannot be used: {every(bad)}")
    for collection in collections:
        if collection.others:
            survey.note(f"{collection.where}: passed over, by suffix: {passed_over(collection.others)}")
    _check_bad("\n".join(problems), "remove or repair them", settings, survey)
    for sources in usable[1:]:
        survey.add(Finding.SAME, map(_listed, same_content(sources.values())))
    return usable


def _check_bad(problem: str, remedy: str, settings: FolderSettings, survey: Survey) -> None:
    """Raise UserError with a problem, if there is one, where more files are bad than may be left out."""
    bad = sum(len(survey.names(finding)) for finding in BAD_FILES)
    if problem and bad > settings.allow_bad:
        joint = "" if problem.endswith("\n") else "; "
        raise UserError(f"{problem}{joint}{remedy}, or leave the bad files out with --allow-bad {bad}")


def _speech_pieces(
    speakers: Sequence[Speaker], sources: dict[Path, Source], settings: FolderSettings, survey: Survey
) -> list[Piece]:
    """Assign each speaker's sessions to splits, then join the files of a split into utterances of `min_seconds`."""
    if not settings.min_seconds:
        alone = [(source,) for source in sources.values()]
        sources = {source.path: source for (source,) in _usable(alone, settings, survey)}
    sources = _under_one_name(speakers, sources, settings, survey)
    pieces: list[Piece] = []
    short: dict[str, str] = {}
    few: dict[str, str] = {}
    for speaker in speakers:
        usable = {
            name: [sources[path] for path in paths if path in sources] for name, paths in speaker.sessions.items()
        }
        sessions = joined({name: members for name, members in usable.items() if members})
        own = [source for members in sessions.values() for source in members]
        survey.add(Finding.SAME, map(_listed, same_content(own)))
        if len(sessions) == 2 and not speaker.outside:
            survey.add(Finding.TWO_SESSIONS, [speaker.name])
        if len(sessions) < (1 if speaker.outside else 2):
            few[speaker.name] = f"{speaker.name} ({len(sessions)}: {some(sessions)})"
            continue
        for split, part in _split(list(sessions.values()), speaker, settings).items():
            utterances = _join(part, settings.min_seconds)
            if settings.min_seconds:
                utterances = _usable(utterances, settings, survey)
            if not utterances:
                length = sum(source.seconds for source in part)
                short.setdefault(speaker.name, f"{speaker.name} ({length:.1f} s for {split})")
            kind: Kind = "speech" if speaker.outside else "utterance"
            place = Path("outsiders" if speaker.outside else "speech") / speaker.name
            pieces += [
                Piece(utterance, place / f"{split}-{index:04d}.flac", kind, split, speaker.name)
                for index, utterance in enumerate(utterances)
            ]
    _check_speakers(list(few.values()), list(short.values()), settings)
    lacking = few | short
    survey.add(Finding.FEW, lacking.values())
    if len({piece.speaker for piece in pieces if piece.kind == "utterance"} - lacking.keys()) < 2:
        raise UserError(f"{settings.speech}: after leaving out bad files, fewer than 2 speakers have enough")
    return [piece for piece in pieces if piece.speaker not in lacking]


def _check_speakers(few: Sequence[str], short: Sequence[str], settings: FolderSettings) -> None:
    """Raise UserError naming the speakers that have too little, unless bad files may be left out, and they along."""
    if settings.allow_bad:
        return
    if few:
        raise UserError(
            f"{settings.speech}: every speaker needs at least two sessions, one of them for test: {some(few)}; "
            "sub-folders are sessions, as are files of the same content: --group-by chooses others, such as "
            "--group-by '.+' for every file by itself"
        )
    if short:
        raise UserError(
            f"{settings.speech}: speakers with too little for one utterance of {settings.min_seconds:g} s in each of "
            f"train, dev and test (an outsider in one of them): {some(short)}; give more files or a smaller "
            "--min-seconds"
        )


def _under_one_name(
    speakers: Sequence[Speaker], sources: Mapping[Path, Source], settings: FolderSettings, survey: Survey
) -> dict[Path, Source]:
    """Return the sources without those that two speakers have; raise UserError if they may not be left out."""
    owners = {path: speaker.name for speaker in speakers for path in speaker.paths}
    shared = [group for group in same_content(sources.values()) if len({owners[source.path] for source in group}) > 1]
    wrong = {source.path for group in shared for source in group}
    for group in shared:
        for source in group:
            other = next(o.path for o in group if owners[o.path] != owners[source.path])
            survey.add(Finding.TWO_SPEAKERS, [f"{source.path}: as {other}"])
    _check_bad(
        f"{len(wrong)} files have the same content under two speakers: {every(map(_listed, shared))}" if shared else "",
        "remove those that are wrong",
        settings,
        survey,
    )
    return {path: source for path, source in sources.items() if path not in wrong}


def _listed(group: Sequence[Source]) -> str:
    return " = ".join(str(source.path) for source in group)


def _usable(
    utterances: Sequence[tuple[Source, ...]], settings: FolderSettings, survey: Survey
) -> list[tuple[Source, ...]]:
    """Return the utterances that are long enough for the network and not silent; report the others.

    Raises:
        UserError: more are bad than allowed; names them all.
    """
    usable, bad = [], []
    for utterance in utterances:
        seconds, path = sum(source.seconds for source in utterance), utterance[0].path
        if seconds < SHORTEST_UTTERANCE:
            bad.append(too_short(path, seconds))
            survey.add(Finding.TOO_SHORT, bad[-1:])
        elif all(source.facts.peak < TOO_QUIET for source in utterance):
            bad.append(f"{path}: is digital silence as 16-bit mono")
            survey.add(Finding.SILENT, bad[-1:])
        else:
            usable.append(utterance)
    problem = f"{len(bad)} of {len(utterances)} utterances cannot be used: {every(bad)}" if bad else ""
    _check_bad(problem, REMEDY, settings, survey)
    return usable


def _split(
    sessions: Sequence[Sequence[Source]], speaker: Speaker, settings: FolderSettings
) -> dict[Split, list[Source]]:
    """Assign a speaker's sessions to splits; of two sessions one is test, and dev is a part of the other.

    An outsider has one split.
    """
    if speaker.outside:
        return {speaker.outside: _in_order(sessions)}
    shares, whole = settings.shares.wanted, dict[Split, list[Sequence[Source]]]()
    if len(sessions) == 2:
        test, rest = sorted(sessions, key=len)
        whole = {"test": [test]}
        sessions = list(joined({str(source.path): [source] for source in rest}).values())
        del shares["test"]
    seconds = [sum(source.seconds for source in session) for session in sessions]
    parts = split_randomly(sessions, speaker.name, settings.shares.seed, shares, seconds, settings.min_seconds)
    return {split: _in_order(part) for split, part in (parts | whole).items()}


def _in_order(sessions: Sequence[Sequence[Source]]) -> list[Source]:
    return sorted((source for session in sessions for source in session), key=lambda source: source.path)


def _join(sources: Sequence[Source], min_seconds: float) -> list[tuple[Source, ...]]:
    """Join consecutive files into utterances of at least `min_seconds`; a shorter rest joins the last utterance."""
    utterances: list[tuple[Source, ...]] = []
    pending: tuple[Source, ...] = ()
    for source in sources:
        pending += (source,)
        if sum(part.seconds for part in pending) >= min_seconds:
            utterances.append(pending)
            pending = ()
    if pending and utterances:
        utterances[-1] += pending
    return utterances


def _collections(settings: FolderSettings) -> list[Collection]:
    pattern = compiled(settings.group_interference_by, "--group-interference-by")
    own = [recordings(kind, folder, kind, pattern) for kind, folder in settings.interference.items()]
    unpacked = musan(settings.musan) if settings.musan else []
    return [*own, *unpacked, *([rirs(settings.rirs)] if settings.rirs else [])]
