"""Mutation testing: change one operator or number at a time, run the unit tests, and report the share that fails.

    python -m benchmarks.mutation measures --seconds 600
    python -m benchmarks.mutation serving/gallery/sqlite.py --tests tests/serving/gallery/test_sqlite.py

A mutant is killed if a test fails or the tests take much longer than without it. Each mutant runs in a forked process
that has the libraries imported already, and runs only the tests that execute its line, quickest first. Results are kept
in `--state`: a second run goes on where the first one stopped, and `--survivors` tests the survivors again.
"""

import argparse
import contextlib
import hashlib
import importlib
import importlib.machinery
import json
import os
import random
import select
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest

from benchmarks.mutants import Mutant, mutants, unchanged

ROOT = Path(__file__).resolve().parents[1]
ENGINE_TESTS = (
    *("admission", "batcher", "deadlines", "estimate"),
    *("internal_errors", "recovery", "scheduler", "state_machine"),
)
AREAS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "measures": (("measures/*.py",), ("tests/measures/test_{stem}.py",)),
    "engine": (
        tuple(f"serving/engine/{name}.py" for name in ("queue", "batcher", "scheduler", "admission")),
        tuple(f"tests/serving/engine/test_{name}.py" for name in ENGINE_TESTS),
    ),
    "store": (
        ("serving/gallery/sqlite.py", "serving/gallery/sqlite_file.py"),
        ("tests/serving/gallery/test_sqlite.py", "tests/serving/gallery/test_store.py"),
    ),
}
"""Name to the files that are mutated and their tests, where `{stem}` stands for the name of the file."""

# A mutant that loops is stopped after this many times the duration of its tests, plus a constant.
SLOWER, GRACE_SECONDS = 5.0, 10.0


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from code instead of its file."""

    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, _fullname: str) -> CodeType:
        return self._code


class _Finder:
    """Replaces one module in the imports of this process."""

    def __init__(self, module: str, code: CodeType) -> None:
        self._module, self._code = module, code

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name != self._module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(name, spec.origin, self._code)
        return spec


class _Recorder:
    """A pytest plugin that records which lines of a file each test executes, and how long each test takes."""

    def __init__(self, file: Path) -> None:
        self._file = str(file)
        self.lines: dict[str, set[int]] = {}
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        seen = self.lines.setdefault(item.nodeid, set())
        known: dict[str, bool] = {}

        def local(frame: FrameType, event: str, _argument: object) -> Any:
            if event == "line":
                seen.add(frame.f_lineno)
            return local

        def trace(frame: FrameType, _event: str, _argument: object) -> Any:
            name = frame.f_code.co_filename
            if name not in known:
                known[name] = os.path.realpath(name) == self._file
            if not known[name]:
                return None
            seen.add(frame.f_lineno)
            return local

        started = time.monotonic()
        sys.settrace(trace)
        threading.settrace(trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self.seconds[item.nodeid] = time.monotonic() - started


def _in_child(work: Callable[[], int], writer: int | None = None) -> int:
    """Fork a silent child that ends with the status that `work` returns; return its process id."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setsid()
        silent = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(silent, descriptor)
        status = work()
    finally:
        if writer is not None:
            os.close(writer)
        os._exit(status)


def _pytest(tests: Sequence[str], plugins: Sequence[object] = ()) -> int:
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        flags = [
            "-x",
            "-q",
            "-m",
            "unit",
            "-p",
            "no:cacheprovider",
            "--hypothesis-seed=0",
            f"--basetemp={folder}/tests",
        ]
        flags += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that are imported already
        return int(pytest.main([*flags, *tests], plugins=list(plugins)))


def record(file: Path, tests: Sequence[str]) -> _Recorder:
    """Run the tests once without a mutant, and return what each of them executes of `file`.

    Raises:
        SystemExit: a test fails as it is.
    """
    recorder = _Recorder(file)
    reader, writer = os.pipe()

    def work() -> int:
        status = _pytest(tests, [recorder])
        lines = {name: sorted(found) for name, found in recorder.lines.items()}
        with os.fdopen(os.dup(writer), "w") as stream:
            json.dump(
                {"status": status, "lines": lines, "seconds": recorder.seconds, "libraries": _libraries()}, stream
            )
        return status

    child = _in_child(work, writer)
    os.close(writer)
    with os.fdopen(reader) as stream:
        found = json.loads(stream.read() or '{"status": 70}')
    os.waitpid(child, 0)
    if found["status"]:
        raise SystemExit(f"the tests of {file.relative_to(ROOT)} fail without a mutant (status {found['status']})")
    for library in found["libraries"]:
        with contextlib.suppress(Exception):
            importlib.import_module(library)
    recorder.lines = {name: set(lines) for name, lines in found["lines"].items()}
    recorder.seconds = found["seconds"]
    return recorder


def _libraries() -> list[str]:
    """Return the modules of other projects that this process has imported; a mutant's process inherits them."""
    return [
        name for name, module in list(sys.modules.items()) if "site-packages" in (getattr(module, "__file__", "") or "")
    ]


@dataclass(frozen=True)
class _Run:
    key: str
    deadline: float


def outcomes(
    module: str, chosen: Sequence[Mutant], recorder: _Recorder, jobs: int, until: float
) -> Iterator[tuple[str, str]]:
    """Yield each mutant's key with `killed`, `survived` or `timeout`, until the clock reads `until`."""
    imported = set.intersection(*recorder.lines.values()) if recorder.lines else set()
    waiting, running = list(chosen), dict[int, _Run]()
    while running or (waiting and time.monotonic() < until):
        while waiting and len(running) < jobs and time.monotonic() < until:
            mutant = waiting.pop(0)
            tests = [name for name, lines in recorder.lines.items() if mutant.line in lines]
            if not tests or mutant.line in imported:
                tests = list(recorder.lines)  # executed at the import, or part of a statement that begins above
            tests.sort(key=lambda name: recorder.seconds[name])
            limit = SLOWER * sum(recorder.seconds[name] for name in tests) + GRACE_SECONDS
            running[_in_child(lambda m=mutant, t=tests: _mutated(module, m, t))] = _Run(  # type: ignore[misc]
                mutant.key, time.monotonic() + limit
            )
        select.select([], [], [], 0.02)
        for child, run in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                yield run.key, "survived" if status == 0 else "killed"
            elif time.monotonic() > run.deadline:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                yield run.key, "timeout"
            else:
                continue
            del running[child]


def _mutated(module: str, mutant: Mutant, tests: Sequence[str]) -> int:
    sys.meta_path.insert(0, _Finder(module, mutant.code))
    return _pytest(tests)


def run(files: Sequence[Path], tests: Sequence[str], arguments: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Test the mutants of files, and return the outcome of each by file and key, with those of the state file."""
    state_file: Path = arguments.state
    state = json.loads(state_file.read_text("utf-8")) if state_file.exists() else {}
    until = time.monotonic() + arguments.seconds
    found: dict[str, dict[str, str]] = {}
    for file in files:
        name, source = file.relative_to(ROOT).as_posix(), file.read_text("utf-8")
        digest = hashlib.sha256(source.encode()).hexdigest()
        entry = state.get(name, {})
        known: dict[str, str] = entry.get("outcomes", {}) if entry.get("digest") == digest else {}
        if arguments.survivors:
            known = {key: outcome for key, outcome in known.items() if outcome != "survived"}
        everything = list(mutants(source, file))
        if arguments.sample and arguments.sample < len(everything):
            everything = random.Random(name).sample(everything, arguments.sample)  # noqa: S311  (nothing secret)
        left = [mutant for mutant in everything if mutant.key not in known]
        found[name] = known
        state[name] = {"digest": digest, "outcomes": known}
        if left and time.monotonic() < until:
            module = "speakerlens." + name.removesuffix(".py").replace("/", ".")
            recorder = record(file, tests)
            _check(outcomes(module, [unchanged(source, file)], recorder, 1, until), name)
            for key, outcome in outcomes(module, left, recorder, arguments.jobs, until):
                known[key] = outcome
                state_file.parent.mkdir(parents=True, exist_ok=True)
                state_file.write_text(json.dumps(state, indent=1), "utf-8")
        _print(name, known, len(everything), arguments.verbose)
    return found


def _check(unchanged_outcome: Iterator[tuple[str, str]], name: str) -> None:
    """Refuse to count where the tests fail for another reason than a change.

    Raises:
        SystemExit: they fail with the file as it is.
    """
    if any(outcome != "survived" for _, outcome in unchanged_outcome):
        raise SystemExit(f"the tests of {name} fail in a forked process without a mutant")


def _print(name: str, known: dict[str, str], total: int, verbose: bool) -> None:
    killed = sum(outcome != "survived" for outcome in known.values())
    share = killed / len(known) if known else 0.0
    print(f"{name}: {killed} of {len(known)} killed ({share:.1%}), {total} mutants", flush=True)
    lines = (ROOT / name).read_text("utf-8").splitlines()
    for key, outcome in known.items():
        if verbose and outcome == "survived":
            print(f"  {key:32} {lines[int(key.partition(':')[0]) - 1].strip()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Report the share of mutants killed; 1 if it is below `--at-least`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="+", help=f"an area ({', '.join(AREAS)}) or files")
    parser.add_argument("--tests", nargs="+", default=[], help="tests of the files")
    parser.add_argument("--seconds", type=float, default=600.0, help="start no mutant after this many seconds")
    parser.add_argument("--sample", type=int, default=0, help="mutants per file, chosen at random; 0 for all")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--state", type=Path, default=ROOT / "build/mutation.json", help="where results are kept")
    parser.add_argument("--survivors", action="store_true", help="test the survivors of the last run again")
    parser.add_argument("--at-least", type=float, default=0.0, help="share to be killed")
    parser.add_argument("--verbose", action="store_true", help="list the survivors")
    arguments = parser.parse_args(argv)
    work: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for target in arguments.targets:
        patterns, tests = AREAS.get(target, ((target,), tuple(arguments.tests)))
        if not tests:
            parser.error(f"{target}: give --tests")
        for file in sorted(file for pattern in patterns for file in ROOT.glob(pattern) if file.name != "__init__.py"):
            work[tuple(test.format(stem=file.stem) for test in tests)].append(file)
    os.chdir(ROOT)
    found: dict[str, dict[str, str]] = {}
    for tests, files in work.items():
        found |= run(files, tests, arguments)
    every = [outcome for known in found.values() for outcome in known.values()]
    share = sum(outcome != "survived" for outcome in every) / max(1, len(every))
    print(f"all: {share:.1%} of {len(every)} mutants killed")
    return int(share < arguments.at_least)


if __name__ == "__main__":
    sys.exit(main())
