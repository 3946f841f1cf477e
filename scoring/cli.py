"""The command `speakerlens score`: an archive of recordings into one table."""

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from speakerlens.arguments import ArgumentParser
from speakerlens.measures.precision import FP32, PRECISIONS
from speakerlens.measures.windows import WINDOW_SECONDS
from speakerlens.processor import cores
from speakerlens.scoring.archive import Archive, Totals
from speakerlens.scoring.inputs import InputError
from speakerlens.scoring.pool import Pool, ScoringError
from speakerlens.serving.bundle import BundleError
from speakerlens.serving.errors import StartupError

log = logging.getLogger("scoring")

PROGRESS_SECONDS = 10.0
# Names of failed recordings on stderr; the log file and the table have all.
MOST_NAMED = 20
OK, USAGE, INPUT, FAILURE, INTERRUPTED = 0, 2, 3, 7, 130

EPILOG = """examples:
  speakerlens score recordings --bundle bundles/act-da/1 --out scores.parquet
  find /archive -name '*.opus' -print0 | speakerlens score - --bundle bundles --out scores.jsonl

A run that was ended, however it ended, goes on where it was when the same command is given again.

exit codes:
  0  every recording was scored
  2  wrong usage, or the table is of other recordings, or was made with other options
  3  the table is complete, and some recordings could not be scored: it has the reason in the columns code and error
  7  nothing can be scored or written any more; the same command goes on"""


def main(argv: Sequence[str] | None = None, program: str = "speakerlens score") -> int:
    """Run the command; return the exit code."""
    arguments = _parser(program).parse_args(argv)
    begun = time.monotonic()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _logged(arguments.log):
            totals = _try(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
    if isinstance(totals, int):
        return totals
    failed = sum(totals.failed.values())
    summary = {
        "out": str(arguments.out),
        "recordings": totals.recordings,
        "rows": totals.rows,
        "failed": failed,
        "failed_by_code": dict(sorted(totals.failed.items())),
        "audio_s": round(totals.audio_s, 3),
        "seconds": round(time.monotonic() - begun, 3),
    }
    sys.stdout.write(json.dumps(summary) + "\n")
    return INPUT if failed else OK


@contextmanager
def _logged(file: Path | None) -> Iterator[None]:
    """Write the log to stderr, and to a file as well."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setLevel(logging.INFO)
    if file is not None:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    log.setLevel(logging.DEBUG)
    log.propagate = False
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def _try(arguments: argparse.Namespace) -> Totals | int:
    """Score the archive; return what it counted, or the exit code of its error."""
    try:
        return _run(arguments)
    except (InputError, BundleError, StartupError, ValueError) as error:
        log.error("%s", error)  # noqa: TRY400 - a sentence
        return USAGE
    except ScoringError as error:
        log.error("%s", error)  # noqa: TRY400
        return FAILURE
    except OSError as error:
        log.error("%s: %s", error.filename, error.strerror)  # noqa: TRY400
        return FAILURE
    except KeyboardInterrupt:
        log.warning("interrupted; the same command goes on")
        return INTERRUPTED


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _run(arguments: argparse.Namespace) -> Totals:
    from speakerlens.scoring.local import find_bundles  # noqa: PLC0415  (--help must work without an ONNX Runtime)
    from speakerlens.serving.models.reader import read_bundle  # noqa: PLC0415

    bundles = [read_bundle(found.folder) for found in find_bundles(arguments.bundle, arguments.variants)]
    options: dict[str, Any] = {
        "variants": [bundle.variant for bundle in bundles],
        "embeddings": arguments.embeddings,
        "maps": None if arguments.maps is None else str(arguments.maps.resolve()),
        "stages": arguments.stages,
        "window_seconds": arguments.window_seconds,
    }
    if arguments.precision != FP32:  # a table of before goes on with the same options
        options["precision"] = arguments.precision
    archive = Archive(arguments.source, arguments.out, {"bundles": [bundle.digest for bundle in bundles], **options})
    done = archive.finished()
    if done is not None:
        log.info("%s is complete already", arguments.out)
        archive.clear()
        return done
    with archive.begun() as left:
        computing = {"device": arguments.device, "threads": arguments.threads, "max_batch": arguments.max_batch}
        plan = archive.plan(arguments.bundle, {**options, **computing})
        environments = _environments(arguments.device, arguments.workers)
        pool = Pool(plan, environments, left)
        word = "going on" if archive.resumed else "scoring"
        log.info("%s: %d recordings, %d processes", word, archive.total, len(environments))
        progress = Progress(archive, lambda: pool.restarts)
        for each in pool.run():
            if each is not None:
                archive.record(each)
                progress.name(each.named)
            progress.tell()
        progress.tell(last=True)
        archive.finish(plan)
    return archive.totals


class Progress:
    """Lines of the log: how far it is, and which recordings failed."""

    def __init__(self, archive: Archive, restarts: Callable[[], int]) -> None:
        self._archive = archive
        self._restarts = restarts
        self._begun = self._told = time.monotonic()
        self._before: int | None = None
        self._named = 0

    def name(self, failed: Sequence[tuple[str, str, str]]) -> None:
        """Name recordings that failed; the first on stderr, too."""
        for path, code, error in failed:
            self._named += 1
            level = logging.WARNING if self._named <= MOST_NAMED else logging.DEBUG
            log.log(level, "%s: %s: %s", path, code, error)
            if self._named == MOST_NAMED:
                log.warning("further ones are named in the table")

    def tell(self, last: bool = False) -> None:
        """Say how far it is, every PROGRESS_SECONDS and at the end."""
        now, totals = time.monotonic(), self._archive.totals
        if self._before is None:
            self._before = totals.recordings  # of earlier runs
        if not last and now - self._told < PROGRESS_SECONDS:
            return
        self._told = now
        rate = (totals.recordings - self._before) / max(now - self._begun, 1e-9)
        left = (self._archive.total - totals.recordings) / rate if rate else 0.0
        log.info(
            "%d of %d recordings (%.1f %%), %d failed, %.1f a second, %s left%s",
            totals.recordings,
            self._archive.total,
            100 * totals.recordings / max(1, self._archive.total),
            sum(totals.failed.values()),
            rate,
            _clock(left),
            f", {self._restarts()} processes ended and were replaced" if self._restarts() else "",
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _environments(device: str, workers: int | None) -> list[dict[str, str]]:
    """Return the variables of each process: one for each GPU, or one for each core."""
    if device.startswith("cuda:"):
        return [{}] * (workers or 1)
    gpus = [] if device == "cpu" else _gpus()
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(workers or len(gpus))]
    return [one_thread] * (workers or cores())


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [each for each in chosen.split(",") if each]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def _parser(program: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=program,
        description="Score an archive of recordings into one table, without a server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        metavar="DIR|LIST|-",
        help="folder of recordings, file with a path on each line, or such lines on stdin",
    )
    parser.add_argument(
        "--bundle", type=Path, required=True, metavar="DIR", help="a bundle's folder, or a folder of bundles"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="table: .parquet, .jsonl or .csv")
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="processes (default: one for each GPU, else for each core)"
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda, or cuda:N for one GPU (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=_positive, default=1, metavar="N", help="threads of a process on the CPU (default: 1)"
    )
    parser.add_argument("--variants", type=_names, default=(), metavar="NAME,...", help="which models (default: all)")
    parser.add_argument(
        "--embeddings", action=argparse.BooleanOptionalAction, default=True, help="write the embeddings (default: yes)"
    )
    parser.add_argument("--maps", type=Path, metavar="DIR", help="write saliency maps into this folder")
    parser.add_argument(
        "--stages", type=_names, default=("fused",), metavar="NAME,...", help="which maps: s1 to s4, fused (default)"
    )
    parser.add_argument(
        "--window-seconds",
        type=float,
        default=WINDOW_SECONDS,
        metavar="SECONDS",
        help="as of the server (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=(*PRECISIONS, "auto"),
        default=FP32,
        help="number format of the models, as of the server (default: %(default)s)",
    )
    parser.add_argument(
        "--max-batch", type=_positive, metavar="N", help="utterances in one batch (default: 8, on a GPU by its memory)"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="append the progress to this file, too")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: give 1 or more")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(","))
