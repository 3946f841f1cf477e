"""The numbers of a study as files: study.json, and a CSV table of each measure."""

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
from speakerlens.training.study.calibration import FIGURES
from speakerlens.training.study.map_quality import LocalisationResults, finite_mean

STUDY = "study.json"
TABLES = (
    "accuracy",
    "dev",
    "deletion",
    "localisation",
    "faithfulness",
    "listening",
    "randomisation",
    "grid",
    "calibration",
)

Record = dict[str, object]


def write_numbers(study: Study) -> list[Path]:
    """Write study.json and the CSV tables into the study's folder; return their paths."""
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
    """Return the measures of every run, by the name of their table; empty tables are left out."""
    makers = (
        _accuracy,
        _dev,
        _deletion,
        _localisation,
        _faithfulness,
        _listening,
        _randomisation,
        _grid,
        _calibration,
    )
    results = {name: list(make(study)) for name, make in zip(TABLES, makers, strict=True)}
    return {name: records for name, records in results.items() if records}


def _accuracy(study: Study) -> Iterator[Record]:
    for run, results in study.measured.accuracy.items():
        for condition, ranks in zip(study.measured.evaluation_set.conditions, np.array(results.ranks), strict=True):
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
    for run, rows in study.measured.deletion.items():
        for row in rows:
            for name in row.indices:
                yield {
                    "seed": run.seed,
                    "variant": run.variant,
                    "interference": row.kind,
                    "snr_db": row.snr_db,
                    "map": name,
                    "index": finite_mean(row.indices[name]),
                    "index_of_clean_map": finite_mean(row.clean_indices[name]),
                    "top1": float((np.array(row.ranks) == 1).mean()),
                }


def _localisation(study: Study) -> Iterator[Record]:
    for run, rows in study.measured.localisation.items():
        for row in rows:
            for name in row.frames:
                areas = {"auc_frames": finite_mean(row.frames[name]), "auc_bins": finite_mean(row.bins[name])}
                yield {"seed": run.seed, "variant": run.variant, "map": name, **areas}


def _faithfulness(study: Study) -> Iterator[Record]:
    for run, rows in study.measured.faithfulness.items():
        for row in rows:
            yield {
                "seed": run.seed,
                "variant": run.variant,
                "interference": row.kind,
                "snr_db": row.snr_db,
                "map": row.method,
                "deletion": finite_mean(row.deletion.areas),
                "insertion": finite_mean(row.insertion.areas),
            }


def _listening(study: Study) -> Iterator[Record]:
    for run, rows in study.measured.listening.items():
        for row in rows:
            condition = {"interference": row.kind, "snr_db": row.snr_db, "map": row.method}
            yield {"seed": run.seed, "variant": run.variant, **condition, **asdict(row.measures)}


def _randomisation(study: Study) -> Iterator[Record]:
    for run, rows in study.measured.randomisation.items():
        for row in rows:
            likeness = {"rank_correlation": finite_mean(row.rank_correlation), "ssim": finite_mean(row.similarity)}
            yield {"seed": run.seed, "variant": run.variant, "step": row.step, "map": row.map, **likeness}


def _grid(study: Study) -> Iterator[Record]:
    for run, rows in study.measured.spectra.items():
        for row in rows:
            where = {"stage": row.stage, "tap": row.tap, "used": row.used}
            yield {"seed": run.seed, "variant": run.variant, **where, "grid_db": row.grid_db, "spread": row.spread}


def _calibration(study: Study) -> Iterator[Record]:
    for run, results in study.measured.calibration.items():
        yield {"seed": run.seed, "variant": run.variant, **{name: figure(results) for name, figure in FIGURES.items()}}


def _whole(study: Study) -> Record:
    deletion = study.deletion
    return {
        "about": study.about,
        # In the order of the values by utterance in `results`.
        "test_utterances": study.measured.evaluation_set.utterances,
        "probes": study.measured.evaluation_set.probes,
        "summary": [asdict(group) for group in study.summary],
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
            {"variant": variant, "interference": kind, "snr_db": snr_db, **results._asdict()}
            for (variant, kind, snr_db), results in study.accuracy.by_condition.items()
        ],
        "convergence": {"on": study.convergence.on, "gain_over_last_quarter": _estimates(study.convergence.gains)},
        "deletion": [
            {
                "variant": variant,
                "interference": kind,
                "map": name,
                "index": results._asdict(),
                "of_clean_map": deletion.clean[variant, kind, name]._asdict(),
                "gap": deletion.gap[variant, kind, name]._asdict(),
            }
            for (variant, kind, name), results in deletion.index.items()
        ],
        "deletion_changes": [
            {
                "variant": ours,
                "reference": theirs,
                "interference": kind,
                "map": name,
                "index": results._asdict(),
                "gap": deletion.reactions[ours, theirs, kind, name]._asdict(),
            }
            for (ours, theirs, kind, name), results in deletion.changes.items()
        ],
        **_localisations(study.localisation),
        "faithfulness": {
            "utterances": study.map_quality.utterances,
            "methods": [asdict(each) for each in study.map_quality.methods],
            "fusions": [asdict(each) for each in study.map_quality.fusions],
            "recommended": [STAGES[stage] for stage in study.map_quality.recommended],
        },
        "calibration": {variant: _estimates(results) for variant, results in study.calibration.figures.items()},
        "calibration_changes": [
            {"variant": ours, "reference": theirs, **_estimates(results)}
            for (ours, theirs), results in study.calibration.changes.items()
        ],
        "numbers_by_run": tables(study),
    }


def _localisations(results: LocalisationResults) -> Record:
    return {
        "localisation": [
            {"variant": variant, "map": name, "frames": of._asdict(), "bins": results.bins[variant, name]._asdict()}
            for (variant, name), of in results.frames.items()
        ],
        "localisation_beyond_another_speaker": _estimates(results.beyond),
        "localisation_changes": [
            {"variant": ours, "reference": theirs, "map": name, "frames": of._asdict()}
            for (ours, theirs, name), of in results.changes.items()
        ],
    }


def _estimates(results: Mapping[str, Estimate]) -> Record:
    return {name: estimate._asdict() for name, estimate in results.items()}
