"""Run the study: train every variant from every seed, measure them all, compare them, and report.

  python -m training study --config training/configs/demo.yaml --corpus DIR --out DIR --seeds 3

Running the same command again goes on where it was stopped: what is finished is used again if it belongs to the same
configuration and corpus, and refused otherwise. With more seeds or variants, only what is new is trained. A run may
also be trained beforehand, on several GPUs by `torchrun -m training fit … --out OUT/runs/seed-S/VARIANT`.
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
from speakerlens.training.files import make_folder
from speakerlens.training.study.analysis import Study, analyse
from speakerlens.training.study.history import starts
from speakerlens.training.study.measuring import measure
from speakerlens.training.study.outputs import write_numbers
from speakerlens.training.study.plan import make_plan
from speakerlens.training.study.report import write_report
from speakerlens.training.study.runner import default_jobs, train
from speakerlens.training.study.setting import survey
from speakerlens.training.variants import VARIANTS

_LOCK = ".lock"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `study` to the command line."""
    parser = subparsers.add_parser(
        "study",
        help="train, evaluate and compare all variants over several seeds",
        description=__doc__,
        epilog="variants:\n" + "\n".join(f"  {name:8} {variant.about}" for name, variant in VARIANTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file; see training/configs/")
    parser.add_argument("--corpus", type=Path, required=True, help="folder that `prepare` made")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs, the results and the report")
    parser.add_argument(
        "--seeds", type=int, metavar="N", default=3, help="runs of each variant, from the configuration's seed on (3)"
    )
    parser.add_argument(
        "--variants", metavar="A,B,…", default=",".join(VARIANTS), help="which to compare (all); see below"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="trainings at a time (one a core; on a GPU, 1)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda if there is one")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="lay a value over the file's, such as --set updates=1000; may be given several times",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code."""
    device = choose_device(arguments.device)
    jobs = default_jobs(device.type == "cuda") if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}")
    config = load_config(arguments.config, arguments.overrides)
    corpus = load_corpus(arguments.corpus)
    plan = make_plan(config, corpus, arguments.out, arguments.variants.split(","), arguments.seeds)
    survey(plan)  # before hours of training rather than after
    console = Console()
    with _locked(arguments.out) as lock:
        code = train(plan, jobs, device.type, console, lock)
        if code:
            return code
        starts(plan)  # all that is read of the logs is there, before hours of measuring
        study = analyse(plan, measure(plan, device, console), device)
        files = [write_report(study, device), *write_numbers(study)]
    _tell(study, files, console)
    return 0


def _tell(study: Study, files: Sequence[Path], console: Console) -> None:
    """Print what was found of the claims, and where everything is."""
    for claim in study.claims:
        console.print(claim.title, style="bold")
        for finding in claim.findings:
            for line in (f"  {finding.text}", *(f"  - {point}" for point in finding.points)):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    names = ", ".join(path.name for path in files[1:])
    console.print(f"written: {files[0]}, and beside it {names}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _locked(out: Path) -> Iterator[int]:
    """Hold a study's folder alone; its trainings inherit the lock, so that it lasts as long as any of them.

    Raises UserError if another study holds it, or it cannot be written to.
    """
    make_folder(out)
    try:
        lock = (out / _LOCK).open("w")
    except OSError as error:
        raise UserError(f"{out / _LOCK}: cannot be written ({error.strerror}); name another --out") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{out}: a study is at work there already; wait for it, or name another --out") from error
        yield file.fileno()
