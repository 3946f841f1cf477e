"""The numbers of a study as files for others' programs: study.json, and a CSV table of each measure."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import numpy as np

from speakerlens.training.evaluation.accuracy import TOP
from speakerlens.training.evaluation.comparison.results import without_nan
from speakerlens.training.evaluation.intervals import Estimate
from speakerlens.training.files import write_whole
from speakerlens.training.model.network import STAGES
from speakerlens.training.study.accuracy import SAME_WORK, Matching
from speakerlens.training.study.analysis import Study
from speakerlens.training.study.calibrating import FIGURES
from speakerlens.training.study.locating import Locating

STUDY = "study.json"

Record = dict[str, object]


def write_numbers(study: Study) -> list[Path]:
    """Write study.json and the CSV tables into the study's folder; returns the files."""
    out = study.plan.out
    paths = [out / STUDY]
    write_whole(paths[0], json.dumps(without_nan(_whole(study)), indent=1, ensure_ascii=False) + "\n")
    for name, records in tables(study).items():
        paths.append(out / f"{name}.csv")
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: without_nan(value) for key, value in record.items()} for record in records)
        write_whole(paths[-1], text.getvalue())
    return paths


def tables(study: Study) -> dict[str, list[Record]]:
    """Give the measures of every run, by the name of their table; those without a line are left out."""
    found = {
        "accuracy": list(_accuracy(study)),
        "dev": list(_dev(study)),
        "deletion": list(_deletion(study)),
        "localisation": list(_localisation(study)),
        "faithfulness": list(_faithfulness(study)),
        "randomisation": list(_randomisation(study)),
        "grid": list(_grid(study)),
        "calibration": list(_calibration(study)),
    }
    return {name: records for name, records in found.items() if records}


def _accuracy(study: Study) -> Iterator[Record]:
    for run, found in study.findings.accuracy.items():
        for condition, ranks in zip(study.findings.setting.conditions, np.array(found.ranks), strict=True):
            yield {
                "seed": run.seed,
                "variant": run.variant,
                "interference": condition.kind,
                "snr_db": condition.snr_db,
                "top1": float((ranks == 1).mean()),
                f"top{TOP}": float((ranks <= TOP).mean()),
                "utterances": len(ranks),
            }


def _dev(study: Study) -> Iterator[Record]:
    for run, curve in study.convergence.curves.items():
        for updates, accuracy in zip(curve.updates, curve.accuracy, strict=True):
            yield {"seed": run.seed, "variant": run.variant, "updates": updates, "accuracy": accuracy}


def _deletion(study: Study) -> Iterator[Record]:
    for run, rows in study.findings.deletion.items():
        for row in rows:
            for name in row.indices:
                yield {
                    "seed": run.seed,
                    "variant": run.variant,
                    "interference": row.kind,
                    "snr_db": row.snr_db,
                    "map": name,
                    "index": _mean(row.indices[name]),
                    "index_of_clean_map": _mean(row.clean_indices[name]),
                    "top1": float((np.array(row.ranks) == 1).mean()),
                }


def _localisation(study: Study) -> Iterator[Record]:
    for run, rows in study.findings.localisation.items():
        for row in rows:
            for name in row.frames:
                areas = {"auc_frames": _mean(row.frames[name]), "auc_bins": _mean(row.bins[name])}
                yield {"seed": run.seed, "variant": run.variant, "map": name, **areas}


def _faithfulness(study: Study) -> Iterator[Record]:
    for run, rows in study.findings.faithfulness.items():
        for row in rows:
            yield {
                "seed": run.seed,
                "variant": run.variant,
                "interference": row.kind,
                "snr_db": row.snr_db,
                "map": row.method,
                "deletion": _mean(row.deletion.areas),
                "insertion": _mean(row.insertion.areas),
            }


def _randomisation(study: Study) -> Iterator[Record]:
    for run, rows in study.findings.randomisation.items():
        for row in rows:
            likeness = {"rank_correlation": _mean(row.rank_correlation), "ssim": _mean(row.similarity)}
            yield {"seed": run.seed, "variant": run.variant, "step": row.step, "map": row.map, **likeness}


def _grid(study: Study) -> Iterator[Record]:
    for run, rows in study.findings.spectra.items():
        for row in rows:
            where = {"stage": row.stage, "tap": row.tap, "used": row.used}
            yield {"seed": run.seed, "variant": run.variant, **where, "grid_db": row.grid_db, "spread": row.spread}


def _calibration(study: Study) -> Iterator[Record]:
    for run, found in study.findings.calibration.items():
        yield {"seed": run.seed, "variant": run.variant, **{name: figure(found) for name, figure in FIGURES.items()}}


def _mean(values: tuple[float, ...]) -> float:
    """Mean of the utterances that have a value."""
    found = np.array(values)[np.isfinite(values)]
    return float(found.mean()) if len(found) else float("nan")


def _whole(study: Study) -> Record:
    deleting = study.deleting
    return {
        "about": study.about,
        # In the order of the values by utterance in `results`.
        "test_utterances": study.findings.setting.utterances,
        "probes": study.findings.setting.probes,
        "claims": [asdict(claim) for claim in study.claims],
        "accuracy": {
            "same_work": SAME_WORK,
            "rows": [
                {"variant": row.variant, "crops": row.crops, "work": row.work, "top1": _estimates(row.top1)}
                for row in study.accuracy.rows
            ],
            "comparisons": [
                {
                    "variant": each.variant,
                    "reference": each.reference,
                    "crops_ratio": each.crops,
                    "work_ratio": each.work,
                    "matched": [matching for matching in get_args(Matching) if each.matches(matching)],
                    "top1": _estimates(each.top1),
                    "mean_over_seeds_and_utterances": each.resampled._asdict(),
                }
                for each in study.accuracy.comparisons
            ],
        },
        "mean_by_seed": study.accuracy.by_seed,
        "curves": [
            {"variant": variant, "interference": kind, "snr_db": snr_db, **found._asdict()}
            for (variant, kind, snr_db), found in study.accuracy.cells.items()
        ],
        "convergence": {"on": study.convergence.on, "gain_over_last_quarter": _estimates(study.convergence.gains)},
        "deletion": [
            {
                "variant": variant,
                "interference": kind,
                "map": name,
                "index": found._asdict(),
                "of_clean_map": deleting.clean[variant, kind, name]._asdict(),
                "gap": deleting.gap[variant, kind, name]._asdict(),
            }
            for (variant, kind, name), found in deleting.index.items()
        ],
        "deletion_changes": [
            {
                "variant": ours,
                "reference": theirs,
                "interference": kind,
                "map": name,
                "index": found._asdict(),
                "gap": deleting.reactions[ours, theirs, kind, name]._asdict(),
            }
            for (ours, theirs, kind, name), found in deleting.changes.items()
        ],
        **_localisations(study.locating),
        "faithfulness": {
            "utterances": study.worth.utterances,
            "methods": [asdict(each) for each in study.worth.methods],
            "fusions": [asdict(each) for each in study.worth.fusions],
            "recommended": [STAGES[stage] for stage in study.worth.recommended],
        },
        "calibration": {variant: _estimates(found) for variant, found in study.calibrating.figures.items()},
        "calibration_changes": [
            {"variant": ours, "reference": theirs, **_estimates(found)}
            for (ours, theirs), found in study.calibrating.changes.items()
        ],
        "numbers_by_run": tables(study),
    }


def _localisations(found: Locating) -> Record:
    return {
        "localisation": [
            {"variant": variant, "map": name, "frames": of._asdict(), "bins": found.bins[variant, name]._asdict()}
            for (variant, name), of in found.frames.items()
        ],
        "localisation_beyond_another_speaker": _estimates(found.beyond),
        "localisation_changes": [
            {"variant": ours, "reference": theirs, "map": name, "frames": of._asdict()}
            for (ours, theirs, name), of in found.changes.items()
        ],
    }


def _estimates(found: Mapping[str, Estimate]) -> Record:
    return {name: estimate._asdict() for name, estimate in found.items()}
