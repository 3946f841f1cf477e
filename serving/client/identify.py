"""The command `speakerlens identify`: one call per file."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from serving.client import outputs
from serving.client.client import SpeakerClient
from serving.client.connection import connect
from serving.client.errors import ClientError
from serving.client.failures import CommandError, Exit, call_error, complain, usage_error
from serving.client.request import Explain, StageName, identify_request
from serving.client.results import Identification


def run(arguments: argparse.Namespace) -> int:
    """Ask about every file in turn; one that fails does not stop the others, unless they would fail likewise.

    Raises:
        CommandError: the command cannot start.
    """
    question = _question(arguments)
    show = outputs.json_lines if arguments.json else outputs.tables()
    writers: dict[str, tuple[Path, outputs.Write]] = {}
    if arguments.plot:
        writers["plot"] = (arguments.plot, outputs.plots(arguments.plot))
    if arguments.save:
        writers["arrays"] = (arguments.save, outputs.arrays(arguments.save))
    exit_code = Exit.OK
    with connect(arguments) as client:
        for number, file in enumerate(arguments.files, start=1):
            try:
                content = _read(file)
                result = _ask(client, content, question)
                written = {}
                for kind, (path, write) in writers.items():
                    written[kind] = outputs.numbered(path, number, len(arguments.files))
                    _write(write, written[kind], file, content, result)
            except CommandError as error:
                exit_code = exit_code or error.exit_code
                _report(file, error, as_json=arguments.json)
                if error.stops:
                    break
            else:
                show(file, result, written)
    return exit_code


def _question(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `SpeakerClient.identify`, checked before any file is read."""
    if arguments.files.count(outputs.STDIN) > 1:
        raise usage_error("- (standard input) can be read only once")
    explained = arguments.explain or arguments.stages or arguments.target or arguments.plot or arguments.save
    stages = cast(Sequence[StageName], (arguments.stages or "fused").split(","))
    question = {
        "variants": arguments.variants,
        "top_k": arguments.top_k,
        "explain": Explain(stages=stages, target=arguments.target) if explained else False,
    }
    try:
        identify_request(b"", None, with_embedding=False, **question)
    except ValueError as error:
        raise usage_error(str(error)) from error
    return question


def _read(file: str) -> bytes:
    try:
        return _read_standard_input() if file == outputs.STDIN else Path(file).read_bytes()
    except OSError as error:
        raise CommandError(Exit.INPUT, "UNREADABLE", error.strerror or str(error)) from error


def _read_standard_input() -> bytes:
    if sys.stdin is None:  # closed, as by `<&-`
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return sys.stdin.buffer.read()


def _ask(client: SpeakerClient, content: bytes, question: dict[str, Any]) -> Identification:
    try:
        return client.identify(content, **question)
    except ClientError as error:
        raise call_error(error) from error


def _write(write: outputs.Write, target: Path, file: str, content: bytes, result: Identification) -> None:
    try:
        write(target, file, content, result)
    except OSError as error:
        raise CommandError(Exit.FAILURE, "UNWRITABLE", f"cannot write {target}: {error.strerror or error}") from error


def _report(file: str, error: CommandError, *, as_json: bool) -> None:
    # What stops everything, such as a server that is not there, is not this file's fault.
    complain(str(error) if error.stops else f"{outputs.title(file)}: {error}")
    if as_json:
        outputs.print_json({"file": file, "error": {"code": error.code, "message": str(error)}})
