"""Calls at an even rate from several threads, and what became of them."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Self

from deploy.traffic.programme import CLEAN, Programme
from deploy.traffic.sounds import RATE, Sounds, mixture
from serving.client import ClientError, SpeakerClient

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Load:
    """How much is asked.

    Attributes:
        rate: calls a second; fewer where the server does not keep up.
        callers: calls at a time.
        explain_share: of the calls, those that ask for a map.
        seed: of all that is left to chance.
    """

    rate: float = 3.0
    callers: int = 4
    explain_share: float = 0.1
    seed: int = 0


@dataclass
class Counts:
    """What happened since the last look.

    Attributes:
        kind: of interference, now.
        snr_db: now; None where there is no interference.
        seconds: since the programme's beginning.
        outcomes: by variant: `right`, `wrong`, and `unknown` where the right one is best but not above the threshold.
        failures: calls without an answer, by the client's error.
    """

    kind: str = CLEAN
    snr_db: float | None = None
    seconds: float = 0.0
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def answers(self) -> int:
        """Calls that were answered."""
        return sum(each.total() for each in self.outcomes.values())


class Traffic:
    """Plays a programme to a server, once, from the beginning of a `with` to the end of the programme or of the `with`.

    Args:
        address: HOST:PORT of the server.
        sounds: what is said, and what is heard beside it.
        programme: which interference when.
        variants: of the server; each call asks one.
        load: how much is asked.
    """

    def __init__(self, address: str, sounds: Sounds, programme: Programme, variants: list[str], load: Load) -> None:
        self._client = SpeakerClient(address)
        self._sounds, self._programme, self._variants, self._load = sounds, programme, variants, load
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._counts = Counts()
        self._next = 0.0
        dice = [Random(f"{load.seed} {number}") for number in range(load.callers)]
        self._threads = [threading.Thread(target=self._call, args=(each,)) for each in dice]

    def playing(self) -> bool:
        """Whether the programme still goes on."""
        return any(thread.is_alive() for thread in self._threads)

    def wait(self, seconds: float) -> None:
        """Returns after so many seconds, or at the end of the programme."""
        end = time.monotonic() + seconds
        while self.playing() and time.monotonic() < end:
            time.sleep(min(POLL_SECONDS, seconds))

    def take(self) -> Counts:
        """What happened since this was asked last."""
        elapsed = time.monotonic() - self._started
        place, snr_db = self._programme.at(elapsed)
        with self._lock:
            counts, self._counts = self._counts, Counts()
        counts.kind, counts.snr_db, counts.seconds = self._programme.phases[place].kind, snr_db, elapsed
        return counts

    def _call(self, dice: Random) -> None:
        while (at := self._slot()) < self._programme.seconds:
            if self._ended.wait(max(0.0, self._started + at - time.monotonic())):
                return
            place, snr_db = self._programme.at(at)
            variant = dice.choice(self._variants)
            outcome, failure = self._ask(self._programme.phases[place].kind, snr_db, variant, dice)
            with self._lock:
                if failure:
                    self._counts.failures[failure] += 1
                else:
                    self._counts.outcomes.setdefault(variant, Counter())[outcome] += 1

    def _slot(self) -> float:
        """When the next call is due, in seconds from the beginning; a slow server is asked less often, not later."""
        with self._lock:
            self._next = max(self._next + 1 / self._load.rate, time.monotonic() - self._started)
            return self._next

    def _ask(self, kind: str, snr_db: float | None, variant: str, dice: Random) -> tuple[str, str]:
        """The outcome of a call, and how it failed, of which one is empty."""
        utterance = self._sounds.utterance(dice.randrange(self._sounds.count))
        samples = utterance.samples
        if snr_db is not None:
            samples = mixture(samples, self._sounds.interference(kind, utterance, dice), snr_db)
        explain = dice.random() < self._load.explain_share
        try:
            answer = self._client.identify(samples, rate=RATE, variants=[variant], explain=explain)[variant]
        except ClientError as error:
            return "", type(error).__name__.removesuffix("Error")
        if answer.best.speaker != utterance.speaker:
            return "wrong", ""
        return ("right" if answer.known else "unknown"), ""

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
