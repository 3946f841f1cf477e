"""Write a model bundle: everything that serving needs of one variant, verified, in one folder, atomically."""

import datetime
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from speakerlens.export import baseline, parity, precisions
from speakerlens.export.graph import ExportedNetwork
from speakerlens.export.onnx_graphs import OPSET, GraphError, describe_graphs, write_graphs
from speakerlens.export.precision_figures import Decider
from speakerlens.export.probes import expected, write_probes
from speakerlens.export.runtimes import GraphNetwork
from speakerlens.export.staging import staging_folder
from speakerlens.export.synthetic import synthetic_voice
from speakerlens.export.torchscript import write_torchscript
from speakerlens.export.voices import enrol_voices, write_voices
from speakerlens.measures.probes import Voices
from speakerlens.measures.scorer import Scorer
from speakerlens.training.checkpoint import Run, code_revision, load_run
from speakerlens.training.data.audio import SAMPLE_RATE, read_audio, write_audio
from speakerlens.training.data.manifest import Clip, Corpus, load_corpus, spread
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.calibration import FALSE_ACCEPTANCE, METHOD, Calibration, calibrate
from speakerlens.training.evaluation.predictions import predict_split
from speakerlens.training.evaluation.scorer import fit_scorer
from speakerlens.training.evaluation.search import METHOD as SEARCH_METHOD
from speakerlens.training.evaluation.search import calibrate_search
from speakerlens.training.evaluation.verification import METHOD as VERIFICATION_METHOD
from speakerlens.training.evaluation.verification import Verification, calibrate_verification
from speakerlens.training.model.front_end import FRAME_LENGTH, FRAME_SHIFT, HIGH_HZ, LOW_HZ
from speakerlens.training.model.network import STAGES, STRIDES
from speakerlens.training.model.saliency import FUSED_STAGES

SCHEMA_VERSION = 4
MANIFEST, WEIGHTS, PARITY, BASELINE = "bundle.json", "weights.safetensors", "parity.json", "baseline.json"
SCORER = "scorer.npz"

# Nine frames: the shortest audio with two columns at the last stage, which the standard deviation needs.
MIN_SAMPLES = FRAME_LENGTH + 8 * FRAME_SHIFT

_CALIBRATION_STEPS = 3

Report = Callable[[int, int], None]
"""Called after each step with the number of finished steps and the total."""


class ExportError(Exception):
    """Raised where the exported graphs or a bundle fail verification; the message says how."""


class Options(NamedTuple):
    """How a run is exported.

    Attributes:
        false_acceptance: share of out-of-set utterances that the threshold may accept.
        probes: whether the bundle gets a probe set, if the corpus has utterances for one.
        workers: threads.
        precisions: number formats of graphs beside float32: int8, fp16.
    """

    false_acceptance: float = FALSE_ACCEPTANCE
    probes: bool = True
    workers: int = 1
    precisions: tuple[str, ...] = ()


DEFAULTS = Options()


class Written(NamedTuple):
    """A bundle's folder, and whether it existed already."""

    folder: Path
    reused: bool


class _Calibrated(NamedTuple):
    """What was set on the dev split; None where the network or the split has too little for it.

    `scorer` is part of the classifier's score.
    """

    classifier: Calibration | None = None
    verification: Verification | None = None
    search: dict[str, Any] | None = None
    scorer: Scorer | None = None


def export_run(
    run_folder: Path,
    out: Path,
    report: Report,
    false_acceptance: float = FALSE_ACCEPTANCE,
    probes: bool = True,
    workers: int = 1,
    formats: tuple[str, ...] = (),
) -> Written:
    """Export a trained run as the next version of its variant; `export_loaded` has the rest of the arguments.

    Args:
        run_folder: folder of a finished run; its corpus must still be in its place.
        out: folder of the bundles.
        report: called after each step.
        false_acceptance: share of out-of-set utterances that the threshold may accept.
        probes: whether the bundle gets a probe set.
        workers: threads.
        formats: number formats of graphs beside float32.

    Raises:
        UserError: the run is unfinished, or its corpus is missing or has changed.
        ExportError: as `export_loaded`.
    """
    run = load_run(run_folder)
    if not run.finished:
        raise UserError(f"{run_folder}: stopped after {run.step} of {run.updates} updates; finish it with `train`")
    corpus = None
    if run.corpus_folder is not None:
        corpus = load_corpus(run.corpus_folder)
        if corpus.digest != run.corpus_digest:
            raise UserError(
                f"{run.corpus}: not the corpus that {run_folder} was trained on; its manifest has changed since"
            )
    return export_loaded(run, corpus, out, report, Options(false_acceptance, probes, workers, formats))


def export_loaded(
    run: Run,
    corpus: Corpus | None,
    out: Path,
    report: Report,
    options: Options = DEFAULTS,
) -> Written:
    """Export a run in memory as the next version of its variant.

    Nothing is written if the newest version has the same schema, weights, false-acceptance rate and methods of
    calibration, and a probe set or none as requested. A failure leaves no files under `out`.

    Args:
        run: finished.
        corpus: what it is calibrated and tested on; None if there is none, which needs a run without a classifier.
        out: folder of the bundles; the new one becomes `<out>/<variant>/<version>`.
        report: called after each step.
        options: how.

    Raises:
        UserError: other precisions than float32 are wanted, and there is no corpus to measure them on.
        ExportError: the exported graphs differ from the network, or are not fit for serving.
    """
    with staging_folder(out / run.variant) as staging:
        versions = sorted(int(p.name) for p in (out / run.variant).glob("*") if re.fullmatch(r"[1-9]\d*", p.name))
        save_file({n: t.contiguous() for n, t in run.network.state_dict().items()}, staging / WEIGHTS)
        (staging / WEIGHTS).chmod(0o644)  # save_file makes it private; a server in a container runs as another user
        newest = out / run.variant / str(versions[-1]) if versions else None
        if newest and _is_same(newest, staging, run, options):
            return Written(newest, reused=True)
        version = versions[-1] + 1 if versions else 1
        _fill(staging, run, corpus, version, options, report)
        folder = out / run.variant / str(version)
        staging.rename(folder)
    return Written(folder, reused=False)


def choose_utterances(corpus: Corpus, count: int) -> list[Clip]:
    """Return test utterances spread over the speakers, filled up from the other splits."""
    chosen: list[Clip] = []
    for split in ("test", "dev", "train"):
        chosen += spread(corpus.utterances(split), count - len(chosen))
    return chosen


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a bundle except its manifest, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): _digest(p) for p in files}


def schema(name: str) -> dict[str, Any]:
    """Return the schema of a bundle's `<name>.json`: "bundle", "baseline" or "precisions"."""
    content: dict[str, Any] = json.loads(
        (resources.files("speakerlens.protos") / f"{name}.schema.json").read_text("utf-8")
    )
    return content


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON; NaN is an error."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _is_same(bundle: Path, staging: Path, run: Run, options: Options) -> bool:
    """Return whether a bundle equals the one that would be written, except for its date."""
    try:
        manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
        same = manifest["schema_version"] == SCHEMA_VERSION
        same = same and tuple(manifest["speakers"]) == run.speakers
        if run.speakers:
            same = same and manifest["calibration"]["false_acceptance"] == options.false_acceptance
            same = same and manifest["calibration"]["method"] == METHOD
        if run.corpus_folder is None:
            same = same and manifest["verification"] is None
        else:
            same = same and manifest["verification"]["method"] == VERIFICATION_METHOD
            same = same and manifest["verification"]["false_acceptance"] == options.false_acceptance
            same = same and manifest["training_data_digest"] == run.corpus_digest
            same = same and (manifest["search"] or {"method": SEARCH_METHOD})["method"] == SEARCH_METHOD
            same = same and (manifest["probes"] is not None) == options.probes
        same = same and precisions.written_precisions(bundle) == options.precisions
        return same and _digest(bundle / WEIGHTS) == _digest(staging / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError):  # damaged, or not a bundle at all
        return False


def _fill(
    folder: Path,
    run: Run,
    corpus: Corpus | None,
    version: int,
    options: Options,
    report: Report,
) -> None:
    """Write everything except the weights into a bundle's folder."""
    voices = None if run.speakers or corpus is None else enrol_voices(run.network, corpus)
    names = voices.speakers if voices is not None else run.speakers
    evaluated = baseline.evaluation_set(corpus, names) if corpus is not None and names else None
    precisions.check_measurable(options.precisions, corpus, evaluated)
    clips = [] if corpus is None else choose_utterances(corpus, parity.UTTERANCES)
    total = 5 + parity.steps(len(clips) or parity.UTTERANCES, run.network.classes)
    total += (0 if corpus is None else _CALIBRATION_STEPS) + (0 if evaluated is None else evaluated.steps)
    total += 0 if evaluated is None else precisions.steps(evaluated, options.precisions)
    done = itertools.count(1)

    def advance() -> None:
        report(next(done), total)

    listed = _write_verified(folder, run, clips, advance, options.workers)
    # By the graph, which is faster than the network, and now known to compute the same.
    calibrated = _Calibrated() if corpus is None else _calibrate(folder, run, corpus, options, advance)
    facts = _facts(run, version, calibrated)
    describe_graphs(folder, run.network.classes, {name: json.dumps(value) for name, value in facts.items()})
    facts |= {"utterances": listed, "probes": None}
    if options.probes and corpus is not None and names:
        facts["probes"] = write_probes(folder, corpus, names, clips, listed, run.network.front_end, MIN_SAMPLES)
        if facts["probes"] is not None and voices is not None:
            facts["probes"]["voices"] = write_voices(folder, voices)
    advance()
    measured = baseline.empty()
    if corpus is not None and evaluated is not None and evaluated.clean:
        temperature = 1.0 if calibrated.classifier is None else calibrated.classifier.temperature
        if voices is None:
            answer = baseline.answerer(folder, threads=options.workers)
        else:
            answer = baseline.comparer(folder, voices, threads=options.workers)
        measured = baseline.measure(corpus, evaluated, names, temperature, answer, advance)
        measured["probes"] = expected(folder, facts, answer)
    advance()
    jsonschema.validate(measured, schema("baseline"))
    write_json(folder / BASELINE, measured)
    if options.precisions and corpus is not None and evaluated is not None:
        decider = _decider(run, calibrated, voices)
        subject = precisions.Subject(
            folder, corpus, names, run.network.classes, facts, decider, evaluated, measured["probes"]
        )
        _write_precisions(subject, options, advance)
    manifest = {**facts, "files": file_digests(folder)}
    jsonschema.validate(manifest, schema("bundle"))
    write_json(folder / MANIFEST, manifest)
    advance()


def _write_verified(
    folder: Path, run: Run, clips: Sequence[Clip], advance: Callable[[], None], workers: int
) -> list[dict[str, str]]:
    """Write the graphs, without facts, and `model.ts`; verify them on utterances, which are written and returned.

    Raises:
        ExportError: the graphs are not fit for serving, or differ from the network.
    """
    exported = ExportedNetwork(run.network)
    try:
        write_graphs(exported, folder, {})
    except GraphError as error:
        raise ExportError(f"{run.variant}: {error}") from error
    advance()
    write_torchscript(exported, folder)
    advance()
    utterances, listed = _write_utterances(folder, clips) if clips else _write_synthetic(folder)
    verified = parity.verify(run.network, folder, utterances, advance, workers)
    if not verified["holds"]:
        raise ExportError(f"{run.variant}: {parity.failures(verified)}; nothing was written")
    write_json(folder / PARITY, verified)
    return listed


def _write_precisions(subject: precisions.Subject, options: Options, advance: Callable[[], None]) -> None:
    """Write the graphs in other number formats, and `precisions.json`."""
    try:
        found = precisions.write_precisions(subject, options.precisions, advance, options.workers)
    except GraphError as error:
        raise ExportError(f"{subject.manifest['variant']}: {error}") from error
    jsonschema.validate(found, schema("precisions"))
    write_json(subject.folder / precisions.FILE, found)


def _calibrate(folder: Path, run: Run, corpus: Corpus, options: Options, advance: Callable[[], None]) -> _Calibrated:
    """Calibrate on the dev split, in `_CALIBRATION_STEPS` steps; write the classifier's scorer, if it is used."""
    rate, network = options.false_acceptance, GraphNetwork(run.network, folder, options.workers)
    predicted = predict_split(network, corpus, "dev", run.speakers or corpus.speakers, lambda: None)
    advance()
    classifier = used = None
    if run.speakers:
        scorer = fit_scorer(network, corpus, run.speakers)
        classifier = calibrate(network, corpus, run.speakers, rate, scorer=scorer, predicted=predicted)
        if scorer is not None and classifier.score != "logit":
            used = scorer
            np.savez(folder / SCORER, **vars(scorer))
    advance()
    verification = calibrate_verification(corpus, predicted, network.classes, rate)
    search = calibrate_search(network, corpus, run.speakers, rate, run.telephone)
    advance()
    return _Calibrated(classifier, verification, search, used)


def _decider(run: Run, calibrated: _Calibrated, voices: Voices | None) -> Decider:
    """Return how the bundle decides."""
    comparison = None if calibrated.verification is None else calibrated.verification.thresholds[0].threshold
    threshold = comparison if calibrated.classifier is None else calibrated.classifier.threshold
    return Decider(threshold, run.network.head.scale, calibrated.scorer, voices, comparison)


def _facts(run: Run, version: int, calibrated: _Calibrated) -> dict[str, Any]:
    """Return the part of `bundle.json` that does not depend on the other files."""
    network, mel_bins = run.config.network, run.config.network.mel_bins
    calibration, verification, search, _ = calibrated
    return {
        "schema_version": SCHEMA_VERSION,
        "variant": run.variant,
        "version": version,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "speakers": list(run.speakers),
        "sample_rate": SAMPLE_RATE,
        "front_end": {
            "kind": "kaldi-log-mel",
            "mel_bins": mel_bins,
            "frame_length": FRAME_LENGTH,
            "frame_shift": FRAME_SHIFT,
            "low_hz": LOW_HZ,
            "high_hz": HIGH_HZ,
            "mel_centres_hz": [round(hz, 3) for hz in run.network.front_end.centres_hz()],
        },
        "network": {
            "block": network.block,
            "blocks": list(network.blocks),
            "width": network.width,
            "embedding": network.embedding,
            "head": run.config.head.kind if run.speakers else "none",
            "scale": run.network.head.scale,
            "parameters": sum(p.numel() for p in run.network.parameters()),
        },
        "stages": [
            {"name": name, "tap": tap, "rows": -(-mel_bins // stride), "stride": stride}
            for name, tap, stride in zip(STAGES, run.network.encoder.taps, STRIDES, strict=True)
        ],
        "fused_stages": [STAGES[stage] for stage in FUSED_STAGES],
        "min_samples": MIN_SAMPLES,
        "window_seconds": run.config.data.crop_seconds,
        "opset": OPSET,
        "calibration": None if calibration is None else {**asdict(calibration), "method": METHOD},
        "verification": None
        if verification is None
        else {
            **asdict(verification),
            "thresholds": [asdict(threshold) for threshold in verification.thresholds],
            "method": VERIFICATION_METHOD,
        },
        "search": search,
        "training_data_digest": run.corpus_digest,
        "code_revision": f"training {run.code_revision}, export {code_revision()}",
        "versions": {name: metadata.version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")},
    }


def _write_utterances(folder: Path, clips: Sequence[Clip]) -> tuple[list[NDArray[np.float32]], list[dict[str, str]]]:
    """Write utterances into the bundle; return them as read back, each [samples], and their manifest entries."""
    utterances, listed = [], []
    for index, clip in enumerate(clips):
        speaker = str(clip.speaker)
        name = f"utterances/{index:02d}-{re.sub(r'[^A-Za-z0-9_-]', '_', speaker)}.flac"
        write_audio(folder / name, read_audio(clip.path, clip.start, clip.duration))
        utterances.append(read_audio(folder / name))
        listed.append({"file": name, "speaker": speaker})
    return utterances, listed


def _write_synthetic(folder: Path) -> tuple[list[NDArray[np.float32]], list[dict[str, str]]]:
    """Write synthetic utterances, of no speaker; returns as `_write_utterances`."""
    utterances, listed = [], []
    for index in range(parity.UTTERANCES):
        name = f"utterances/{index:02d}-synthetic.flac"
        write_audio(folder / name, synthetic_voice(index))
        utterances.append(read_audio(folder / name))
        listed.append({"file": name, "speaker": ""})
    return utterances, listed


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
