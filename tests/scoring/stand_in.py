"""A worker for tests of the pool, which scores nothing."""

import os
import signal
from collections import Counter
from multiprocessing.connection import Connection

from speakerlens.scoring.inputs import paths_of
from speakerlens.scoring.sources import GROUP_SOURCES
from speakerlens.scoring.worker import At, Done, Plan, Started, Stopped, Task

# Recordings that a scorer reads before it has the rows of those before them.
AHEAD = 3 * GROUP_SOURCES + 1


def stand_in(connection: Connection, plan: Plan) -> None:
    """Behaves as a worker that notes each path it is given; `deadly` ends it, `broken` stops the archive."""
    if "never" in plan.options:
        os.kill(os.getpid(), signal.SIGKILL)
    connection.send(Started("none"))
    held: list[Task] = []
    while True:
        task = connection.recv()
        if task is not None:
            held.append(task)
        # As a worker that reads ahead: a task waits for what follows.
        while held and (task is None or held[0].singly or sum(each.shard.count for each in held[1:]) > AHEAD):
            first = held.pop(0)
            score(connection, plan, first)


def score(connection: Connection, plan: Plan, task: Task) -> None:
    rows = []
    for index, path in enumerate(paths_of(plan.inputs, task.shard)):
        if task.singly and index not in task.skipped:
            connection.send(At(index))
        if index in task.skipped:
            rows.append(f"{path} skipped")
            continue
        if path.startswith("deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        if path == "broken":
            connection.send(Stopped("the disk is full"))
        rows.append(path)
    (plan.parts / task.shard.name).write_text("\n".join(rows))
    connection.send(Done(task.shard, len(rows), 1.0, Counter()))
