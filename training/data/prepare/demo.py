"""The demo corpus: synthetic speakers, background voices, noises, music and rooms, made from a seed."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from rich.console import Console
from rich.progress import track

from speakerlens.training.data.audio import SAMPLE_RATE, write_audio
from speakerlens.training.data.interference import RESPONSE_SAMPLES
from speakerlens.training.data.manifest import Clip, Kind, Split, load_corpus, write_corpus
from speakerlens.training.data.prepare.demo_interference import NOISES, make_music, make_noise
from speakerlens.training.data.prepare.demo_voices import OUTSIDERS, SPEAKERS, Line, Voice, distinct_voices, speak, vary
from speakerlens.training.data.prepare.pieces import in_processes
from speakerlens.training.data.prepare.rooms import make_room, room_simulator
from speakerlens.training.errors import UserError
from speakerlens.training.files import building, is_free

RECORD = "demo.json"
_RECIPE = 3
"""Incremented whenever the same settings would give a different corpus."""

FEWEST_SPEAKERS = 24
# Of the voices that are no speakers, in turn.
_OUTSIDER_SPLITS: tuple[Split, ...] = ("train", "dev", "test", "train", "dev")
_SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class DemoSettings:
    """Settings that determine the corpus bit for bit.

    Attributes:
        speakers: how many; fewer, but at least 24, where voices of the installed espeak-ng do not differ.
        utterances_per_speaker: about 70 % of them train, 10 % dev and 20 % test.
        seed: of all random numbers.
        recipe: version of the procedure.
    """

    speakers: int = 30
    utterances_per_speaker: int = 20
    seed: int = 0
    recipe: int = _RECIPE


def prepare_demo(out: Path, settings: DemoSettings, console: Console) -> None:
    """Make the demo corpus in `out`, or reuse the one made there with the same settings.

    Raises:
        UserError: `out` holds something else, a package of the extra `demo` is missing, or too few voices differ.
    """
    _check_settings(settings)
    if _is_made(out, settings):
        console.print(f"{out}: the corpus made with the same settings is reused", soft_wrap=True, markup=False)
        return
    room_simulator()  # a missing package is reported before the voices are synthesised
    begin = time.monotonic()
    with building(out) as folder:
        clips = [*_synthesise_speech(folder, settings, console), *_synthesise_interference(folder, settings, console)]
        corpus = write_corpus(folder, clips)
        (folder / RECORD).write_text(json.dumps(asdict(settings), indent=2) + "\n")
    utterances = sum(len(corpus.utterances(split)) for split in _SPLITS)
    console.print(
        f"{out}: {len(corpus.speakers)} speakers, {utterances} utterances, "
        f"{len(clips) - utterances} files of interference, in {time.monotonic() - begin:.1f} s",
        soft_wrap=True,
        markup=False,
    )


def split_counts(count: int) -> dict[Split, int]:
    """Return how many of `count` items, at least 3, go to each split: 10 % dev, 20 % test, at least one each."""
    test, dev = max(1, round(0.2 * count)), max(1, round(0.1 * count))
    return {"train": count - dev - test, "dev": dev, "test": test}


def _check_settings(settings: DemoSettings) -> None:
    if not 2 <= settings.speakers <= len(SPEAKERS):
        raise UserError(f"--speakers must be from 2 to {len(SPEAKERS)}, not {settings.speakers}")
    if settings.utterances_per_speaker < 3:
        raise UserError(
            f"--utterances-per-speaker must be at least 3, one for each split, not {settings.utterances_per_speaker}"
        )
    if settings.seed < 0:
        raise UserError(f"--seed must be at least 0, not {settings.seed}")


def _is_made(out: Path, settings: DemoSettings) -> bool:
    """Return whether `out` is the finished corpus; raise UserError if it is neither that nor free."""
    if is_free(out):
        return False
    try:
        found = json.loads((out / RECORD).read_text())
    except (OSError, ValueError):
        raise UserError(f"{out}: is neither empty nor a demo corpus; choose another folder with --out") from None
    if found != asdict(settings):
        raise UserError(
            f"{out}: holds a demo corpus made with other settings ({_describe(found)}); remove it or choose "
            f"another folder with --out to make one with {_describe(asdict(settings))}"
        )
    load_corpus(out)
    return True


def _describe(settings: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())


def _synthesise_speech(folder: Path, settings: DemoSettings, console: Console) -> Iterator[Clip]:
    """Synthesise all speech; no test sentence occurs in the train or dev split."""
    speakers, outsiders = _choose_voices(settings, console)
    rng = np.random.default_rng([settings.seed, 1])
    counts = split_counts(settings.utterances_per_speaker)
    sentences = iter(draw_sentences(sum(8 * count for count in counts.values()), rng))
    stock = {split: [next(sentences) for _ in range(8 * count)] for split, count in counts.items()}
    scripts: list[list[tuple[Split, Kind, Line]]] = [
        [
            (split, "utterance", line)
            for split in _SPLITS
            for line in _script(voice, folder / "speech" / _name(voice), split, stock[split], counts[split], rng)
        ]
        for voice in speakers
    ]
    for place, voice in enumerate(outsiders):
        # Dev and test have out-of-set speakers for the threshold; all of train are interfering talkers.
        split = _OUTSIDER_SPLITS[place % len(_OUTSIDER_SPLITS)]
        count = min(4, len(stock[split]))
        lines = _script(voice, folder / "background" / _name(voice), split, stock[split], count, rng)
        scripts.append([(split, "speech", line) for line in lines])
    spoken = speak([[line for _, _, line in script] for script in scripts])
    transcript = []
    for script, seconds in zip(scripts, track(spoken, "voices", len(scripts), console=console), strict=True):
        for (split, kind, line), duration in zip(script, seconds, strict=True):
            transcript.append(f"{line.path.relative_to(folder).as_posix()}\t{line.text}\n")
            yield Clip(line.path.relative_to(folder), kind, split, 0.0, duration, line.path.parent.name)
    (folder / "transcript.tsv").write_text("".join(transcript))


def _choose_voices(settings: DemoSettings, console: Console) -> tuple[list[Voice], list[Voice]]:
    """Return the speakers and the background voices, without those that sound like an earlier one."""
    wanted = [*SPEAKERS[: settings.speakers], *OUTSIDERS]
    distinct, same = distinct_voices(wanted)
    speakers = [voice for voice in distinct if voice in SPEAKERS]
    outsiders = [voice for voice in distinct if voice in OUTSIDERS]
    if same:
        console.print(
            f"left out, as they sound like other voices in this espeak-ng: {', '.join(map(_name, same))}",
            soft_wrap=True,
        )
    if len(speakers) < min(settings.speakers, FEWEST_SPEAKERS) or len(outsiders) < 3:
        raise UserError(
            f"only {len(speakers)} speakers and {len(outsiders)} background voices of this espeak-ng differ; at least "
            f"{min(settings.speakers, FEWEST_SPEAKERS)} and 3 are needed: install another version of espeakng-loader"
        )
    return speakers, outsiders


def _name(voice: Voice) -> str:
    return voice.variant.lower()


def _script(
    voice: Voice, folder: Path, split: Split, stock: Sequence[str], count: int, rng: np.random.Generator
) -> list[Line]:
    chosen = rng.permutation(len(stock))[:count]
    return [vary(voice, folder / f"{split}-{i:02d}.flac", stock[index], rng) for i, index in enumerate(chosen)]


_NOISES_OF_A_KIND: dict[Split, int] = {"train": 3, "dev": 1, "test": 2}
_PIECES: dict[Split, int] = {"train": 14, "dev": 4, "test": 6}
_ROOMS: dict[Split, int] = {"train": 24, "dev": 6, "test": 10}


def _synthesise_interference(folder: Path, settings: DemoSettings, console: Console) -> Iterator[Clip]:
    """Make noises, music and rooms; every file has its own random generator, so none depends on another."""
    wanted: list[tuple[Kind, Split, str, int]] = []
    for split in _SPLITS:
        wanted += [("noise", split, sort, i) for sort in NOISES for i in range(_NOISES_OF_A_KIND[split])]
        wanted += [("music", split, "piece", i) for i in range(_PIECES[split])]
        wanted += [("rir", split, "room", i) for i in range(_ROOMS[split])]
    paths = [Path(kind) / f"{split}-{sort}-{index:02d}.flac" for kind, split, sort, index in wanted]
    jobs = [
        (folder / path, kind, sort, [settings.seed, 2, number])
        for number, ((kind, _, sort, _), path) in enumerate(zip(wanted, paths, strict=True))
    ]
    made = track(in_processes(_make_interference, jobs), "interference", len(jobs), console=console)
    for (kind, split, _, _), path, seconds in zip(wanted, paths, made, strict=True):
        yield Clip(path, kind, split, 0.0, seconds)


def _make_interference(job: tuple[Path, Kind, str, list[int]]) -> float:
    """Write a file of interference and return its length in seconds."""
    path, kind, sort, seed = job
    rng = np.random.default_rng(seed)
    if kind == "noise":
        samples = make_noise(sort, 6.0, rng)
    elif kind == "music":
        samples = make_music(8.0, rng)
    else:
        _, samples = make_room(RESPONSE_SAMPLES / SAMPLE_RATE, rng)
    write_audio(path, samples)
    return len(samples) / SAMPLE_RATE


_PEOPLE = (
    "the old gardener", "my younger cousin", "a quiet librarian", "our new neighbour", "the night porter",
    "a tired courier", "the village doctor", "her eldest brother", "the ferry captain", "a curious student",
    "the baker's wife", "their music teacher", "a young engineer", "the retired judge", "our tall goalkeeper",
)  # fmt: skip
_ACTIONS = (
    "carried", "repaired", "borrowed", "painted", "measured", "forgot", "photographed", "wrapped", "noticed",
    "polished", "described", "bought", "hid", "cleaned", "delivered", "weighed",
)  # fmt: skip
_QUALITIES = (
    "heavy", "yellow", "broken", "wooden", "narrow", "silver", "dusty", "round", "foreign", "borrowed", "tiny",
    "velvet", "crooked", "purple", "empty", "striped",
)  # fmt: skip
_THINGS = (
    "bicycle", "umbrella", "kettle", "violin", "suitcase", "ladder", "mirror", "lantern", "blanket", "telescope",
    "basket", "clock", "parcel", "drawer", "statue", "carpet", "teapot", "hammer",
)  # fmt: skip
_PLACES = (
    "behind the station", "near the frozen lake", "under the stone bridge", "in front of the museum",
    "at the corner shop", "beside the harbour wall", "across the busy street", "inside the greenhouse",
    "above the bakery", "along the gravel path", "outside the theatre", "on the upper deck",
    "between two tall houses", "by the garden gate",
)  # fmt: skip
_TIMES = (
    "before breakfast", "late on Thursday", "during the storm", "after the concert", "just as the rain stopped",
    "early this morning", "while everyone slept", "at half past seven", "throughout the summer",
    "when the bell rang", "shortly after midnight", "on the way home",
)  # fmt: skip
_WORDS = {
    "who": _PEOPLE,
    "did": _ACTIONS,
    "kind": _QUALITIES,
    "what": _THINGS,
    "where": _PLACES,
    "when": _TIMES,
}
_PATTERNS = (
    "{who} {did} the {kind} {what} {where}",
    "{when}, {who} {did} a {kind} {what}",
    "the {kind} {what} {where} was missing {when}",
    "nobody knew why {who} {did} that {kind} {what}",
    "did {who} leave the {kind} {what} {where}?",
    "{who} found a {kind} {what} and a {kind} {what} {when}",
    "please put the {kind} {what} {where} {when}",
)


def draw_sentences(count: int, rng: np.random.Generator) -> list[str]:
    """Return `count` different sentences of about eight to twelve words from a small grammar."""
    sentences: dict[str, None] = {}  # a set that keeps its order
    while len(sentences) < count:
        sentences[_draw_sentence(rng)] = None
    return list(sentences)


def _draw_sentence(rng: np.random.Generator) -> str:
    sentence = str(rng.choice(_PATTERNS))
    for slot, words in _WORDS.items():
        while f"{{{slot}}}" in sentence:
            sentence = sentence.replace(f"{{{slot}}}", str(rng.choice(words)), 1)
    return sentence[0].upper() + sentence[1:] + ("" if sentence.endswith("?") else ".")
