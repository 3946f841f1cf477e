"""The sealed probe set of a bundle, and the exported model's results on it.

An utterance has the same interference as in the evaluation (`training.evaluation.conditions`). The expected results are
measured on the files as a server reads them, not on the data that they were made from.
"""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray

from speakerlens.export.baseline import Answerer, as_saliency
from speakerlens.measures.probes import MAX_SECONDS, RESAMPLED, Condition, ProbeSet, read_speech
from speakerlens.measures.saliency import deletion_index
from speakerlens.training.data.audio import SAMPLE_RATE, read_audio, write_audio
from speakerlens.training.data.interference import InterferenceSource
from speakerlens.training.data.manifest import Clip, Corpus, Split, spread
from speakerlens.training.data.mixing import KINDS, scale_to_snr
from speakerlens.training.evaluation import conditions
from speakerlens.training.model.front_end import LogMel
from speakerlens.training.model.saliency import fused

UTTERANCES = 8
SNRS_DB = (10.0, 0.0)
FOLDER = "probes"
RESAMPLED_RATE = 48_000
PEAK = 0.5
"""Peak of the interference in its file, for all mixing ratios; half scale saves one bit per sample of FLAC."""
_CLIPPED_DB = 60.0
_TINY = 1e-30  # least power, so that silence has a level
_SPLIT: Split = "test"


def write_probes(
    folder: Path,
    corpus: Corpus,
    speakers: Sequence[str],
    clips: Sequence[Clip],
    listed: Sequence[Mapping[str, str]],
    front_end: LogMel,
    min_samples: int,
) -> dict[str, Any] | None:
    """Write the files of a probe set.

    Args:
        folder: the bundle, with its utterances in it.
        corpus: source of the interference.
        speakers: the labels; probes are of these.
        clips: the bundle's utterances.
        listed: their files and speakers, as in `bundle.json`.
        front_end: of the network.
        min_samples: shortest audio that the graphs accept, in samples.

    Returns:
        `probes` of `bundle.json`; None if no utterance is of the evaluation's split and long enough.
    """
    entries = {
        dataclasses.replace(clip, duration=min(clip.duration, MAX_SECONDS)): dict(entry)
        for clip, entry in zip(clips, listed, strict=True)
        if clip.split == _SPLIT
        and clip.speaker in speakers
        and len(read_speech((folder / entry["file"]).read_bytes())) >= min_samples
    }
    chosen = spread(list(entries), UTTERANCES)
    if not chosen:
        return None
    kinds = [kind for kind in KINDS if kind in InterferenceSource(corpus, _SPLIT).kinds]
    speech = [read_speech((folder / entries[clip]["file"]).read_bytes()) for clip in chosen]
    for number, samples in enumerate(speech):
        _write_resampled(folder / FOLDER / RESAMPLED / f"{number:02d}.flac", samples)
    wanted = [conditions.Condition(kind, 0.0) for kind in kinds]
    for batch in conditions.mixtures(corpus, _SPLIT, speakers, wanted, 1, chosen):
        number = int(batch.indices[0])
        path = folder / FOLDER / batch.condition.kind / f"{number:02d}.flac"
        _write_layer(path, speech[number], batch.mixture.interference[0].numpy(), front_end)
    return {
        "utterances": [entries[clip] for clip in chosen],
        "resampled_rate": RESAMPLED_RATE,
        "interference": kinds,
        "snrs_db": list(SNRS_DB),
        "folder": FOLDER,
    }


def expected(folder: Path, manifest: Mapping[str, Any], answer: Answerer) -> list[dict[str, Any]]:
    """Run the exported graphs over a bundle's probes.

    Args:
        folder: the bundle, with its probes in it.
        manifest: its `bundle.json`, as far as `ProbeSet.read` needs it.
        answer: finds the best speaker of a batch, and the maps of that score.

    Returns:
        `probes` of `baseline.json`: for each condition the accuracy, and the mean deletion index of the predicted
        speaker's fused map, where any bin is dominated.
    """
    probes = ProbeSet.read(folder, manifest)
    return [] if probes is None else [_expected_in(probes, each, manifest, answer) for each in probes.conditions]


def _expected_in(
    probes: ProbeSet, condition: Condition, manifest: Mapping[str, Any], answer: Answerer
) -> dict[str, Any]:
    hits, indices = [], []
    speakers = manifest["speakers"] if probes.voices is None else probes.voices.speakers
    for number, utterance in enumerate(probes.utterances):
        audio = torch.from_numpy(_audio(probes, number, condition))[None]
        lengths = torch.tensor([audio.shape[1]])
        outputs, best = answer(audio, lengths)
        hits.append(speakers[int(best)] == utterance.speaker)
        dominated = probes.dominated(number, condition)
        if dominated is not None:
            indices.append(deletion_index(fused(as_saliency(outputs, lengths))[0].numpy(), dominated))
    defined = [index for index in indices if math.isfinite(index)]
    return {
        "interference": condition.interference,
        "snr_db": condition.snr_db,
        "utterances": len(hits),
        "accuracy": sum(hits) / len(hits),
        "deletion_index": sum(defined) / len(defined) if defined else None,
    }


def _audio(probes: ProbeSet, number: int, condition: Condition) -> NDArray[np.float32]:
    """Return a probe as the server decodes it, 16 kHz [samples]."""
    if condition.interference == RESAMPLED:
        samples, rate = soundfile.read(io.BytesIO(probes.encoded(number)), dtype="float32")
        return np.asarray(soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ"), dtype=np.float32)
    return probes.mixture(number, condition)


def _write_resampled(path: Path, speech: NDArray[np.float32]) -> None:
    """Write speech [samples] at `RESAMPLED_RATE`, scaled down if resampling exceeds full scale."""
    samples = np.asarray(soxr.resample(speech, SAMPLE_RATE, RESAMPLED_RATE, quality="HQ"), dtype=np.float32)
    samples = fitted(samples, len(speech) * RESAMPLED_RATE // SAMPLE_RATE)
    path.parent.mkdir(parents=True, exist_ok=True)
    samples /= max(1.0, float(np.abs(samples).max(initial=0.0)))
    soundfile.write(path, samples, RESAMPLED_RATE, format="FLAC", subtype="PCM_16")


def _write_layer(path: Path, speech: NDArray[np.float32], interference: NDArray[np.float32], front_end: LogMel) -> None:
    """Write the interference of an utterance at `PEAK`, and the levels of the file as it is read back.

    Both arrays are 16 kHz [samples].
    """
    peak = float(np.abs(interference).max(initial=0.0))
    write_audio(path, fitted(interference, len(speech)) * np.float32(PEAK / peak if peak else 0.0))
    np.save(path.with_suffix(".npy"), levels(front_end, speech, read_audio(path)), allow_pickle=False)


def fitted(samples: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Cut samples [n] to a length, or pad them with zeros: resamplers may return one more or less."""
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def levels(front_end: LogMel, speech: NDArray[np.float32], interference: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return the level of speech over interference in each bin at an SNR of 0 dB, in decibels, int8 [mel, frames].

    Levels are rounded down, so that `level + s < 0` is exact for every SNR s of whole decibels. Both signals are [n].
    """
    voice, layer = torch.from_numpy(speech)[None], torch.from_numpy(interference)[None]
    layer = scale_to_snr(voice, layer, torch.zeros(1))
    powers = (front_end.mel_power(part)[0].double().clamp_min(_TINY) for part in (voice, layer))
    above = 10.0 * (next(powers) / next(powers)).log10()
    return above.floor().clamp(-_CLIPPED_DB, _CLIPPED_DB).to(torch.int8).numpy()
