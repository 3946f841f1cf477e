"""The command line `python -m export`: turn runs into bundles, and verify bundles."""

import argparse
import json
import multiprocessing
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from speakerlens.arguments import ArgumentParser
from speakerlens.export import parity
from speakerlens.export.bundle import MANIFEST, ExportError, Options, Report, Written, export_run
from speakerlens.export.page import PACKAGE, write_page
from speakerlens.export.precisions import FILE as PRECISIONS
from speakerlens.export.precisions import parse_precisions
from speakerlens.export.triton import Backend, write_models
from speakerlens.export.verify import verify_bundle
from speakerlens.processor import cores
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.calibration import FALSE_ACCEPTANCE, HELD_OUT
from speakerlens.training.evaluation.predictions import FEWEST_OUT_OF_SET

_EXPORT_HELP = """\
Turn training runs into model bundles: ONNX and TorchScript, verified against the network they come from.

  {program} RUN [RUN ...] --out BUNDLES     write BUNDLES/<variant>/<version>/
  {program} verify BUNDLE [BUNDLE ...]      repeat a bundle's verification, on any machine
  {program} page BUNDLES --out DIR          write a page on which the bundles run in a browser
  {program} triton BUNDLE [...] --out DIR   write models for a Triton Inference Server
"""


def main(arguments: Sequence[str] | None = None, program: str = "python -m export") -> int:
    """Run a command line and return the exit code: 1 if something does not hold, 2 for wrong input.

    Args:
        arguments: the words after `program`; None: those of the process.
        program: how the command was called, for usage lines and errors.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: _run(words, program))


def exit_code(command: Callable[[], None]) -> int:
    """Run a command and return its exit code; write the sentence of a known error to standard error."""
    try:
        command()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except ExportError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def _run(words: Sequence[str], program: str) -> None:
    match words[:1]:
        case ["verify"]:
            parsed = _verify_parser(program).parse_args(words[1:])
            _verify(parsed.bundles, parsed.device)
        case ["page"]:
            _page(_page_parser(program).parse_args(words[1:]))
        case ["triton"]:
            _triton(_triton_parser(program).parse_args(words[1:]))
        case _:
            parsed = _export_parser(program).parse_args(words)
            _export(parsed.runs, parsed.out, Options(parsed.false_acceptance, parsed.probes, 1, parsed.precision))


def _export_parser(program: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=program,
        description=_EXPORT_HELP.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folder of a finished training run")
    parser.add_argument("--out", metavar="BUNDLES", type=Path, required=True, help="folder of the bundles")
    parser.add_argument(
        "--false-acceptance",
        metavar="SHARE",
        type=_share,
        default=FALSE_ACCEPTANCE,
        help="share of out-of-set utterances that the threshold may accept (default: %(default)s)",
    )
    parser.add_argument(
        "--no-probes",
        dest="probes",
        action="store_false",
        help="leave out the probe set, with which the server tests itself: it contains interference of the corpus "
        "(music, noise, other voices), which you may not want to distribute",
    )
    add_precision(parser)
    return parser


def add_precision(parser: ArgumentParser) -> None:
    """Add the option for number formats of graphs to a command that exports."""
    parser.add_argument(
        "--precision",
        metavar="LIST",
        type=_precisions,
        default=(),
        help="number formats of the graphs, fp32 and more, such as fp32,int8,fp16: int8 (predict alone) for CPUs, fp16 "
        "for GPUs; each is measured on the corpus, which takes minutes (default: fp32)",
    )


def _precisions(text: str) -> tuple[str, ...]:
    try:
        return parse_precisions(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to below 1, such as 0.05, not {text}")
    return share


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, with the number N of a GPU, not {text}")
    return text


def _verify_parser(program: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"{program} verify", description="Repeat a bundle's verification.")
    parser.add_argument("bundles", metavar="BUNDLE", type=Path, nargs="+", help="a bundle, such as bundles/act-da/1")
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        type=_device,
        default="cpu",
        help="where the graphs run: cpu, cuda, or cuda:N with the number N of a GPU (default: %(default)s)",
    )
    return parser


def _page_parser(program: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"{program} page",
        description="Write a page on which the newest bundle of every variant runs in a browser: files, the "
        "microphone, made interference, answers and maps. Any file server can serve it: python -m http.server -d DIR. "
        "It holds evaluation utterances of the first bundle as examples: mind whose they are.",
    )
    parser.add_argument("bundles", metavar="BUNDLES", type=Path, help="folder of the bundles")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the page")
    parser.add_argument(
        "--runtime", metavar="DIR", type=Path, help=f"holds the files of {PACKAGE} (default: npm fetches them)"
    )
    return parser


def _triton_parser(program: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"{program} triton",
        description="Write bundles into a model repository of a Triton Inference Server: the graphs, with dynamic "
        "batching and labels. Decoding, windows, speech detection and calibration are left to its clients.",
    )
    parser.add_argument("bundles", metavar="BUNDLE", type=Path, nargs="+", help="a bundle, such as bundles/act-da/1")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the model repository")
    parser.add_argument(
        "--backend",
        choices=get_args(Backend),
        default="onnxruntime",
        help="onnxruntime batches requests of the same length; python pads those of any length together, and needs "
        "the package onnxruntime in Triton's Python (default: %(default)s)",
    )
    parser.add_argument(
        "--max-batch", metavar="N", type=int, default=8, help="utterances in one batch (default: %(default)s)"
    )
    return parser


def _triton(arguments: argparse.Namespace) -> None:
    for bundle in arguments.bundles:
        names = write_models(bundle, arguments.out, arguments.backend, arguments.max_batch)
        sys.stdout.write(f"{arguments.out}: {', '.join(names)}\n")


def _page(arguments: argparse.Namespace) -> None:
    models = write_page(arguments.bundles, arguments.out, arguments.runtime)
    sys.stdout.write(
        f"{arguments.out}: {', '.join(models)}; serve it with: python -m http.server -b 127.0.0.1 -d {arguments.out}\n"
    )


def _export(runs: Sequence[Path], out: Path, options: Options) -> None:
    """Export each run: several in processes of their own, as many in parallel as there are cores; one in this process.

    Tracing is single-threaded Python, and most of the rest runs on single utterances, so processes use the cores better
    than threads. To start one takes seconds, as torch is imported again.
    """
    processes = min(len(runs), cores())
    options = options._replace(workers=max(1, cores() // processes))
    with progress_bar(Console()) as progress:
        tasks = [progress.add_task(run.name, total=None) for run in runs]
        if processes > 1:
            _export_in_processes(runs, out, options, progress, tasks)
            return
        _use_one_thread()
        for run, task in zip(runs, tasks, strict=True):
            _print_written(export_run(run, out, _shown(progress, task), *options), progress.console)


def _export_in_processes(
    runs: Sequence[Path],
    out: Path,
    options: Options,
    progress: Progress,
    tasks: Sequence[TaskID],
) -> None:
    forks = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(["speakerlens.export.cli"])  # torch is imported once for all of them
    reports: Queue[tuple[TaskID, int, int]] = context.Queue()
    with ProcessPoolExecutor(min(len(runs), cores()), context, _start_process, (reports,)) as pool:
        waiting = {pool.submit(_export_one, run, out, options, task) for run, task in zip(runs, tasks, strict=True)}
        while waiting:
            finished, waiting = wait(waiting, timeout=0.2)
            while not reports.empty():
                task, done, total = reports.get()
                progress.update(task, completed=done, total=total)
            for future in finished:
                _print_written(future.result(), progress.console)


def _print_written(written: Written, console: Console) -> None:
    """Print a line about a bundle."""
    state = "already there, with the same weights" if written.reused else "written and verified"
    console.print(f"{written.folder}: {state}; {calibrated_with(written.folder)}", highlight=False, soft_wrap=True)
    print_precisions(written.folder, console)


def print_precisions(bundle: Path, console: Console) -> None:
    """Print a line about each precision of a bundle beside float32."""
    if not (bundle / PRECISIONS).is_file():
        return
    for name, found in json.loads((bundle / PRECISIONS).read_text("utf-8"))["precisions"].items():
        verdict = "meets the floor" if found["meets_floor"] else f"misses the floor, not served: {found['misses'][0]}"
        time = f"predict takes {found['speed']['of_fp32']:.2f} of float32's processor time here"
        console.print(f"  {name} {verdict}; {time}", highlight=False, soft_wrap=True)


def _export_one(run: Path, out: Path, options: Options, task: TaskID) -> Written:
    def report(done: int, total: int) -> None:
        _reports.put((task, done, total))

    return export_run(run, out, report, *options)


def calibrated_with(bundle: Path) -> str:
    """Return a sentence about the scores that the threshold of a bundle rests on."""
    manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
    found = manifest["calibration"]
    if found is None:
        compared = _compared_with(manifest["verification"])
        return f"{compared}; {_searched_with(manifest['search'])}" if manifest["verification"] else compared
    few = "" if found["strangers"] == HELD_OUT else f", as dev has no {FEWEST_OUT_OF_SET} held-out speakers"
    return (
        f"threshold for {100 * found['false_acceptance']:g} % false acceptance from {found['stranger_utterances']} "
        f"utterances of {found['stranger_speakers']} {found['strangers']}{few}; {_searched_with(manifest['search'])}"
    )


def _compared_with(found: dict[str, Any] | None) -> str:
    """Return a sentence about what a network without a classifier decides on."""
    if found is None:
        return "no classifier, no threshold: scores are cosines that are not calibrated; --corpus calibrates them"
    pairs = found["thresholds"][0]
    return (
        f"no classifier; threshold for {100 * found['false_acceptance']:g} % false acceptance from "
        f"{pairs['different_pairs']} pairs of {found['persons']} persons"
    )


def _searched_with(found: dict[str, Any] | None) -> str:
    """Return a sentence about the calibration of search."""
    if found is None:
        return f"search is not calibrated: dev has no {FEWEST_OUT_OF_SET} speakers that the network was not trained on"
    return (
        f"search calibrated for {100 * found['false_alarm']:g} % false alarms with {found['utterances']} recordings of "
        f"{found['speakers']} {found['strangers']}"
    )


def _start_process(reports: "Queue[tuple[TaskID, int, int]]") -> None:
    global _reports  # noqa: PLW0603 - a queue reaches a worker only as it starts
    _reports = reports
    _use_one_thread()


_reports: "Queue[tuple[TaskID, int, int]]"


def _shown(progress: Progress, task: TaskID) -> Report:
    return lambda done, total: progress.update(task, completed=done, total=total)


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def _verify(bundles: Sequence[Path], device: str) -> None:
    console = Console()
    _use_one_thread()
    for bundle in bundles:
        with progress_bar(console) as progress:
            task = progress.add_task(str(bundle), total=None)
            verified = verify_bundle(bundle, _shown(progress, task), cores(), device)
        console.print(f"{bundle}: holds on {device}", highlight=False, soft_wrap=True)
        console.print(parity.table(verified))


def progress_bar(console: Console) -> Progress:
    """Return the progress bar of the commands that export."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)
