"""What the runs are measured under: conditions and utterances, the same for all of them."""

from collections.abc import Mapping
from dataclasses import dataclass

from speakerlens.training.data.manifest import Split
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.conditions import CLEAN, Condition, supplied_grid
from speakerlens.training.evaluation.maps.deletion import DELETION_SNRS_DB
from speakerlens.training.evaluation.maps.probes import choose_probes
from speakerlens.training.study.plan import Plan

FAITHFUL_SNR_DB = 5.0


@dataclass(frozen=True)
class Setting:
    """What the runs are measured under.

    Attributes:
        conditions: all of the accuracy's; the first is clean. left_out: kinds that the corpus cannot supply, and why.
        kinds: of interference.
        utterances: names of the test utterances, in the order of `Ranks`.
        probes: names of the utterances whose maps are measured.
    """

    conditions: tuple[Condition, ...]
    left_out: Mapping[str, str]
    kinds: tuple[str, ...]
    utterances: tuple[str, ...]
    probes: tuple[str, ...]

    @property
    def probed(self) -> tuple[Condition, ...]:
        """Conditions in which the maps are measured."""
        return tuple(Condition(kind, snr_db) for kind in self.kinds for snr_db in DELETION_SNRS_DB)

    @property
    def masked(self) -> tuple[Condition, ...]:
        """Conditions in which the maps' faithfulness is measured: clean, and the first kind at 5 dB."""
        return CLEAN, Condition(self.kinds[0], FAITHFUL_SNR_DB)


def survey(plan: Plan) -> Setting:
    """See what a plan's corpus has to test with. Raises UserError if it is not enough."""
    corpus = plan.corpus
    conditions, left_out = supplied_grid(corpus, "test")
    kinds = tuple(dict.fromkeys(condition.kind for condition in conditions[1:]))
    purposes: dict[Split, str] = {"dev": "calibration and convergence", "test": "the comparison"}
    for split, what in purposes.items():
        if not corpus.utterances(split):
            raise UserError(f"{corpus.root}: has no {split} utterances; a study needs some of every speaker for {what}")
    if not kinds:
        raise UserError(f"{corpus.root}: has no interference to test with; make the corpus with noise, music or others")
    utterances = tuple(clip.path.name for clip in corpus.utterances("test"))
    probes = tuple(clip.path.name for clip in choose_probes(corpus, corpus.speakers).clips)
    return Setting(conditions, left_out, kinds, utterances, probes)
