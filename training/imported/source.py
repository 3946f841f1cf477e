"""An imported network: the checked content of the files, and the networks of this program made of it."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from speakerlens.training.checkpoint import Run, code_revision
from speakerlens.training.config import Config, DataConfig, HeadConfig, NetworkConfig, dump_config, parse_config
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.errors import UserError
from speakerlens.training.imported.folder import CONFIG
from speakerlens.training.imported.networks import network_config
from speakerlens.training.imported.settings import Settings, described_settings, read_settings
from speakerlens.training.imported.weights import Checkpoint, Weights, read_checkpoint
from speakerlens.training.model.network import SpeakerNetwork


class Source(NamedTuple):
    """The contents of checkpoint and configuration; `path` is the checkpoint's."""

    path: Path
    settings: Settings
    weights: Weights
    network: NetworkConfig

    def config(self, scale: float) -> Config:
        """Return a configuration of one update; raise UserError if a value is out of this program's bounds."""
        data = DataConfig(crop_seconds=self.settings.crop_seconds)
        config = Config(self.network, updates=1, head=HeadConfig(kind="aam", scale=scale), data=data)
        return parse_config(dump_config(config), f"{self.path} (as a configuration of this program)")

    def model(self, config: Config, classes: int) -> SpeakerNetwork:
        """Return a network with the checkpoint's encoder, in evaluation mode; its head is new, or none."""
        model = SpeakerNetwork(config.network, config.head, classes)
        model.encoder.load_state_dict(self.weights.encoder)
        return model.eval()

    def digest(self) -> str:
        """Return the SHA-256 of the checkpoint's file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def revision(self) -> str:
        """The code that imported the network, and the file's name."""
        return f"{code_revision()} (imported {self.path.name})"


def read_source(checkpoint: Path, config: Path | None) -> Source:
    """Read and check a network's files.

    Args:
        checkpoint: the weights.
        config: WeSpeaker's or pyannote's config.yaml; None if there is none, which a checkpoint of pyannote does not
            need.

    Raises:
        UserError: a file cannot be read, or is of something else than this program imports.
    """
    settings = None if config is None else read_settings(config)
    content = read_checkpoint(checkpoint)
    described = _described(checkpoint, content)
    settings = settings or described
    if settings is None:
        raise UserError(
            f"{checkpoint}: no {CONFIG} beside it, and the file does not say what features and pooling its network "
            "has; put the configuration that it was published with there"
        )
    if described is not None and described.model != settings.model:
        raise UserError(f"{checkpoint}: is of a {described.model}, but {config} is of a {settings.model}")
    return Source(checkpoint, settings, content.weights, network_config(content.weights.encoder, settings, checkpoint))


def embedding_run(source: Source, variant: str, corpus: Corpus | None) -> Run:
    """Return a finished run of a network without a classifier.

    Args:
        source: from `read_source`.
        variant: name of the model.
        corpus: what to calibrate and test on, if anything.
    """
    config = source.config(1.0)
    return Run(
        folder=source.path,
        variant=variant,
        config=config,
        speakers=(),
        network=source.model(config, 0),
        corpus_folder=None if corpus is None else corpus.root,
        corpus_digest=source.digest() if corpus is None else corpus.digest,
        step=1,
        updates=1,
        code_revision=source.revision,
    )


def _described(path: Path, content: Checkpoint) -> Settings | None:
    return None if content.network is None else described_settings(path, content.network, content.arguments)
