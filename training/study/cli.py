"""Run the study: train every variant from every seed, measure them all, compare them, and report.

  %(prog)s --config training/configs/demo.yaml --corpus DIR --out DIR --seeds 3

The same command resumes a study that was stopped. Finished runs are used again if they have the same configuration and
corpus, and refused otherwise. With more seeds or variants, only the new ones are trained. A run may also be trained
beforehand, on several GPUs by `torchrun -m speakerlens.training fit … --out OUT/runs/seed-S/VARIANT`.
"""

import argparse
import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from speakerlens.training.compute import choose_device
from speakerlens.training.config import load_config
from speakerlens.training.data.manifest import load_corpus
from speakerlens.training.errors import UserError
from speakerlens.training.files import check_files, make_folder
from speakerlens.training.options import add_device, add_overrides, list_variants
from speakerlens.training.study.analysis import Study, analyse
from speakerlens.training.study.logs import starts
from speakerlens.training.study.measurements import choose_evaluation_set, measure
from speakerlens.training.study.outputs import STUDY, TABLES, write_numbers
from speakerlens.training.study.plan import make_plan
from speakerlens.training.study.report import REPORT, write_report
from speakerlens.training.study.runner import default_jobs, train
from speakerlens.training.variants import VARIANTS

_LOCK = ".lock"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command `study`."""
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    list_variants(parser)
    parser.add_argument("--config", type=Path, required=True, help="YAML file; see training/configs/")
    parser.add_argument("--corpus", type=Path, required=True, help="folder that `prepare` made")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs, the results and the report")
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        default=3,
        help="runs of each variant, from the configuration's seed up (default: 3)",
    )
    parser.add_argument(
        "--variants", metavar="A,B,…", default=",".join(VARIANTS), help="which to compare (default: all); see below"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per core; on a GPU, 1)")
    add_device(parser)
    add_overrides(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    device = choose_device(arguments.device)
    jobs = default_jobs(device.type == "cuda") if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}")
    config = load_config(arguments.config, arguments.overrides)
    corpus = load_corpus(arguments.corpus)
    plan = make_plan(config, corpus, arguments.out, arguments.variants.split(","), arguments.seeds)
    choose_evaluation_set(plan)  # fails here rather than after hours of training
    console = Console()
    with _locked(arguments.out) as lock:
        check_files(plan.out, (REPORT, STUDY, *(f"{name}.csv" for name in TABLES)))
        code = train(plan, jobs, device.type, console, lock)
        if code:
            return code
        starts(plan)  # fails here, rather than after hours of measuring, if a log is damaged
        study = analyse(plan, measure(plan, device, console), device)
        files = [write_report(study, device), *write_numbers(study)]
    _print_summary(study, files, console)
    return 0


def _print_summary(study: Study, files: Sequence[Path], console: Console) -> None:
    """Print the comparisons, and the paths of the files."""
    for group in study.summary:
        console.print(group.title, style="bold", markup=False, highlight=False, soft_wrap=True)
        for line in group.lines:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    names = ", ".join(path.name for path in files[1:])
    console.print(
        f"written: {files[0]}, with {names} in the same folder", markup=False, highlight=False, soft_wrap=True
    )


@contextmanager
def _locked(out: Path) -> Iterator[int]:
    """Lock a study's folder. The training processes inherit the lock, so it lasts as long as any of them.

    Raises:
        UserError: another study holds the lock, or the folder cannot be written to.
    """
    make_folder(out)
    try:
        lock = (out / _LOCK).open("w")
    except OSError as error:
        raise UserError(f"{out / _LOCK}: cannot be written ({error.strerror}); give another --out") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{out}: another study is running there; wait for it, or give another --out") from error
        yield file.fileno()
