"""Time from opening the page to its answers: `python -m benchmarks.first_answer PAGE`.

PAGE is `build/demo/live`, which is served from here, or the address of a running server, such as that of
`speakerlens demo`. Each round opens the page in a new profile of headless Chromium, so that nothing is cached. Seconds
of processor time are those of the browser and of this process; on a machine that is busy with other work they say more
than seconds of the clock.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser

from benchmarks.environment import environment
from benchmarks.page_parity import browser, served

WAIT_MS = 300_000
TICKS = os.sysconf("SC_CLK_TCK")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_answer", description=__doc__)
    parser.add_argument("page", help="folder of a static page, or the address of a server")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    arguments = parser.parse_args(argv)
    with _address(arguments.page) as address, browser() as opened:
        rounds = [measure(opened, address) for _ in range(arguments.rounds)]
    print(json.dumps({**environment(), "page": arguments.page, "rounds": rounds}, indent=1))
    return 0


@contextlib.contextmanager
def _address(page: str) -> Iterator[str]:
    if page.startswith(("http://", "https://")):
        yield page
    else:
        with served(Path(page)) as address:
            yield f"{address}/"


def measure(opened: Browser, address: str) -> dict[str, Any]:
    """Return seconds until the first variant has answered, and until all have."""
    context = opened.new_context()
    page = context.new_page()
    started, worked = time.monotonic(), processor_seconds(os.getpid())
    page.goto(address)
    page.locator("#answers .verdict", has_text="known").first.wait_for(timeout=WAIT_MS)
    first = time.monotonic() - started, processor_seconds(os.getpid()) - worked
    page.locator("#answers article:last-child .verdict", has_text="known").wait_for(timeout=WAIT_MS)
    whole = time.monotonic() - started, processor_seconds(os.getpid()) - worked
    context.close()
    names = ("seconds", "processor_seconds")
    return {
        "first": dict(zip(names, map(_rounded, first), strict=True)),
        "all": dict(zip(names, map(_rounded, whole), strict=True)),
    }


def _rounded(seconds: float) -> float:
    return round(seconds, 2)


def processor_seconds(process: int) -> float:
    """Return the processor time of a process and of those that it started, in seconds."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            number = int(path.parent.name)
            parents[number], seconds[number] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS

    def total(number: int) -> float:
        return seconds.get(number, 0.0) + sum(total(child) for child, parent in parents.items() if parent == number)

    return total(process)


if __name__ == "__main__":
    sys.exit(main())
