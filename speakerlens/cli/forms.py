"""The options that say what form audio has: which channel to use, and what samples without a header are."""

import argparse

from speakerlens.cli.failures import usage_error
from speakerlens.cli.options import CommandParser, positive
from speakerlens.requests import AudioSource, Channel, RawEncoding, RawSamples

ENCODINGS: dict[str, RawEncoding] = {"s16le": "int16", "f32le": "float32", "mulaw": "mulaw", "alaw": "alaw"}
EACH = "each"


def add_form(parser: CommandParser, *, each: bool = False, stream: bool = False) -> None:
    """Add `--channel`, `--format`, `--rate` and `--channels`.

    Args:
        parser: of the command.
        each: whether `--channel each` is possible.
        stream: whether standard input is always samples without a header.
    """
    parser.add_argument(
        "--channel",
        type=_channel_or_each if each else positive,
        metavar="N",
        help="use channel N, from 1, such as one side of a call"
        + ("; each: an answer for each" if each else "")
        + " (default: the mean of all)",
    )
    raw = parser.add_argument_group("raw samples")
    without = "standard input" if stream else "the files"
    raw.add_argument(
        "--format",
        choices=list(ENCODINGS),
        default="s16le" if stream else None,
        help=f"samples of {without}, without a header" + (" (default: %(default)s)" if stream else ""),
    )
    raw.add_argument(
        "--rate",
        type=positive,
        default=16_000 if stream else None,
        metavar="HZ",
        help="of raw samples (default: 16000" + (")" if stream else ", of mulaw and alaw 8000)"),
    )
    raw.add_argument("--channels", type=positive, default=1, metavar="N", help="of raw samples (default: %(default)s)")


def in_form(arguments: argparse.Namespace, content: bytes, channel: int | None = None) -> AudioSource:
    """Return a file's content as the options describe it; `channel`, from 1, stands for `--channel each`.

    Raises:
        CommandError: the options contradict each other.
    """
    source: bytes | RawSamples = content
    if arguments.format is not None:
        law = arguments.format in ("mulaw", "alaw")
        rate = arguments.rate or (8_000 if law else 16_000)
        source = RawSamples(content, ENCODINGS[arguments.format], rate, arguments.channels)
    elif arguments.rate is not None or arguments.channels != 1:
        raise usage_error("--rate and --channels are of raw samples: name their --format")
    number = channel or arguments.channel
    return source if number in (None, EACH) else Channel(source, number)


def _channel_or_each(text: str) -> int | str:
    return EACH if text == EACH else positive(text)
