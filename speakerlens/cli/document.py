"""Answers as JSON, one object per utterance, and as an .npz archive of the arrays.

The shape of the object is part of the public interface; keys are added, never changed:

    {"file": str,
     "audio": {"seconds", "sample_rate", "channels", "speech": bool,
               "evidence": {"speech_s", "snr_db", "bandwidth_hz", "clipping", "level_db"}},
     "answers": [{"variant", "version", "known", "threshold_basis",
                  "speakers": [{"speaker", "probability", "logit"}, …],           best first
                  "timeline": [{"start_s", "end_s", "speaker",                    of more than one window
                                "probability", "known"}, …],
                  "turn": one such object,                                        of a live window
                  "explanation": {"target_speaker",                               with --explain
                                  "log_mel": PLANE or null,
                                  "maps": {"fused": PLANE, …},
                                  "listening": {"fused": {"score",                with --listen
                                      "kept_score", "removed_score",
                                      "drop", "increase": bool}, …}}}, …],
     "failures": [{"variant", "version", "code", "message"}, …],                  errors of models, if any
     "timings": {"decode_s", "queue_s", "inference_s", "encode_s"},
     "plot": path, "arrays": path, "sound": path}                                 with --plot, --save, --listen

    PLANE = {"rows", "columns", "seconds": [first, last], "hertz": [first, last],  the axes' outermost centres
             "mean", "peak": {"value", "seconds", "hertz"}}

`embed` has "embeddings" instead of "answers": [{"variant", "version", "values": [number, …]}, …]. `verify` prints
one object:

    {"file", "other" or "enrolled": str, "variant", "version", "score", "threshold", "same": bool, "threshold_basis",
     "mismatch": {"speech_s", "snr_db", …},                                       evidence minus the reference's
     "audio", "other_audio",                                                      as "audio" above
     "explanation", "other_explanation",                                          as "explanation" above
     "timings", "plot", "arrays", "other_plot", "other_arrays"}

`search` prints for each file

    {"file", "audio", "variant", "version", "decision": "speaker", "unknown", "ambiguous" or "unreliable",
     "speaker": str or null,
     "candidates": [{"speaker", "cosine", "log_likelihood_ratio", "probability", "exemplars", "mismatch"}, …],
     "margin", "threshold", "false_alarm", "gallery": speakers searched,
     "reasons": [{"code", "value", "limit", "text"}, …],
     "outlook": [{"condition", "miss", "low", "high"}, …],
     "explanation", "difference", "timings", "plot", "arrays"}

and `listen --search` for each window the same with "window" and "evidence" instead of "file" and "audio".

`enroll` prints SPEAKER = {"speaker", "models": [{"variant", "version", "utterances", "enrolled", "usable"}, …]}
and, if there are any, "without_speech", the indices of the files in which none was found;
`speakers` {"speakers": [SPEAKER, …]}, `forget` {"forgotten": str}, and `health` {"serving": bool}.

A file that failed has {"file", "error": {"code", "message"}} instead. The code is the gRPC status, UNREADABLE for a
file that could not be read, or UNWRITABLE for a result that could not be written; the message is the server's. A
command that failed as a whole prints the same without "file".
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from speakerlens.captions import CaptionedMaps
from speakerlens.identification import Identification
from speakerlens.results import (
    Answer,
    AudioInfo,
    Comparison,
    Embeddings,
    Evidence,
    Explanation,
    Mismatch,
    ModelFailure,
    Plane,
    Segment,
    ThresholdBasis,
    Timings,
    WindowResult,
)
from speakerlens.search_results import Candidate, SearchAnswer, SearchResult, SearchWindow


def identification_document(file: str, result: Identification) -> dict[str, Any]:
    """Return what `--json` prints for one file, without the arrays."""
    return {
        "file": file,
        "audio": _audio(result.audio),
        "answers": [_answer(answer) for answer in result.answers],
        **_failures(result.failures),
        "timings": _timings(result.timings),
    }


def embeddings_document(file: str, result: Embeddings) -> dict[str, Any]:
    """Return what `embed --json` prints for one file."""
    models = (name.rpartition("@") for name in result.by_model)
    return {
        "file": file,
        "audio": _audio(result.audio),
        "embeddings": [
            {"variant": variant, "version": int(version), "values": [_number(value) for value in values]}
            for (variant, _, version), values in zip(models, result.by_model.values(), strict=True)
        ],
        **_failures(result.failures),
        "timings": _timings(result.timings),
    }


def comparison_document(result: Comparison) -> dict[str, Any]:
    """Return what `verify --json` prints, without the names of the inputs."""
    explanations = {"explanation": result.explanation, "other_explanation": result.other_explanation}
    return {
        "variant": result.variant,
        "version": result.version,
        "score": _number(result.score),
        "threshold": None if result.threshold_basis is ThresholdBasis.NONE else _number(result.threshold),
        "same": result.same,
        **_basis(result.threshold_basis),
        **({} if result.mismatch is None else {"mismatch": _known(result.mismatch)}),
        "audio": _audio(result.audio),
        **({"other_audio": _audio(result.other)} if result.other else {}),
        **{name: _explanation(each) for name, each in explanations.items() if each},
        "timings": _timings(result.timings),
    }


def search_document(file: str, result: SearchResult) -> dict[str, Any]:
    """Return what `search --json` prints for one file, without the arrays."""
    return {
        "file": file,
        "audio": _audio(result.audio),
        **_search_answer(result),
        "timings": _timings(result.timings),
    }


def search_window_document(window: SearchWindow) -> dict[str, Any]:
    """Return what `listen --search --json` prints for one window: "window" as above, and the fields of `search`."""
    spoken = window.answer is not None
    return {
        "window": {"start_s": _number(window.start_s), "end_s": _number(window.end_s), "speech": spoken},
        "evidence": _known(window.evidence),
        **({} if window.answer is None else _search_answer(window.answer)),
        "timings": _timings(window.timings),
    }


def _search_answer(answer: SearchAnswer) -> dict[str, Any]:
    maps = {"explanation": answer.explanation, "difference": answer.difference}
    return {
        "variant": answer.variant,
        "version": answer.version,
        "decision": answer.decision,
        "speaker": answer.speaker,
        "candidates": [_candidate(each) for each in answer.candidates],
        "margin": _number(answer.margin),
        **({} if answer.threshold is None else {"threshold": _number(answer.threshold)}),
        **({} if answer.false_alarm is None else {"false_alarm": _number(answer.false_alarm)}),
        "gallery": answer.gallery,
        "reasons": [
            {**asdict(each), "value": _number(each.value), "limit": _number(each.limit)} for each in answer.reasons
        ],
        **({"outlook": [asdict(each) for each in answer.outlook]} if answer.outlook else {}),
        **{name: _explanation(each) for name, each in maps.items() if each},
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "speaker": candidate.speaker,
        "cosine": _number(candidate.cosine),
        "log_likelihood_ratio": _number(candidate.log_likelihood_ratio),
        "probability": _number(candidate.probability),
        "exemplars": candidate.exemplars,
        **({} if candidate.mismatch is None else {"mismatch": _known(candidate.mismatch)}),
    }


def _known(values: Evidence | Mismatch) -> dict[str, float]:
    """Return the fields that are set."""
    return {name: _number(value) for name, value in asdict(values).items() if value is not None}


def window_document(window: WindowResult) -> dict[str, Any]:
    """Return what `listen --json` prints for one window: {"window": {"start_s", "end_s", "speech"}, "answers", …}."""
    return {
        "window": {"start_s": _number(window.start_s), "end_s": _number(window.end_s), "speech": window.speech},
        "answers": [_answer(answer) for answer in window.answers],
        **_failures(window.failures),
        "timings": _timings(window.timings),
    }


def _audio(audio: AudioInfo) -> dict[str, Any]:
    """Return the audio's format and evidence; without what the server does not say."""
    document = {name: value for name, value in asdict(audio).items() if value is not None}
    return document if audio.evidence is None else {**document, "evidence": _known(audio.evidence)}


def _basis(basis: ThresholdBasis) -> dict[str, Any]:
    return {} if basis is ThresholdBasis.UNSAID else {"threshold_basis": basis}


def _timings(timings: Timings) -> dict[str, float]:
    return {phase: _number(seconds) for phase, seconds in asdict(timings).items()}


def _failures(failures: Sequence[ModelFailure]) -> dict[str, Any]:
    return {"failures": [asdict(failure) for failure in failures]} if failures else {}


def save_arrays(path: Path, maps: Sequence[CaptionedMaps]) -> None:
    """Write every map, the log-mel and their axes as a compressed .npz.

    Names are `VARIANT@VERSION/STAGE` (or `…/log_mel`) for the values [rows, columns], and the same followed by
    `/frequencies_hz` [rows] and `/times_s` [columns]. Raise OSError if the file cannot be written.
    """
    arrays: dict[str, Any] = {}
    for model in maps:
        for name, plane in planes(model.explanation).items():
            key = f"{model.name}/{name}"
            arrays[key] = plane.values
            arrays[f"{key}/frequencies_hz"] = plane.frequencies_hz
            arrays[f"{key}/times_s"] = plane.times_s
    with path.open("wb") as file:  # given a path, numpy would append .npz to any other name
        np.savez_compressed(file, **arrays)


def planes(explanation: Explanation) -> dict[str, Plane]:
    """Return the maps of an explanation by stage, and the log-mel as `log_mel`."""
    log_mel = {"log_mel": explanation.log_mel} if explanation.log_mel else {}
    return {**explanation.maps, **log_mel}


def peak(plane: Plane) -> tuple[float, float, float]:
    """Return a plane's largest value, with its time in seconds and its frequency in Hz."""
    row, column = np.unravel_index(np.argmax(plane.values), plane.values.shape)
    return float(plane.values[row, column]), float(plane.times_s[column]), float(plane.frequencies_hz[row])


def _answer(answer: Answer) -> dict[str, Any]:
    document: dict[str, Any] = {
        "variant": answer.variant,
        "version": answer.version,
        "known": answer.known,
        **_basis(answer.threshold_basis),
        "speakers": [
            {"speaker": score.speaker, "probability": _number(score.probability), "logit": _number(score.logit)}
            for score in answer.speakers
        ],
    }
    if answer.timeline:
        document["timeline"] = [_segment(each) for each in answer.timeline]
    if answer.turn:
        document["turn"] = _segment(answer.turn)
    if answer.explanation:
        document["explanation"] = _explanation(answer.explanation)
    return document


def _segment(segment: Segment) -> dict[str, Any]:
    return {**asdict(segment), "probability": _number(segment.probability)}


def _explanation(explanation: Explanation) -> dict[str, Any]:
    return {
        "target_speaker": explanation.target_speaker,
        "log_mel": _plane(explanation.log_mel) if explanation.log_mel else None,
        "maps": {stage: _plane(plane) for stage, plane in explanation.maps.items()},
        **({"listening": _listening(explanation)} if explanation.listening else {}),
    }


def _listening(explanation: Explanation) -> dict[str, Any]:
    keys = ("score", "kept_score", "removed_score", "drop")
    return {
        stage: {**{key: _number(getattr(each, key)) for key in keys}, "increase": each.increase}
        for stage, each in explanation.listening.items()
    }


def _plane(plane: Plane) -> dict[str, Any]:
    value, seconds, hertz = peak(plane)
    return {
        "rows": plane.values.shape[0],
        "columns": plane.values.shape[1],
        "seconds": [_number(plane.times_s[0]), _number(plane.times_s[-1])],
        "hertz": [_number(plane.frequencies_hz[0]), _number(plane.frequencies_hz[-1])],
        "mean": _number(plane.values.mean()),
        "peak": {"value": _number(value), "seconds": _number(seconds), "hertz": _number(hertz)},
    }


def _number(value: float | np.float32) -> float:
    """Round to seven significant digits, the precision of float32."""
    return float(f"{value:.7g}")
