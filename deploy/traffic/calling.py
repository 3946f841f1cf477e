"""Calls at an even rate from several threads, and what became of them."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Self

from deploy.traffic.programme import CLEAN, Programme
from deploy.traffic.sounds import RATE, Samples, Sounds, mixture
from speakerlens import Answer, ClientError, SpeakerClient

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Load:
    """How much is asked.

    Attributes:
        rate: calls a second; fewer where the server does not keep up.
        callers: calls at a time.
        explain_share: of the calls, those that ask for a map.
        together: each call asks all variants, not one of them.
        seed: of all that is left to chance.
    """

    rate: float = 3.0
    callers: int = 4
    explain_share: float = 0.1
    together: bool = False
    seed: int = 0


@dataclass
class Counts:
    """What happened since the last look.

    Attributes:
        kind: of interference, now.
        snr_db: now; None where there is no interference.
        seconds: since the programme's beginning.
        outcomes: answers by variant: `right`, `wrong`, or `unknown`: the right one, but not above the threshold.
        failures: calls without an answer, by the client's error.
    """

    kind: str = CLEAN
    snr_db: float | None = None
    seconds: float = 0.0
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """For people: `1:05  noise 12 dB    15 answers, right: act-da 5/5, clean 2/10  1 Overloaded`."""
        heard = self.kind if self.snr_db is None else f"{self.kind} {self.snr_db:.0f} dB"
        answers = sum(each.total() for each in self.outcomes.values())
        right = ", ".join(f"{name} {each['right']}/{each.total()}" for name, each in sorted(self.outcomes.items()))
        failures = "".join(f"  {count} {name}" for name, count in sorted(self.failures.items()))
        return f"{clock(self.seconds)}  {heard:<14}{answers:>3} answers, right: {right or 'none'}{failures}"


class Traffic:
    """Plays a programme to a server, once, from the beginning of a `with` to the end of the programme or of the `with`.

    Args:
        address: HOST:PORT of the server.
        sounds: what is said, and what is heard beside it.
        programme: which interference when.
        variants: of the server; each call asks one.
        load: how much is asked.

    Raises:
        ValueError: there is no such interference among the sounds.
    """

    def __init__(self, address: str, sounds: Sounds, programme: Programme, variants: list[str], load: Load) -> None:
        if lacking := programme.kinds - sounds.kinds:
            there = ", ".join(sorted(sounds.kinds))
            raise ValueError(f"there is no {', '.join(sorted(lacking))} among the sounds, but {there}")
        self._client = SpeakerClient(address)
        self._sounds, self._programme, self._variants, self._load = sounds, programme, variants, load
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._counts = Counts()
        self._next = 0.0
        self._broken: Exception | None = None
        dice = [Random(f"{load.seed} {number}") for number in range(load.callers)]
        self._threads = [threading.Thread(target=self._call, args=(each,)) for each in dice]

    def playing(self) -> bool:
        """Whether the programme still goes on."""
        return any(thread.is_alive() for thread in self._threads)

    def wait(self, seconds: float) -> None:
        """Returns after so many seconds, or at the end of the programme.

        Raises:
            OSError: a sound cannot be read.
        """
        end = time.monotonic() + seconds
        while self.playing() and time.monotonic() < end:
            time.sleep(min(POLL_SECONDS, seconds))
        if self._broken is not None:
            raise self._broken

    def take(self) -> Counts:
        """What happened since this was asked last."""
        elapsed = time.monotonic() - self._started
        place, snr_db = self._programme.at(elapsed)
        with self._lock:
            counts, self._counts = self._counts, Counts()
        counts.kind, counts.snr_db, counts.seconds = self._programme.phases[place].kind, snr_db, elapsed
        return counts

    def _call(self, dice: Random) -> None:
        try:
            self._play(dice)
        except Exception as error:  # raised again where somebody waits
            self._broken = error
            self._ended.set()

    def _play(self, dice: Random) -> None:
        while (at := self._slot()) < self._programme.seconds:
            if self._ended.wait(max(0.0, self._started + at - time.monotonic())):
                return
            place, snr_db = self._programme.at(at)
            asked = self._variants if self._load.together else [dice.choice(self._variants)]
            utterance = self._sounds.utterance(dice.randrange(self._sounds.count))
            samples = utterance.samples
            if snr_db is not None:
                kind = self._programme.phases[place].kind
                samples = mixture(samples, self._sounds.interference(kind, utterance, dice), snr_db)
            self._ask(samples, utterance.speaker, asked, dice.random() < self._load.explain_share)

    def _slot(self) -> float:
        """When the next call is due, in seconds from the beginning; a slow server is asked less often, not later."""
        with self._lock:
            self._next = max(self._next + 1 / self._load.rate, time.monotonic() - self._started)
            return self._next

    def _ask(self, samples: Samples, speaker: str, variants: list[str], explain: bool) -> None:
        """Calls, and counts what became of it."""
        outcomes, failures = Counter[tuple[str, str]](), Counter[str]()
        try:
            said = self._client.identify(samples, rate=RATE, variants=variants, explain=explain)
        except ClientError as error:
            failures[type(error).__name__.removesuffix("Error")] += 1
        else:
            outcomes.update((answer.variant, _outcome(answer, speaker)) for answer in said.answers)
            failures.update(failure.code for failure in said.failures)
        with self._lock:
            for (variant, outcome), count in outcomes.items():
                self._counts.outcomes.setdefault(variant, Counter())[outcome] += count
            self._counts.failures += failures

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._client.close()


def clock(seconds: float) -> str:
    """Minutes and seconds: `1:05`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _outcome(answer: Answer, speaker: str) -> str:
    if answer.best.speaker != speaker:
        return "wrong"
    return "right" if answer.known else "unknown"


def wait_for_server(address: str, seconds: float) -> list[str]:
    """Waits until a server answers, and returns the variants that it has, each once.

    Raises:
        ClientError: it does not answer in time.
    """
    deadline = time.monotonic() + seconds
    with SpeakerClient(address) as client:
        while True:
            try:
                return sorted({model.variant for model in client.models().models})
            except ClientError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
