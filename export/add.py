"""The command `speakerlens models add`: from what a user downloaded to a verified bundle in a server's folder."""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from speakerlens.arguments import ArgumentParser
from speakerlens.export.bundle import MANIFEST, Options, Written, export_loaded, export_run
from speakerlens.export.cli import add_precision, calibrated_with, exit_code, print_precisions, progress_bar
from speakerlens.export.verify import verify_files
from speakerlens.processor import cores
from speakerlens.training.checkpoint import CHECKPOINT
from speakerlens.training.data.manifest import load_corpus
from speakerlens.training.errors import UserError
from speakerlens.training.files import make_folder
from speakerlens.training.imported.folder import find_files, plain_name, variant_name
from speakerlens.training.imported.source import embedding_run, read_source

_HELP = """\
Make a model ready to serve: PATH becomes a verified bundle in the folder that the server reads.

PATH is one of
  a folder or file of a network of pyannote or WeSpeaker, such as a download of
  pyannote/wespeaker-voxceleb-resnet34-LM (pytorch_model.bin, avg_model.pt or safetensors, and config.yaml)
  a run that `speakerlens train` or `import-wespeaker` made
  a bundle, which is checked and copied

An imported network has no classifier: enrol speakers with the server, and search or verify them. Without --corpus its
scores are cosines without a threshold; a corpus of any speakers calibrates them.
"""


def main(arguments: Sequence[str] | None = None, program: str = "speakerlens models add") -> int:
    """Run the command line and return the exit code: 1 if something does not hold, 2 for wrong input.

    Args:
        arguments: the words after `program`; None: those of the process.
        program: how the command was called, for usage lines and errors.
    """
    parser = ArgumentParser(prog=program, description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="PATH", type=Path, help="what to add")
    parser.add_argument(
        "--bundles",
        metavar="DIR",
        type=Path,
        default=Path("bundles"),
        help="the server's folder (default: %(default)s)",
    )
    parser.add_argument("--name", metavar="NAME", help="of the model (default: after the folder)")
    parser.add_argument("--corpus", metavar="DIR", type=Path, help="a corpus to calibrate and test the network on")
    add_precision(parser)
    parsed = parser.parse_args(arguments)
    return exit_code(lambda: _add(parsed))


def _add(parsed: argparse.Namespace) -> None:
    added = add(parsed.path, parsed.bundles, parsed.name, parsed.corpus, parsed.precision)
    console = Console()
    state = "was already there" if added.reused else "added and verified"
    console.print(f"{added.folder}: {state}; {calibrated_with(added.folder)}", highlight=False, soft_wrap=True)
    print_precisions(added.folder, console)
    console.print(f"serve it: speakerlens serve --bundles {parsed.bundles}", highlight=False, soft_wrap=True)


def add(
    path: Path,
    bundles: Path,
    name: str | None = None,
    corpus: Path | None = None,
    precisions: tuple[str, ...] = (),
) -> Written:
    """Make `path` a bundle in the folder `bundles`.

    Args:
        path: a network's folder or file, a run's folder, or a bundle.
        bundles: the server's folder.
        name: of an imported network's model; None: after its folder.
        corpus: to calibrate and test an imported network on; None: it is not calibrated.
        precisions: number formats of graphs beside float32; of a bundle they stay as they are.

    Raises:
        UserError: it is none of these, or cannot be read; the message says what it is and what would fit.
        ExportError: the exported graphs differ from the network, or a bundle is damaged.
    """
    is_bundle, is_run = (path / MANIFEST).is_file(), (path / CHECKPOINT).is_file()
    if (is_bundle or is_run) and (name or corpus):
        kind = "a bundle" if is_bundle else "a run"
        raise UserError(f"{path}: is {kind}, which has its name and its corpus; leave --name and --corpus out")
    if is_bundle and precisions:
        raise UserError(f"{path}: is a bundle, which has its precisions; leave --precision out")
    if is_bundle:
        return _copy(path, bundles)
    torch.set_num_threads(1)  # the verification runs a batch on each processor
    with progress_bar(Console()) as bar:
        task = bar.add_task(path.name or str(path), total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if is_run:
            return export_run(path, bundles, report, workers=cores(), formats=precisions)
        weights, config = find_files(path)
        source = read_source(weights, config)
        loaded = None if corpus is None else load_corpus(corpus)
        run = embedding_run(source, _checked_name(name) if name else variant_name(path), loaded)
        return export_loaded(run, loaded, bundles, report, Options(workers=cores(), precisions=precisions))


def _checked_name(name: str) -> str:
    plain = plain_name(name)
    if plain != name:
        raise UserError(
            f"--name {name}: a name has small letters, digits and hyphens, at most 63, such as {plain or 'my-model'}"
        )
    return name


def _copy(path: Path, bundles: Path) -> Written:
    """Check a bundle's files and copy it to its place."""
    manifest: dict[str, Any] = verify_files(path)
    target = bundles / manifest["variant"] / str(manifest["version"])
    if target.exists():
        if (target / MANIFEST).is_file() and (target / MANIFEST).read_bytes() == (path / MANIFEST).read_bytes():
            return Written(target, reused=True)
        found = json.loads((target / MANIFEST).read_text("utf-8")) if (target / MANIFEST).is_file() else {}
        made = found.get("created", "another time")
        raise UserError(f"{target}: another bundle is there, made {made}; remove it, or export yours into this folder")
    make_folder(target.parent)
    staging = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=target.parent))
    try:
        shutil.copytree(path, staging / "bundle")
        (staging / "bundle").rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Written(target, reused=False)
