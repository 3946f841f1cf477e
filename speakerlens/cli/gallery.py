"""The command `gallery`: the enrolled speakers as a whole."""

import argparse
import errno
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from speakerlens.cli import files
from speakerlens.cli.failures import CommandError, Exit, call_error, usage_error
from speakerlens.cli.options import CommandParser, connect, speaker_name
from speakerlens.errors import ClientError

PART_BYTES = 256 * 1024
ACTIONS = ("export", "import", "migrate")


def add_gallery(parser: CommandParser) -> None:
    """Add the options of `gallery`."""
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help=f"one of {', '.join(ACTIONS)}")
    parser.add_argument("file", nargs="?", metavar="FILE", help="to write or to read; - is standard output or input")
    parser.add_argument(
        "--speaker",
        action="append",
        default=[],
        type=speaker_name,
        metavar="NAME",
        help="export this speaker, may be repeated (default: all)",
    )
    parser.add_variants()
    parser.add_json()
    parser.set_defaults(run=gallery)


def gallery(arguments: argparse.Namespace) -> int:
    """Export, import or migrate the enrolled speakers.

    Raises:
        CommandError: the command cannot start, the file cannot be read or written, or the call failed.
    """
    if (arguments.action == "migrate") == (arguments.file is not None):
        raise usage_error("gallery export FILE, gallery import FILE, or gallery migrate")
    if arguments.speaker and arguments.action != "export":
        raise usage_error("--speaker belongs to gallery export")
    action = {"export": _export, "import": _import, "migrate": _migrate}[arguments.action]
    try:
        return action(arguments)
    except ClientError as error:
        names = {"speakers": "--speaker", "content": files.title(arguments.file or "")}
        raise call_error(error, names) from error


def _export(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        size = _write(arguments.file, client.export_gallery(arguments.speaker))
    if arguments.file != files.STDIN:
        if arguments.json:
            files.print_json({"file": arguments.file, "bytes": size})
        else:
            files.print_line(
                f"wrote {files.title(arguments.file)}: {size} bytes of embeddings and names; keep it private"
            )
    return Exit.OK


def _import(arguments: argparse.Namespace) -> int:
    [content] = files.read_all([arguments.file])
    with connect(arguments) as client:
        done = client.import_gallery(_parts(content))
    if arguments.json:
        files.print_json({"speakers": done.speakers, "exemplars": done.exemplars})
    else:
        files.print_line(f"enrolled {done.speakers} speakers with {done.exemplars} exemplars")
    return Exit.OK


def _migrate(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        done = client.migrate_gallery(arguments.variants)
    if arguments.json:
        files.print_json({"migrated": done.migrated, "must_enroll_again": done.must_enroll_again})
        return Exit.OK
    files.print_line(f"embedded the kept recordings of {done.migrated} speakers again")
    for name in done.must_enroll_again:
        files.print_line(f"{files.title(name)} must enrol again: no recording is kept that can be embedded")
    return Exit.OK


def _parts(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), PART_BYTES):
        yield content[start : start + PART_BYTES]


def _write(file: str, parts: Iterable[bytes]) -> int:
    """Write a file that only its owner reads, whole or not at all, and return its size in bytes.

    A link is followed; a device or a pipe is written to and stays what it is.
    """
    try:
        if file == files.STDIN:
            return sum(sys.stdout.buffer.write(part) for part in parts)
        path = Path(file).resolve()
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as written:
                return sum(written.write(part) for part in parts)
        descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(descriptor, "wb") as written:
                size = sum(written.write(part) for part in parts)
            Path(unfinished).replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                Path(unfinished).unlink()
            raise
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or errno.EIO)
        raise CommandError(Exit.FAILURE, "UNWRITABLE", f"{files.title(file)}: {reason}") from error
    return size
