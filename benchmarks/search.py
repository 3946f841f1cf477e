"""Open-set search on real speech: what the calibration promises beside what is measured, by gallery, SNR and length.

    python -m benchmarks.search --speech SPEECH --noise NOISE --work FOLDER
    python -m benchmarks.search --runs FOLDER/act-da,FOLDER/da,FOLDER/clean

SPEECH has a folder of recordings for each speaker, NOISE recordings without one. The first form prepares a corpus with
12 speakers held out, trains the three variants and measures them; the second takes runs on a corpus made so. `--seed`
draws who is held out. Speakers are enrolled, calibrate, or test, and none has two of these roles (see
`benchmarks.search_trials`).

Prints all tables, and writes what a reader needs of them to benchmarks/results/search.json.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from benchmarks.search_trials import DECIDED, GALLERIES, SYNTHETIC_TITLE, measure
from speakerlens.training.checkpoint import load_run
from speakerlens.training.data.manifest import load_corpus

VARIANTS = ("act-da", "da", "clean")
OUTSIDERS = 12
RESULTS = Path(__file__).parent / "results" / "search.json"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, metavar="DIR", help="a folder for each speaker")
    parser.add_argument("--noise", type=Path, metavar="DIR", help="recordings without a speaker")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for corpus and runs; what is there is used again")
    parser.add_argument("--config", type=Path, default=Path("training/configs/speakers.yaml"), help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus: who is held out (%(default)s)")
    parser.add_argument("--runs", metavar="RUN,...", help="finished runs, instead of training")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help="(%(default)s)")
    arguments = parser.parse_args(words)
    if arguments.runs:
        runs = [Path(run) for run in arguments.runs.split(",")]
    elif arguments.speech and arguments.noise and arguments.work:
        runs = _trained(arguments.speech, arguments.noise, arguments.work, arguments.config, arguments.seed)
    else:
        parser.error("either --runs, or --speech, --noise and --work")
    torch.set_num_threads(1)
    # Variants measured before stay, so that they can be measured as their trainings end.
    variants = json.loads(arguments.out.read_text("utf-8"))["variants"] if arguments.out.exists() else {}
    for folder in runs:
        run, begun = load_run(folder), time.process_time()
        if run.corpus_folder is None:
            parser.error(f"{folder}: has no corpus")
        found = measure(run, load_corpus(run.corpus_folder), lambda step, name=run.variant: _say(name, step))  # type: ignore[misc]
        print(report(run.variant, found), flush=True)
        variants[run.variant] = {
            **summary(found),
            "updates": run.step,
            "cpu_s": round(time.process_time() - begun),
            "environment": environment(),
        }
        arguments.out.write_text(document(variants), "utf-8")
    return 0


def _trained(speech: Path, noise: Path, work: Path, config: Path, seed: int) -> list[Path]:
    """Prepare the corpus and train each variant, where they are not there yet; return the run folders."""
    corpus = work / "corpus"
    program = [sys.executable, "-m", "speakerlens"]
    if not corpus.exists():
        prepare = ["prepare", "folder", "--speech", str(speech), "--noise", str(noise), "--out", str(corpus)]
        subprocess.run([*program, *prepare, "--outsiders", str(OUTSIDERS), "--seed", str(seed)], check=True)
    for variant in VARIANTS:
        train = ["train", "--config", str(config), "--variant", variant, "--corpus", str(corpus)]
        if not (work / variant).exists():
            subprocess.run([*program, *train, "--out", str(work / variant)], check=True)
    return [work / variant for variant in VARIANTS]


def _say(variant: str, step: str) -> None:
    print(f"{variant}: {step}", file=sys.stderr, flush=True)


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a variant's tables: the promise by condition, the decisions, and copied thresholds."""
    tables = {}
    for title, rows in found["tables"].items():
        whole = title in {f"gallery {size}{end}" for size in GALLERIES for end in ("", DECIDED)}
        whole = whole or title.endswith(SYNTHETIC_TITLE)
        chosen = [row for row in rows if whole or row["band"] in ("all", "clean")]  # the rest is printed
        tables[title] = [{name: _rounded(value) for name, value in row.items()} for row in chosen]
    silent = [
        row for row in found["silent_mislabels"] if row["threshold"] != "calibrated" or row["margin"] in (0.0, "own")
    ]
    silent += _best_without_a_wrong_name(found["silent_mislabels"])
    return {
        **{name: value for name, value in found.items() if name not in ("tables", "silent_mislabels")},
        "tables": tables,
        "silent_mislabels": [{name: _rounded(value) for name, value in row.items()} for row in silent],
    }


def _best_without_a_wrong_name(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each gallery the row with the highest recall of those without a wrong name, marked as chosen."""
    best: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["threshold"] == "calibrated" and not row["wrong"] and row["margin"] != "own":
            least = best.setdefault(row["gallery"], row)
            best[row["gallery"]] = max(least, row, key=lambda each: float(each["recall"]))
    return [{**row, "chosen": "on the test itself: the best without a wrong name"} for row in best.values()]


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def document(variants: dict[str, Any]) -> str:
    """Return the variants as JSON, with a line for each row of a table."""
    rows: list[str] = []

    def held(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: held(each) for name, each in value.items()}
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return [held_row(each) for each in value]
        return value

    def held_row(row: dict[str, Any]) -> str:
        rows.append(json.dumps(row))
        return f"row {len(rows) - 1}"

    text = json.dumps({"variants": held(variants)}, indent=1)
    return re.sub(r'"row (\d+)"', lambda found: rows[int(found[1])], text) + "\n"


def report(variant: str, found: dict[str, Any]) -> str:
    """Return the tables of a variant as Markdown; shares in percent."""
    lines = [f"## {variant}: {found['enrolled']} enrolled, promised {100 * found['promised']:g} % false alarms"]
    for title, rows in found["tables"].items():
        lines += ["", f"### {title}", "", "| condition | false alarms | missed | trials |", "|---|---|---|---|"]
        for row in rows:
            alarm = f"{100 * row['false_alarm']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
            missed = trials = ""
            if "miss" in row:
                low, high = row["miss_interval"]
                missed, trials = f"{100 * row['miss']:.1f} [{100 * low:.1f}, {100 * high:.1f}]", str(row["trials"])
            lines.append(f"| {row['band']} | {alarm} | {missed} | {trials} |")
    lines += [
        "",
        "### silent mislabels",
        "",
        "| gallery | threshold | margin | recall | wrong | trials | false alarms |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for row in found["silent_mislabels"]:
        margin = f"own ({found['margin']:.2f})" if row["margin"] == "own" else f"{row['margin']:g}"
        lines.append(
            f"| {row['gallery']} | {row['threshold']} | {margin} | {100 * row['recall']:.1f} | {row['wrong']} | "
            f"{row['trials']} | {100 * row['false_alarm']:.1f} |"
        )
    lines += ["", "### scores at 5 % false alarms, gallery of 10", "", "| score | recall | clean |", "|---|---|---|"]
    lines += [
        f"| {each['score']} | {100 * each['recall']:.1f} | {100 * each['clean']:.1f} |"
        for each in found["normalisation"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
