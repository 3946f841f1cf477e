"""Runs of open graphs on GPUs: inputs and outputs bound to a device, CUDA graphs, and which of several GPUs computes.

Bound values are placed on whatever device a session has, so that all of this is tested on CPUs. What CUDA graphs need,
and what this was not tried on, says docs/decisions/0093-gpu-paths.md.
"""

import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.engine.placement import allocate_pinned, one_line, ort, use_gpu

log = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]

# ONNX Runtime's option of a run: the number of the CUDA graph to capture or replay, and none.
GRAPH_ID, NO_GRAPH = "gpu_graph_id", "-1"
# A replayed batch must agree with the same batch computed node by node this often before it is trusted.
AGREEING = 2
# Relative L2 norm of the difference; kernels may add in another order.
TOLERANCE = 1e-3
# Inputs and outputs that the CUDA graphs of a session keep at their places, in all.
CAPTURED_BYTES = 256 * 2**20
LEAST_BLOCK = 4096


class PinnedMemory:
    """Host memory from which a GPU reads without a copy in between.

    Blocks are used again and never returned to the system: there are as many as batches at the same time.

    Args:
        allocate: returns the address of so many bytes, or raises `OSError`.
    """

    def __init__(self, allocate: Callable[[int], int]) -> None:
        self._allocate = allocate
        # By size. Blocks come back from the garbage collector, which may run anywhere, so there must be no lock.
        self._free: dict[int, deque[int]] = {2**power: deque() for power in range(48)}

    def zeros(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return zeros, float32; not in pinned memory where that cannot be had."""
        count = int(np.prod(shape))
        size = 1 << max(4 * count, LEAST_BLOCK).bit_length()
        try:
            address = self._free[size].pop()
        except IndexError:
            try:
                with gate.shared():
                    address = self._allocate(size)
            except OSError as error:
                _warn_of_pageable(str(error))
                return np.zeros(shape, np.float32)
        bytes_ = np.asarray(_Block(address, size, self._free[size]))
        zeros: NDArray[np.float32] = bytes_[: 4 * count].view(np.float32).reshape(shape)
        zeros[:] = 0
        return zeros


class _Block:
    """A block of memory that goes back to the free ones when the last array on it is gone."""

    def __init__(self, address: int, size: int, free: deque[int]) -> None:
        self._address, self._free = address, free
        self.__array_interface__ = {"data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3}

    def __del__(self) -> None:
        self._free.append(self._address)


@functools.cache
def _warn_of_pageable(reason: str) -> None:
    log.warning("no pinned memory, copies to the GPU are slower: %s", reason)


class Gate:
    """Keeps this process's other work off its GPUs while a CUDA graph is captured: an allocation would spoil it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the GPUs together with others within the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Yield whether the GPUs are held by nothing else within the block; does not wait for that."""
        with self._changed:
            alone = not self._sharing and not self._alone
            self._alone = self._alone or alone
        try:
            yield alone
        finally:
            if alone:
                with self._changed:
                    self._alone = False
                    self._changed.notify_all()


gate = Gate()


class Balance:
    """Chooses a GPU for each batch: of those with the fewest batches, that on which the thread computed last."""

    def __init__(self, gpus: int) -> None:
        self._lock = threading.Lock()
        self._batches = [0] * gpus
        self._thread = threading.local()

    @contextmanager
    def batch(self) -> Iterator[int]:
        """Count a batch within the block; yield the number of its GPU among those of the process."""
        last = getattr(self._thread, "last", None)
        with self._lock:
            number = min(range(len(self._batches)), key=lambda each: (self._batches[each], each != last))
            self._batches[number] += 1
        self._thread.last = number
        try:
            yield number
        finally:
            with self._lock:
                self._batches[number] -= 1


@functools.cache
def balance_of(gpus: int) -> Balance:
    """Return what chooses among so many GPUs, for all graphs of the process."""
    return Balance(gpus)


@dataclass
class _Captured:
    """A shape that runs as a CUDA graph: values at fixed places, and how often its results were found right."""

    inputs: dict[str, Any]
    outputs: list[Any]
    binding: Any
    options: Any
    agreed: int = 0


class DeviceSession:
    """An open graph on one device, with inputs and outputs bound to it.

    Args:
        session: of ONNX Runtime.
        place: name and number of its device, such as ("cuda", 0).
        shapes: of `audio` that run as CUDA graphs, of a session that was opened for that; it must then be run by one
            thread at a time.
        name: for messages.

    Attributes:
        failed: why no CUDA graph is used any more; empty while they are.
    """

    def __init__(
        self, session: Any, place: tuple[str, int], shapes: Collection[tuple[int, int]] = (), name: str = ""
    ) -> None:
        self.session = session
        self._place = place
        self._shapes = frozenset(shapes)
        self._name = name
        self._lock = threading.Lock()
        self._left = CAPTURED_BYTES
        # ONNX Runtime captures for the thread that runs, and replays in no other.
        self._thread = threading.local()
        self._skip: Any = None
        self.failed = ""
        if self._shapes:
            self._skip = ort.RunOptions()
            self._skip.add_run_config_entry(GRAPH_ID, NO_GRAPH)

    @property
    def captures(self) -> bool:
        """Whether batches run as CUDA graphs."""
        return bool(self._shapes) and not self.failed

    def upload(self, arrays: Arrays) -> dict[str, Any]:
        """Return inputs on the device, for `run`; runs in any thread, also while batches are computed."""
        with gate.shared():
            if self._place[0] != "cpu":
                use_gpu(self._place[1])
            return {name: ort.OrtValue.ortvalue_from_numpy(array, *self._place) for name, array in arrays.items()}

    def run(
        self, names: Sequence[str], arrays: Arrays, uploaded: Mapping[str, Any] | None = None
    ) -> list[NDArray[Any]]:
        """Return the outputs of these names, in host memory.

        Args:
            names: of outputs.
            arrays: inputs by name.
            uploaded: the same on the device, if they are there.
        """
        if not self._shapes:
            return self.run_plain(names, arrays, uploaded)
        with self._lock:
            return self._run_captured(names, arrays) if self.captures else self.run_plain(names, arrays)

    def run_plain(
        self, names: Sequence[str], arrays: Arrays, uploaded: Mapping[str, Any] | None = None
    ) -> list[NDArray[Any]]:
        """Return the same, node by node; a session with CUDA graphs must be run by one thread at a time."""
        inputs = self.upload(arrays) if uploaded is None else uploaded
        with gate.shared():
            binding = self.session.io_binding()
            for name, value in inputs.items():
                binding.bind_ortvalue_input(name, value)
            for name in names:
                binding.bind_output(name, *self._place)
            self.session.run_with_iobinding(binding, self._skip)
            return [value.numpy() for value in binding.get_outputs()]

    def _run_captured(self, names: Sequence[str], arrays: Arrays) -> list[NDArray[Any]]:
        shape = arrays["audio"].shape
        made: dict[Any, _Captured] = self._thread.__dict__.setdefault("made", {})
        key = (*names, shape)
        if shape not in self._shapes:
            return self.run_plain(names, arrays)
        captured = made.get(key)
        if captured is not None and captured.agreed >= AGREEING:
            try:
                with gate.shared():
                    return self._replay(captured, arrays)
            except Exception as error:
                self._fail(one_line(error))  # so that it is not tried again once the engine is reopened
                raise
        expected = self.run_plain(names, arrays)
        try:
            if captured is None:
                with gate.alone() as alone:
                    if not alone or not self._room(arrays, expected):
                        return expected
                    captured = self._capture(names, arrays, expected, len(made) + 1)
                    found = self._replay(captured, arrays)
            else:
                with gate.shared():
                    found = self._replay(captured, arrays)
        except Exception as error:  # noqa: BLE001 - the errors of ONNX Runtime have no common base
            self._fail(one_line(error))
            return expected
        if not all(map(_agree, found, expected)):
            self._fail(f"a batch of {shape[0]} rows of {shape[1]} samples has other results")
            return expected
        made[key] = captured
        captured.agreed += 1
        return expected

    def _room(self, arrays: Arrays, outputs: Sequence[NDArray[Any]]) -> bool:
        """Return whether a shape may still be captured, by the memory of its inputs and outputs, and count it."""
        needed = sum(array.nbytes for array in [*arrays.values(), *outputs])
        if needed > self._left:
            return False
        self._left -= needed
        return True

    def _capture(self, names: Sequence[str], arrays: Arrays, outputs: Sequence[NDArray[Any]], number: int) -> _Captured:
        """Return a shape with values at fixed places; its first replay captures it."""
        options = ort.RunOptions()
        options.add_run_config_entry(GRAPH_ID, str(number))
        captured = _Captured(
            {name: ort.OrtValue.ortvalue_from_numpy(array.copy(), *self._place) for name, array in arrays.items()},
            [ort.OrtValue.ortvalue_from_shape_and_type(each.shape, each.dtype.type, *self._place) for each in outputs],
            self.session.io_binding(),
            options,
        )
        for name, value in captured.inputs.items():
            captured.binding.bind_ortvalue_input(name, value)
        for name, value in zip(names, captured.outputs, strict=True):
            captured.binding.bind_ortvalue_output(name, value)
        return captured

    def _replay(self, captured: _Captured, arrays: Arrays) -> list[NDArray[Any]]:
        for name, value in captured.inputs.items():
            value.update_inplace(arrays[name])
        self.session.run_with_iobinding(captured.binding, captured.options)
        outputs = [value.numpy() for value in captured.outputs]
        # The next replay writes to the same places.
        return [array if array.flags.owndata else array.copy() for array in outputs]

    def _fail(self, why: str) -> None:
        self.failed = why
        log.warning("%s: no CUDA graphs are used any more, batches are computed node by node: %s", self._name, why)


def _agree(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    difference = np.linalg.norm(np.subtract(found, expected, dtype=np.float64))
    return bool(difference <= TOLERANCE * np.linalg.norm(expected.astype(np.float64)))


@functools.cache
def pinned_memory(gpu: int) -> PinnedMemory:
    """Return the pinned memory of the process, of a machine on which CUDA works; any of its GPUs may allocate it."""

    def allocate(size: int) -> int:
        use_gpu(gpu)
        return allocate_pinned(size)

    return PinnedMemory(allocate)
