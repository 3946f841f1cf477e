"""Make a run folder from a ResNet of WeSpeaker or pyannote, for evaluation and export.

Without a corpus, or with --no-classifier, the network only embeds: it names no speakers of its own, and compares the
voices that are enrolled with the server. A corpus then serves to calibrate and test it. Otherwise the run gets a
classifier: if the checkpoint has one, --speakers names its classes; without one, or with --enrol, it is fitted on the
train utterances of the corpus: each speaker's weight is the mean of their embeddings, and the scale of the cosines is
calibrated on the dev split.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from speakerlens.training.checkpoint import CHECKPOINT, CONFIG, new_checkpoint, write_checkpoint
from speakerlens.training.compute import choose_device
from speakerlens.training.config import Config, dump_config
from speakerlens.training.data.manifest import Corpus, load_corpus
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.enrolment import enrol, enrolment_steps
from speakerlens.training.evaluation.metrics import is_at_bound
from speakerlens.training.files import make_folder
from speakerlens.training.imported.folder import find_files
from speakerlens.training.imported.networks import classes_of, read_speakers
from speakerlens.training.imported.source import Source, read_source
from speakerlens.training.model.heads import AAMHead
from speakerlens.training.model.network import SpeakerNetwork
from speakerlens.training.options import add_device

_AT_BOUND = (
    "warning: {}: the scale {:.4g} is at the bound of its search, as the dev utterances are all correct by a wide "
    "margin, or not at all; probabilities are unreliable until dev has more utterances, and interference"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command `import-wespeaker`."""
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="weights, or the folder that they lie in")
    parser.add_argument("--config", type=Path, metavar="YAML", help="(default: config.yaml beside the weights)")
    parser.add_argument(
        "--speakers",
        type=Path,
        metavar="LIST",
        help='the classes in their order: one name per line, or WeSpeaker\'s "name number"',
    )
    parser.add_argument(
        "--enrol", action="store_true", help="ignore the checkpoint's classifier, whose classes are other speakers"
    )
    parser.add_argument(
        "--no-classifier",
        dest="classifier",
        action="store_false",
        help="only embed: name no speakers, also with a corpus, which calibrates the comparison of voices",
    )
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="a corpus of the speakers, to calibrate and test on")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder to make")
    add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    out: Path = arguments.out
    if (out / CHECKPOINT).exists():
        raise UserError(f"{out}: already contains a run; choose another --out")
    classifier = arguments.classifier and arguments.corpus is not None
    if not classifier and (arguments.speakers or arguments.enrol):
        raise UserError("--speakers and --enrol make a classifier, which needs --corpus and cannot be left out")
    weights, beside = find_files(arguments.checkpoint)
    source = read_source(weights, arguments.config or beside)
    corpus = load_corpus(arguments.corpus) if arguments.corpus else None
    listed = read_speakers(arguments.speakers) if arguments.speakers else None
    console = Console()
    speakers: tuple[str, ...] = ()
    if corpus is None or not classifier:
        config = source.config(1.0)
        model, origin = source.model(config, 0), "without a classifier"
    elif arguments.enrol or not source.weights.classifier:
        speakers = _speakers_to_enrol(listed, corpus)
        config, model = _enrol(source, corpus, speakers, choose_device(arguments.device), console)
        if is_at_bound(1.0 / config.head.scale):
            console.print(_AT_BOUND.format(corpus.root, config.head.scale), highlight=False, soft_wrap=True)
        origin = f"enrolled from {len(corpus.utterances('train'))} train utterances, scale {config.head.scale:.1f}"
    else:
        speakers = _classes(listed, corpus, source)
        config, model = _keep(source, speakers)
        origin = "from the checkpoint"
    if speakers:
        origin = f"classifier of {len(speakers)} speakers {origin}"
    _write(out, source, config, model, speakers, corpus)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    line = f"{source.settings.model}, {parameters:,} parameters, {origin}"
    console.print(f"{out}: {line}", highlight=False, soft_wrap=True)
    return 0


def _keep(source: Source, speakers: Sequence[str]) -> tuple[Config, SpeakerNetwork]:
    """Return the network with the checkpoint's own classifier."""
    classes = classes_of(source.weights, speakers, source.settings, source.network.embedding, source.path)
    config = source.config(source.settings.scale)
    model = source.model(config, len(speakers))
    assert isinstance(model.head, AAMHead)
    with torch.no_grad():
        model.head.weight.copy_(classes)
    return config, model


def _enrol(
    source: Source, corpus: Corpus, speakers: Sequence[str], device: torch.device, console: Console
) -> tuple[Config, SpeakerNetwork]:
    """Return the network with a classifier fitted on the corpus."""
    model = source.model(source.config(1.0), len(speakers)).to(device)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("enrolling", total=enrolment_steps(corpus, speakers, device))
        scale = enrol(model, corpus, speakers, lambda: progress.advance(task))
    return source.config(scale), model


def _classes(listed: Sequence[str] | None, corpus: Corpus, source: Source) -> tuple[str, ...]:
    """Return the speakers of the checkpoint's classes; the corpus may lack some."""
    if listed is None:
        raise UserError(
            f"{source.path}: has a classifier; name its classes with --speakers, or leave it out with --enrol"
        )
    unknown = [speaker for speaker in corpus.speakers if speaker not in listed]
    if unknown:
        raise UserError(
            f"{corpus.root}: {len(unknown)} of its speakers are not among the {len(listed)} listed: "
            f"{', '.join(unknown[:5])}; prepare a corpus of listed speakers, or fit a classifier on these with --enrol"
        )
    return tuple(listed)


def _speakers_to_enrol(listed: Sequence[str] | None, corpus: Corpus) -> tuple[str, ...]:
    """Return the corpus's speakers, in the order of the list if there is one."""
    speakers = tuple(listed or corpus.speakers)
    if set(speakers) != set(corpus.speakers):
        odd = sorted(set(speakers) ^ set(corpus.speakers))
        raise UserError(
            f"{corpus.root}: has other speakers than those listed, such as {odd[0]}; to enrol they must be the same "
            "(without --speakers they are the corpus's)"
        )
    if len(speakers) < 2:
        raise UserError(f"{corpus.root}: has one speaker; at least two are needed")
    return speakers


def _write(
    out: Path, source: Source, config: Config, model: SpeakerNetwork, speakers: Sequence[str], corpus: Corpus | None
) -> None:
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    checkpoint = new_checkpoint(config.updates, source.settings.model.lower(), config, corpus, weights, {}, {})
    checkpoint["speakers"] = list(speakers)
    checkpoint["corpus_digest"] = source.digest() if corpus is None else corpus.digest
    checkpoint["code_revision"] = source.revision
    make_folder(out)
    (out / CONFIG).write_text(dump_config(config), encoding="utf-8")
    write_checkpoint(out, checkpoint)
