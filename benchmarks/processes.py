"""Processor time and memory of processes, as Linux counts them."""

import contextlib
import os
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
# Columns of the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
WAITING = (3, 4)


def processor_seconds(root: int) -> float:
    """Return the processor time of a process and of those below it, ended or not, in steps of 10 ms."""
    total = 0
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                values = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(values[1]), sum(map(int, values[11:15]))
    for each in parents:
        above = each
        while above in parents and above != root:
            above = parents[above][0]
        total += parents[each][1] if above == root else 0
    return total / TICK


def machine_seconds() -> float:
    """Return the processor time of all that runs on the machine since its start, summed over the cores."""
    values = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(value for index, value in enumerate(values) if index not in WAITING) / TICK


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process; 0 if it has ended."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0
