"""The answers for one utterance, as a mapping, a figure, a table and a notebook's cell."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from speakerlens import notebook
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.results import Answer, AudioInfo, ByModel, ModelFailure, Timings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Identification(ByModel[Answer]):
    """The answers for one utterance, one per model, in the order of the request; `result["act-da"]` is one of them."""

    answers: tuple[Answer, ...]
    audio: AudioInfo
    timings: Timings
    failures: tuple[ModelFailure, ...] = ()
    """Errors of models, where others answered."""
    source: pb.Audio | None = field(default=None, repr=False)
    """The audio as it was sent, for `plot` and notebooks; None for results of a batch or a stream."""

    def _named(self) -> list[tuple[str, Answer]]:
        return [(answer.name, answer) for answer in self.answers]

    def plot(self) -> "Figure":
        """Return a figure of the waveform, the log-mel and every map (needs matplotlib).

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there are no maps, or the result does not hold its audio.
        """
        return notebook.figure(self.answers, self.source)

    def to_records(self) -> list[dict[str, Any]]:
        """Return a row for each model and speaker, best first, such as `pandas.DataFrame` takes."""
        return [
            {
                "model": answer.name,
                "variant": answer.variant,
                "version": answer.version,
                "rank": rank,
                "speaker": score.speaker,
                "probability": score.probability,
                "logit": score.logit,
                "known": answer.known and rank == 1,
            }
            for answer in self.answers
            for rank, score in enumerate(answer.speakers, start=1)
        ]

    def to_frame(self) -> Any:
        """Return `to_records` as a `pandas.DataFrame`.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas; to_records needs nothing") from error
        return pandas.DataFrame(self.to_records())

    def __repr__(self) -> str:
        parts = [f"{answer.name} {answer.summary}" for answer in self.answers]
        parts += [f"{failure.name} failed ({failure.code})" for failure in self.failures]
        return f"<Identification of {self.audio.seconds:.2f} s: {'; '.join(parts)}>"

    def _repr_html_(self) -> str:
        return notebook.page(self.answers, self.failures, self.audio, self.source)
