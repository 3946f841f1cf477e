"""Work shared out to two processes, or done in a fresh one for each piece."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def in_processes(work: Callable[[_Job], _Result], jobs: Sequence[_Job], fresh: bool = False) -> Iterator[_Result]:
    """Do jobs in two processes beside each other; results come in the order of the jobs.

    A fork server, because forking a process that has started threads is not safe, and starting Python anew is slow.

    Args:
        work: a function of a module, which is imported there.
        jobs: what to do it on.
        fresh: whether each job gets a process that has done no other.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    # Ctrl-C is for the parent to handle.
    with context.Pool(2, signal.signal, (signal.SIGINT, signal.SIG_IGN), maxtasksperchild=1 if fresh else None) as pool:
        yield from pool.imap(work, jobs, chunksize=1)
