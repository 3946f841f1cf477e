"""Everything that a study found, in one place: what was run, what was measured, and what it comes to."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from speakerlens.training.config import dump_config
from speakerlens.training.evaluation.conditions import SEED
from speakerlens.training.provenance import machine, moment, tested, versions
from speakerlens.training.study.accuracy import Accuracy, compare_accuracy
from speakerlens.training.study.calibrating import Calibrating, compare_calibration
from speakerlens.training.study.claims import Claim, accuracy_claim
from speakerlens.training.study.convergence import Convergence, convergence
from speakerlens.training.study.deleting import Deleting, compare_deletion
from speakerlens.training.study.history import starts
from speakerlens.training.study.locating import Locating, compare_localisation
from speakerlens.training.study.map_claims import deletion_claim, faithfulness_claim, grid_claim
from speakerlens.training.study.measuring import Findings
from speakerlens.training.study.plan import Plan
from speakerlens.training.study.worth import Worth, judge_maps
from speakerlens.training.variants import VARIANTS


@dataclass(frozen=True)
class Study:
    """A study that has been measured.

    Attributes:
        about: what was run: date, command, corpus, machine, versions, variants, configuration; plain values.
        plan, findings: what the rest rests on.
        claims: in the order of the report.
    """

    about: Mapping[str, object]
    plan: Plan
    findings: Findings
    accuracy: Accuracy
    convergence: Convergence
    deleting: Deleting
    locating: Locating
    worth: Worth
    calibrating: Calibrating
    claims: tuple[Claim, ...]


def analyse(plan: Plan, findings: Findings, device: torch.device) -> Study:
    """Compare the variants."""
    accuracy, dev = compare_accuracy(plan, findings), convergence(plan)
    deleting, locating = compare_deletion(plan, findings), compare_localisation(plan, findings)
    worth = judge_maps(plan, findings)
    return Study(
        about=_about(plan, findings, dev, device),
        plan=plan,
        findings=findings,
        accuracy=accuracy,
        convergence=dev,
        deleting=deleting,
        locating=locating,
        worth=worth,
        calibrating=compare_calibration(plan, findings),
        claims=(
            accuracy_claim(plan, accuracy, dev),
            deletion_claim(plan, deleting, locating),
            faithfulness_claim(plan, worth),
            grid_claim(worth),
        ),
    )


def _about(plan: Plan, findings: Findings, dev: Convergence, device: torch.device) -> dict[str, object]:
    lines = [line for of_run in starts(plan).values() for line in of_run]
    return {
        **moment(),
        "seed": SEED,
        "seeds": list(plan.seeds),
        "corpus": tested(plan.corpus),
        "left_out": dict(findings.setting.left_out),
        "config": dump_config(plan.config),
        "updates": plan.config.updates,
        "batch_size": plan.config.data.batch_size,
        "parameters": lines[0]["parameters"],
        "variants": [
            {
                "name": variant,
                **asdict(VARIANTS[variant]),
                "passes": round(plan.work(variant), 2),
                "minutes": [round(dev.curves[run].seconds / 60, 2) for run in plan.runs if run.variant == variant],
            }
            for variant in plan.variants
        ],
        "trained": {
            "device": sorted({f"{line['device']}, {line['threads']} threads" for line in lines}),
            "torch": sorted({line["torch"] for line in lines}),
            "code_revision": sorted({line["code_revision"] for line in lines}),
        },
        "measured": {"code_revision": sorted({each for of in findings.code_revisions.values() for each in of})},
        "measures": {name: list(revisions) for name, revisions in findings.code_revisions.items()},
        "machine": machine(device),
        "versions": versions(),
    }
