"""Panels on the audio of requests."""

from deploy.grafana.expressions import buckets, mean, per_second, quantile
from deploy.grafana.model import Colour, Kind, Panel, Query, Row, Threshold, Unit

NO_SPEECH = 'speech="none"'
LEVELS = ((0.9, "9 of 10 below"), (0.5, "half below"), (0.1, "1 of 10 below"))


def _spread(histogram: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(level, histogram), name) for level, name in LEVELS)


SOUND = Row(
    "What comes in",
    (
        Panel(
            "SNR of the requests",
            "How noisy is the traffic, and is there a second group?",
            "A band that falls or splits: find out whose calls they are.",
            Unit.DECIBELS,
            (Query(buckets("input_snr_decibels"), "{{le}}"),),
            kind=Kind.HEATMAP,
            width=16,
        ),
        Panel(
            "SNR by quantile",
            "How noisy are the cleanest, the middle and the noisiest requests?",
            "Only the lowest line falls: some callers have a problem. All fall: the input path has one.",
            Unit.DECIBELS,
            _spread("input_snr_decibels"),
        ),
        Panel(
            "Share of speech",
            "Which share of the audio is speech?",
            "Falls: callers send silence or music; answers rest on less speech.",
            Unit.SHARE,
            _spread("input_speech_ratio"),
            limits=(0, 1),
        ),
        Panel(
            "Level",
            "How loud is the audio, relative to full scale?",
            "Far below -40 dBFS: a gain is wrong. Near 0: clipped, see the next panel.",
            Unit.FULL_SCALE,
            _spread("input_level_decibels"),
        ),
        Panel(
            "Clipped samples",
            "Which share of the samples is cut off at full scale, on average?",
            "Above 0.1 %: a microphone or a gain is set too high; clipping adds harmonics.",
            Unit.SHARE,
            (Query(mean("input_clipped_ratio"), "clipped"),),
            thresholds=(Threshold(0.001, Colour.WATCH), Threshold(0.01, Colour.BAD)),
            limits=(0, None),
        ),
        Panel(
            "Bandwidth",
            "Up to which frequency does the audio reach?",
            "Below 4 kHz: telephone audio, whatever its rate; the models were trained up to 8 kHz.",
            Unit.HERTZ,
            _spread("input_bandwidth_hertz"),
            limits=(0, None),
        ),
        Panel(
            "Duration",
            "How long are the recordings?",
            "Shorter recordings are less certain: compare the row below.",
            Unit.SECONDS,
            _spread("input_duration_seconds"),
            limits=(0, None),
        ),
        Panel(
            "Requests measured",
            "How many answered requests were measured?",
            "A few an hour: single callers move the lines above.",
            Unit.CALLS_PER_SECOND,
            (Query(per_second("input_duration_seconds_count"), "requests"),),
            limits=(0, None),
        ),
        Panel(
            "Recordings without speech",
            "In which share of the recordings is no speech found?",
            "Rises: callers send noise, or speech that the detector misses; both are answered, see who is known.",
            Unit.SHARE,
            (
                Query(
                    f"{per_second('input_recordings_total', NO_SPEECH)} / {per_second('input_recordings_total')}",
                    "without speech",
                ),
            ),
            limits=(0, 1),
            width=12,
        ),
        Panel(
            "Refused",
            "How many calls are refused, and why?",
            "Callers' errors (`not_audio`, `silent`, `too_short`) rise: a client sends the wrong audio.",
            Unit.CALLS_PER_SECOND,
            (Query(per_second("rejections_total", by="reason"), "{{reason}}"),),
            limits=(0, None),
            width=12,
        ),
    ),
)
