"""Table 4: training on the demo's corpus, ours beside a plain loop whose loader computes the features.

Both train the same network with the same objective, optimiser and batches of clean crops. The plain loop is what
PyTorch's tutorials show: a data set of files, `DataLoader` with a process per core, features by kaldi-native-fbank.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.measuring import Others, Sample, interleave, ratio
from benchmarks.peers.workers import Worker
from benchmarks.processes import processor_seconds

CONFIG = Path(__file__).parents[2] / "training" / "configs" / "demo.yaml"
UPDATES = 30
PLAIN, OURS = "plain loop", "ours"


def cells(corpus: Path, quick: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of the cell and the function that measures it; nothing without the corpus."""
    if (corpus / "manifest.jsonl").exists():
        yield "training/clean", partial(_cell, corpus, 5 if quick else UPDATES, quick)


def ours(corpus: Path, updates: int) -> Callable[[], int]:
    """Return a function that trains for some updates as `fit` does, and returns the number of utterances."""
    import torch

    from benchmarks.training import Bench
    from speakerlens.training.config import load_config
    from speakerlens.training.data.manifest import load_corpus

    bench = Bench(load_config(CONFIG, []), "clean", load_corpus(corpus), torch.device("cpu"), updates)

    def run() -> int:
        bench.together()
        return bench.rows * (updates + 3)  # with those of its warm-up

    return run


def plain(corpus: Path, updates: int) -> Callable[[], int]:
    """Return the same with PyTorch's loader and features computed in it."""
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader

    from speakerlens.training.config import load_config
    from speakerlens.training.data.manifest import load_corpus
    from speakerlens.training.loop import make_optimiser
    from speakerlens.training.model.network import SpeakerNetwork

    config, loaded = load_config(CONFIG, []), load_corpus(corpus)
    data = Crops(loaded, config.data.crop_seconds)
    batch = config.data.batch_size
    network = SpeakerNetwork(config.network, config.head, len(loaded.speakers)).train()
    optimiser = make_optimiser(network, config.optimiser)
    loader: DataLoader[Any] = DataLoader(
        data,  # type: ignore[arg-type]  # torch asks for its own class
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
    )

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    source = batches()

    def run() -> int:
        for _ in range(updates):
            features, labels = next(source)
            frames = torch.full((len(features),), features.shape[2])
            embedding = network.encoder(features, frames, False).embedding
            loss = F.cross_entropy(network.training_logits(embedding, labels, config.head.margin), labels)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
        return batch * updates

    return run


class Crops:
    """A data set of crops as features, float32 [mel, frames], and labels."""

    def __init__(self, corpus: Any, seconds: float) -> None:
        self._clips = corpus.utterances("train")
        self._labels = {speaker: index for index, speaker in enumerate(corpus.speakers)}
        self._samples = round(seconds * 16_000)

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Any:
        import kaldi_native_fbank as knf
        import numpy as np
        import soundfile
        import torch

        clip = self._clips[index]
        whole = round(clip.duration * 16_000)
        start = int(torch.randint(max(1, whole - self._samples + 1), ()))
        first = round(clip.start * 16_000) + start
        audio = soundfile.read(clip.path, self._samples, first, dtype="float32")[0]
        options = knf.FbankOptions()
        options.frame_opts.dither = 0.0
        options.frame_opts.window_type = "hamming"
        options.mel_opts.num_bins = 80
        fbank = knf.OnlineFbank(options)
        fbank.accept_waveform(16_000, np.resize(audio, self._samples) * 32_768)
        features = np.stack([fbank.get_frame(frame) for frame in range(fbank.num_frames_ready)]).T
        centred = features - features.mean(axis=1, keepdims=True)
        return torch.from_numpy(np.ascontiguousarray(centred)), self._labels[clip.speaker]


def _cell(corpus: Path, updates: int, quick: bool) -> dict[str, Any]:
    makers = {OURS: ours, PLAIN: plain}
    workers = {name: Worker(os.cpu_count() or 1, make, corpus, updates) for name, make in makers.items()}
    try:
        with Others(time.monotonic) as others:
            rounds = interleave(
                {name: partial(_run, worker) for name, worker in workers.items()}, 1 if quick else 3, seconds=60
            )
    finally:
        for worker in workers.values():
            worker.close()
    figures = {}
    for name, samples in rounds.items():
        rows = workers[name].result
        figures[name] = {
            "per_s": round(rows / statistics.median(each.wall for each in samples), 1),
            "per_cpu_s": round(rows / statistics.median(each.cpu for each in samples), 1),
            "ratio": round(
                rows / workers[PLAIN].result / ratio([e.wall for e in samples], [e.wall for e in rounds[PLAIN]]), 3
            ),
        }
    return {"ways": figures, **others.marks()}


def _run(worker: Worker) -> Sample:
    """Return the seconds of a run, those of the loader's processes included."""
    before = processor_seconds(worker.pid)
    wall = worker.run().wall
    return Sample(wall, processor_seconds(worker.pid) - before)
