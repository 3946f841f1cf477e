"""Starts servers that cannot start, in one process for all tests: a process each would take a second or more.

Not in the process of the tests: the server's generated code and tritonclient's register the same protocol.
"""

import json
import subprocess
import sys
from functools import cache

_PROGRAM = """
import asyncio, io, json, sys
from speakerlens.serving.config import parse
from speakerlens.serving.errors import StartupError
from speakerlens.serving.server import serve
for line in sys.stdin:
    try:
        asyncio.run(asyncio.wait_for(serve(parse(json.loads(line), {}), io.StringIO()), 60))
        answer = None
    except StartupError as error:
        answer = str(error)
    print(json.dumps(answer), flush=True)
"""


def failing(*flags: str) -> str:
    """Return the error of a server that cannot start with these flags."""
    process = _starter()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(["--port=0", "--metrics-port=0", *flags]) + "\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    assert isinstance(answer, str), f"the server started with {flags}"
    return answer


@cache
def _starter() -> "subprocess.Popen[str]":
    """Return the process, which ends when the tests close its input by ending."""
    return subprocess.Popen([sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
