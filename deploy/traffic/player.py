"""Send calls at an even rate from several threads, and count the answers."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Self

from deploy.traffic.scenario import CLEAN, Scenario
from deploy.traffic.source import RATE, AudioSource, Samples, mixture
from speakerlens import Answer, ClientError, SpeakerClient

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Load:
    """How many calls are sent, and of which kind.

    Attributes:
        rate: calls a second; fewer where the server does not keep up.
        callers: calls at a time.
        explain_share: share of the calls that asks for a saliency map.
        together: each call asks all variants, not one of them.
        seed: of the random choices.
    """

    rate: float = 3.0
    callers: int = 4
    explain_share: float = 0.1
    together: bool = False
    seed: int = 0


@dataclass
class Counts:
    """Answers and failures since the last report.

    Attributes:
        kind: current kind of interference.
        snr_db: current SNR; None without interference.
        seconds: since the beginning of the scenario.
        outcomes: answers by variant: `right`, `wrong`, or `unknown` (the right speaker, below the threshold).
        failures: calls without an answer, by the name of the client's error.
    """

    kind: str = CLEAN
    snr_db: float | None = None
    seconds: float = 0.0
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Return one line: `1:05  noise 12 dB    15 answers, right: act-da 5/5, clean 2/10  1 Overloaded`."""
        condition = self.kind if self.snr_db is None else f"{self.kind} {self.snr_db:.0f} dB"
        answers = sum(each.total() for each in self.outcomes.values())
        right = ", ".join(f"{name} {each['right']}/{each.total()}" for name, each in sorted(self.outcomes.items()))
        failures = "".join(f"  {count} {name}" for name, count in sorted(self.failures.items()))
        return f"{clock(self.seconds)}  {condition:<14}{answers:>3} answers, right: {right or 'none'}{failures}"


class Traffic:
    """Play a scenario to a server once, from the beginning of a `with` to its end or that of the scenario.

    Args:
        address: HOST:PORT of the server.
        source: of utterances and interference.
        scenario: kinds of interference over time.
        variants: of the server; each call asks one.
        load: rate and kind of the calls.

    Raises:
        ValueError: the source lacks a kind of interference of the scenario.
    """

    def __init__(self, address: str, source: AudioSource, scenario: Scenario, variants: list[str], load: Load) -> None:
        if lacking := scenario.kinds - source.kinds:
            there = ", ".join(sorted(source.kinds))
            raise ValueError(f"there is no {', '.join(sorted(lacking))} in the source, but {there}")
        self._client = SpeakerClient(address)
        self._source, self._scenario, self._variants, self._load = source, scenario, variants, load
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._counts = Counts()
        self._next = 0.0
        self._error: Exception | None = None
        generators = [Random(f"{load.seed} {number}") for number in range(load.callers)]
        self._threads = [threading.Thread(target=self._call, args=(each,)) for each in generators]

    def playing(self) -> bool:
        """Return whether the scenario is still playing."""
        return any(thread.is_alive() for thread in self._threads)

    def wait(self, seconds: float) -> None:
        """Return after this many seconds, or at the end of the scenario.

        Raises:
            OSError: an audio file cannot be read.
        """
        end = time.monotonic() + seconds
        while self.playing() and time.monotonic() < end:
            time.sleep(min(POLL_SECONDS, seconds))
        if self._error is not None:
            raise self._error

    def take(self) -> Counts:
        """Return the counts since the last call of this method, and reset them."""
        elapsed = time.monotonic() - self._started
        place, snr_db = self._scenario.at(elapsed)
        with self._lock:
            counts, self._counts = self._counts, Counts()
        counts.kind, counts.snr_db, counts.seconds = self._scenario.phases[place].kind, snr_db, elapsed
        return counts

    def _call(self, rng: Random) -> None:
        try:
            self._play(rng)
        except Exception as error:  # noqa: BLE001 - counted as a failed call
            self._error = error
            self._ended.set()

    def _play(self, rng: Random) -> None:
        while (at := self._slot()) < self._scenario.seconds:
            if self._ended.wait(max(0.0, self._started + at - time.monotonic())):
                return
            place, snr_db = self._scenario.at(at)
            variants = self._variants if self._load.together else [rng.choice(self._variants)]
            utterance = self._source.utterance(rng.randrange(self._source.count))
            samples = utterance.samples
            if snr_db is not None:
                kind = self._scenario.phases[place].kind
                samples = mixture(samples, self._source.interference(kind, utterance, rng), snr_db)
            self._send(samples, utterance.speaker, variants, rng.random() < self._load.explain_share)

    def _slot(self) -> float:
        """Return when the next call is due, in seconds from the beginning; delayed calls are skipped, not caught up."""
        with self._lock:
            self._next = max(self._next + 1 / self._load.rate, time.monotonic() - self._started)
            return self._next

    def _send(self, samples: Samples, speaker: str, variants: list[str], explain: bool) -> None:
        """Send one call, and count its answers and failures."""
        outcomes, failures = Counter[tuple[str, str]](), Counter[str]()
        try:
            result = self._client.identify(samples, rate=RATE, variants=variants, explain=explain)
        except ClientError as error:
            failures[type(error).__name__.removesuffix("Error")] += 1
        else:
            outcomes.update((answer.variant, _outcome(answer, speaker)) for answer in result.answers)
            failures.update(failure.code for failure in result.failures)
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
    """Return minutes and seconds: `1:05`."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _outcome(answer: Answer, speaker: str) -> str:
    if answer.best.speaker != speaker:
        return "wrong"
    return "right" if answer.known else "unknown"


def wait_for_server(address: str, seconds: float) -> list[str]:
    """Wait until a server answers, and return its variants, sorted.

    Raises:
        ClientError: the server does not answer in time.
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
