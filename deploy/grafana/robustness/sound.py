"""The sound that comes in."""

from deploy.grafana.expressions import buckets, mean, per_second, quantile
from deploy.grafana.model import Colour, Kind, Panel, Query, Row, Threshold, Unit

LEVELS = ((0.9, "9 of 10 below"), (0.5, "half below"), (0.1, "1 of 10 below"))


def _spread(histogram: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(level, histogram), name) for level, name in LEVELS)


SOUND = Row(
    "What comes in",
    (
        Panel(
            "SNR of the requests",
            "How noisy is what callers send, and is a second crowd arriving?",
            "A band that sinks or splits: find out whose calls they are, before the answers are complained about.",
            Unit.DECIBELS,
            (Query(buckets("input_snr_decibels"), "{{le}}"),),
            kind=Kind.HEATMAP,
            width=16,
        ),
        Panel(
            "SNR by quantile",
            "How noisy are the cleanest, the middle and the noisiest requests?",
            "Only the lowest line falls: some callers have a problem. All fall: the way in has one.",
            Unit.DECIBELS,
            _spread("input_snr_decibels"),
        ),
        Panel(
            "Share of speech",
            "How much of what is sent is speech?",
            "It falls: callers send silence, music or hold lines; answers rest on less than they seem to.",
            Unit.SHARE,
            _spread("input_speech_ratio"),
            limits=(0, 1),
        ),
        Panel(
            "Level",
            "How loud is the sound, against full scale?",
            "Far below -40 dBFS: a gain is wrong on the way. Near 0: it is clipped, see beside.",
            Unit.FULL_SCALE,
            _spread("input_level_decibels"),
        ),
        Panel(
            "Clipped samples",
            "Which share of the samples is cut off at full scale, on average?",
            "Above 0.1 %: a microphone or a gain is set too high; the harmonics it adds are interference.",
            Unit.SHARE,
            (Query(mean("input_clipped_ratio"), "clipped"),),
            thresholds=(Threshold(0.001, Colour.WATCH), Threshold(0.01, Colour.BAD)),
            limits=(0, None),
        ),
        Panel(
            "Bandwidth",
            "Up to which frequency is there sound?",
            "Below 4 kHz it was a telephone's, whatever its rate says now: the models were trained up to 8 kHz.",
            Unit.HERTZ,
            _spread("input_bandwidth_hertz"),
            limits=(0, None),
        ),
        Panel(
            "Duration",
            "How long are the recordings?",
            "Shorter ones are less certain: compare the row below before blaming noise.",
            Unit.SECONDS,
            _spread("input_duration_seconds"),
            limits=(0, None),
        ),
        Panel(
            "Requests measured",
            "On how many answered requests do these measures rest?",
            "A few an hour: read the lines above with care, single callers move them.",
            Unit.CALLS_PER_SECOND,
            (Query(per_second("input_duration_seconds_count"), "requests"),),
            limits=(0, None),
        ),
    ),
)
