"""Memory that a process keeps after freeing it; each test in its own process."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.serving import toy
from tests.serving.harness import ServerProcess

RESIDENT = (
    "def resident():\n"
    "    lines = open('/proc/self/status').read().splitlines()\n"
    "    return next(int(line.split()[1]) for line in lines if line.startswith('VmRSS:')) / 1024\n"
)
BLOCKS = (
    "import numpy as np\n"
    "from speakerlens.serving.memory import limit_arenas\n"
    f"{RESIDENT}"
    "limit_arenas()\n"
    "np.ones(30 * 2**20, np.uint8)\n"  # from then on glibc by itself would map nothing that is smaller
    "blocks, between = [], []\n"
    "for _ in range(20):\n"
    "    blocks.append(np.ones(4 * 2**20, np.uint8))\n"
    "    between.append(bytes(2000))\n"
    "before = resident()\n"
    "del blocks\n"
    "print(before - resident())\n"
)
ARENAS = (
    "import ctypes, threading\n"
    "from speakerlens.serving.memory import limit_arenas\n"
    "limit_arenas()\n"
    "kept, ready = [], threading.Barrier(12)\n"
    "def work():\n"
    "    ready.wait()\n"
    "    kept.extend(bytes(3000) for _ in range(200))\n"
    "threads = [threading.Thread(target=work) for _ in range(12)]\n"
    "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
    "libc = ctypes.CDLL(None); libc.fdopen.restype = ctypes.c_void_p\n"
    "out = ctypes.c_void_p(libc.fdopen(1, b'w'))\n"
    "libc.malloc_info(0, out); libc.fflush(out)\n"
)
GRAPHS = (
    "import sys\n"
    "from pathlib import Path\n"
    "import numpy as np\n"
    "from speakerlens.serving.engine.graphs import PREDICT_SPEC, Job\n"
    "from speakerlens.serving.engine.placement import Placement\n"
    "from speakerlens.serving.engine.session import GraphSession\n"
    "from speakerlens.serving.models.reader import read_bundle\n"
    f"{RESIDENT}"
    "bundle = read_bundle(Path(sys.argv[1]))\n"
    "graphs = [GraphSession(PREDICT_SPEC, bundle, Placement('cpu', 1)) for _ in range(8)]\n"
    "jobs = [Job(np.zeros(16_000 * 120, np.float32))] * 4\n"
    "sizes = []\n"
    "for graph in graphs:\n"
    "    graph.compute(graph.prepare(jobs))\n"
    "    sizes.append(resident())\n"
    "print(sizes[-1] - sizes[0])\n"
)


def printed(program: str, *arguments: str, **environment: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT, env={"PATH": "", **environment}
    )
    return done.stdout


@pytest.mark.parametrize(("environment", "given_back"), [({}, True), ({"MALLOC_ARENA_MAX": "3"}, False)])
def test_large_blocks_are_returned_to_the_system(environment: dict[str, str], given_back: bool) -> None:
    """Except where a variable of glibc's is set."""
    assert (float(printed(BLOCKS, **environment)) > 70) is given_back


def test_threads_share_two_arenas() -> None:
    assert 1 <= printed(ARENAS).count("<heap nr=") <= 2


def test_graphs_share_their_working_memory(tmp_path: Path) -> None:
    """Each by itself would keep some 60 MB for the eight minutes of audio."""
    folder = toy.write_bundle(tmp_path, "v", 1, slow_seconds=10**6)
    assert float(printed(GRAPHS, str(folder))) < 60


def test_the_server_has_two_arenas(toy_server: ServerProcess) -> None:
    """The main thread's arena and one more; further arenas are mapped at multiples of 64 MiB, read-write."""
    maps = Path(f"/proc/{toy_server.process.pid}/maps").read_text(encoding="utf-8").splitlines()
    heaps = [line for line in maps if int(line.split("-")[0], 16) % 2**26 == 0 and " rw-p 00000000 00:00 0" in line]
    assert len(heaps) <= 2
