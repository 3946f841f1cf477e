"""Bound values, CUDA graphs, pinned memory and the choice among GPUs, on CPU devices; what it takes to need a GPU."""

import ctypes
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from speakerlens.cuda import CPU, CUDA, Device
from speakerlens.serving.bundle import BundleError
from speakerlens.serving.config import Config
from speakerlens.serving.engine import gpu, placement, session
from speakerlens.serving.engine.buckets import BatchLimits, cuda_buckets, gpu_rows
from speakerlens.serving.engine.gpu import AGREEING, Balance, DeviceSession, Gate, PinnedMemory
from speakerlens.serving.engine.graphs import EXPLAIN_SPECS, VERIFY_SPECS, Job
from speakerlens.serving.engine.placement import Placement
from speakerlens.serving.engine.session import Engine
from speakerlens.serving.engine.tensorrt import engine_options
from speakerlens.serving.errors import StartupError
from speakerlens.serving.models import loader
from speakerlens.serving.models.reader import read_bundle
from tests.serving import toy

RNG = np.random.default_rng(0)
SHAPE = (3, 24_000)
GIB = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_bundle(tmp_path_factory.mktemp("bundles"), "v", 1)


@pytest.fixture(scope="module")
def opened(folder: Path) -> Any:
    return ort.InferenceSession(folder / "explain.onnx", providers=[CPU])


def names_of(opened: Any) -> list[str]:
    return [each.name for each in opened.get_outputs()]


def inputs(rows: int, samples: int) -> dict[str, NDArray[Any]]:
    audio = RNG.normal(0, 0.1, (rows, samples)).astype(np.float32)
    return {"audio": audio, "lengths": np.full(rows, samples - 400), "target": np.full(rows, -1)}


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_bound_run_gives_the_sessions_own_results(opened: Any, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(names_of(opened)), min_size=1, unique=True))
    given_ = inputs(data.draw(st.integers(1, 9)), data.draw(st.integers(8_000, 40_000)))
    bound = DeviceSession(opened, ("cpu", 0))
    uploaded = bound.upload(given_) if data.draw(st.booleans()) else None
    for found, expected in zip(bound.run(names, given_, uploaded), opened.run(names, given_), strict=True):
        assert_array_equal(found, expected)


class Recorder:
    """A session, with the option for CUDA graphs of each of its runs."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened
        self.ids: list[str] = []
        self.stale = False

    def io_binding(self) -> Any:
        return self._opened.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self.ids.append(options.get_run_config_entry("gpu_graph_id"))
        if self.stale and self.ids[-1] != "-1":
            return  # the results of the run before stay
        self._opened.run_with_iobinding(binding, options)


def test_usual_shape_is_replayed_once_it_has_agreed(opened: Any) -> None:
    recorder, names = Recorder(opened), names_of(opened)
    bound = DeviceSession(recorder, ("cpu", 0), [SHAPE, (1, 16_000)])
    kept = []
    for shape in [SHAPE] * 4 + [(1, 16_000), (2, 16_000), SHAPE]:
        given_ = inputs(*shape)
        kept.append((bound.run(names, given_), opened.run(names, given_)))
    assert recorder.ids == ["-1", "1", "-1", "1", "1", "1", "-1", "2", "-1", "1"]
    for found, expected in kept:  # a later batch does not write into an earlier one's results
        for one, other in zip(found, expected, strict=True):
            assert_array_equal(one, other)
    assert bound.captures


def test_replay_that_differs_ends_the_use_of_graphs(opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    """As where a node on the CPU depends on values, which a replay does not compute again."""
    recorder, names = Recorder(opened), names_of(opened)
    bound = DeviceSession(recorder, ("cpu", 0), [SHAPE], "v/1 explain.onnx")
    bound.run(names, inputs(*SHAPE))
    recorder.stale = True
    for _ in range(2):
        given_ = inputs(*SHAPE)
        for found, expected in zip(bound.run(names, given_), opened.run(names, given_), strict=True):
            assert_array_equal(found, expected)
    assert recorder.ids == ["-1", "1", "-1", "1", "-1"]
    assert bound.failed
    assert not bound.captures
    assert "v/1 explain.onnx: no CUDA graphs are used any more" in caplog.text


def test_capture_that_fails_ends_the_use_of_graphs(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, names = Recorder(opened), names_of(opened)
    bound = DeviceSession(recorder, ("cpu", 0), [SHAPE])

    def broken(*_: object) -> None:
        raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")

    monkeypatch.setattr(bound, "_replay", broken)
    for _ in range(2):
        assert len(bound.run(names, inputs(*SHAPE))) == len(names)
    assert bound.failed == "CUDA failure 900: operation not permitted when stream is capturing"
    assert recorder.ids == ["-1", "-1"]


def test_replay_that_fails_later_is_an_error_and_the_last(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is reopened then, and must not fail for the same reason again."""
    bound = DeviceSession(Recorder(opened), ("cpu", 0), [SHAPE])
    for _ in range(AGREEING):
        bound.run(["logits"], inputs(*SHAPE))

    def broken(*_: object) -> None:
        raise RuntimeError("CUDA failure 700: an illegal memory access")

    monkeypatch.setattr(bound, "_replay", broken)
    with pytest.raises(RuntimeError, match="CUDA failure 700"):
        bound.run(["logits"], inputs(*SHAPE))
    assert not bound.captures


def test_shapes_beyond_the_memory_for_graphs_run_plainly(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "CAPTURED_BYTES", 400_000)
    recorder = Recorder(opened)
    bound = DeviceSession(recorder, ("cpu", 0), [SHAPE, (1, 16_000)])
    for shape in (SHAPE, SHAPE, (1, 16_000)):
        bound.run(["logits"], inputs(*shape))
    assert recorder.ids == ["-1", "1", "-1", "1", "-1", "2"]
    bound.run(names_of(opened), inputs(*SHAPE))
    assert recorder.ids[-1] == "-1"


def test_each_thread_captures_for_itself(opened: Any) -> None:
    recorder = Recorder(opened)
    bound = DeviceSession(recorder, ("cpu", 0), [SHAPE])
    for _ in range(AGREEING + 1):
        bound.run(["logits"], inputs(*SHAPE))
    assert recorder.ids[-1] == "1"
    assert recorder.ids[-2] == "1"
    thread = threading.Thread(target=lambda: bound.run(["logits"], inputs(*SHAPE)))
    thread.start()
    thread.join()
    assert recorder.ids[-2:] == ["-1", "1"]


def test_nothing_is_captured_while_the_gpus_are_in_use(opened: Any) -> None:
    recorder = Recorder(opened)
    bound = DeviceSession(recorder, ("cpu", 0), [SHAPE])
    with gpu.gate.shared():
        bound.run(["logits"], inputs(*SHAPE))
    bound.run(["logits"], inputs(*SHAPE))
    assert recorder.ids == ["-1", "-1", "1"]


def test_gate_holds_others_back_during_a_capture() -> None:
    gate, entered = Gate(), threading.Event()

    def other() -> None:
        with gate.shared():
            entered.set()

    with gate.alone() as alone, gate.alone() as second:
        assert (alone, second) == (True, False)
        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(0.05)
    assert entered.wait(5)
    thread.join()
    with gate.shared(), gate.shared(), gate.alone() as alone:
        assert not alone


@given(st.integers(1, 4), st.lists(st.integers(0, 7), max_size=30))
def test_batches_are_spread_over_the_gpus(gpus: int, ended: list[int]) -> None:
    balance, running = Balance(gpus), list[tuple[int, ExitStack]]()
    for which in ended:
        if which < len(running):
            running.pop(which)[1].close()
            continue
        stack = ExitStack()
        counts = [sum(number == each for number, _ in running) for each in range(gpus)]
        number = stack.enter_context(balance.batch())
        running.append((number, stack))
        assert counts[number] == min(counts)
    for _, stack in running:
        stack.close()
    assert balance._batches == [0] * gpus


def test_thread_keeps_its_gpu() -> None:
    balance, used = Balance(2), list[int]()
    with balance.batch() as first:
        thread = threading.Thread(target=lambda: used.extend(turn(balance) for _ in range(3)))
        thread.start()
        thread.join()
        assert used == [1 - first] * 3
    assert [turn(balance), turn(balance)] == [first, first]


def turn(balance: Balance) -> int:
    with balance.batch() as number:
        return number


class Heap:
    """Memory by addresses, as CUDA gives it."""

    def __init__(self) -> None:
        self.blocks: list[Any] = []

    def allocate(self, size: int) -> int:
        self.blocks.append(ctypes.create_string_buffer(b"\xff" * size, size))
        return ctypes.addressof(self.blocks[-1])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3000), st.booleans()), max_size=30))
def test_arrays_in_pinned_memory_never_overlap(shapes: list[tuple[int, int, bool]]) -> None:
    heap = Heap()
    memory, live = PinnedMemory(heap.allocate), list[tuple[int, NDArray[np.float32]]]()
    most = 0
    for number, (rows, columns, drop) in enumerate(shapes, 1):
        array = memory.zeros((rows, columns))
        assert array.shape == (rows, columns)
        assert not array.any()
        array[:] = number
        live.append((number, array[:, columns // 2 :]))
        del array
        most = max(most, len(live))
        if drop:
            live.pop(0)
        for value, kept in live:
            assert (kept == value).all()
    sizes = {len(block) for block in heap.blocks}
    assert len(heap.blocks) <= most * max(1, len(sizes))


def test_without_pinned_memory_arrays_are_pageable(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(size: int) -> int:
        raise OSError(f"{size} bytes of pinned memory: CUDA error 2")

    gpu._warn_of_pageable.cache_clear()
    memory = PinnedMemory(refuse)
    assert not memory.zeros((2, 5)).any()
    memory.zeros((2, 5))
    assert caplog.text.count("no pinned memory") == 1


@pytest.fixture
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return what makes the CPU pass for a number of GPUs, in all but its results."""

    def make(count: int) -> None:
        class Cpu(Device):
            place = ("cpu", 0)

            def providers(self, *_: object, **__: object) -> list[str]:
                return [CPU]

        gpus = tuple(Cpu(CUDA, index) for index in range(count))
        monkeypatch.setattr(placement, "choose_all", lambda _device: gpus)
        heap = Heap()
        monkeypatch.setattr(session, "pinned_memory", lambda _gpu: PinnedMemory(heap.allocate))

    return make


@pytest.mark.parametrize(("gpus", "cuda_graphs"), [(1, False), (1, True), (2, False)])
def test_engine_on_gpus_answers_as_on_the_cpu(
    folder: Path, on_gpus: Callable[[int], None], gpus: int, cuda_graphs: bool
) -> None:
    bundle, limits = read_bundle(folder), BatchLimits(rows=4, longest_seconds=2)
    jobs = [Job(RNG.normal(0, 0.1, samples).astype(np.float32)) for samples in (30_000, 16_000, 9_000)]
    alone = Engine(bundle, Placement("cpu", 1), BatchLimits(rows=4))
    on_gpus(gpus)
    engine = Engine(bundle, Placement("cuda:all", 1, gpus, cuda_graphs=cuda_graphs), limits)
    assert len(engine.explain.devices) == gpus
    assert engine.predict.warm_up() == gpus * 6
    for _ in range(AGREEING + 2):
        inputs_ = engine.explain.prepare(jobs)
        assert inputs_.arrays["audio"].shape == (4, 32_000)
        assert (inputs_.uploaded is None) == (gpus > 1 or cuda_graphs)
        found = engine.explain.compute(inputs_)
        for one, other in zip(found, alone.explain.compute(alone.explain.prepare(jobs)), strict=True):
            for first, second in zip(one.arrays(), other.arrays(), strict=True):
                np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
    assert engine.explain.devices[0].captures == cuda_graphs
    engine.explain.probe()


def test_two_instances_of_a_gpu_use_no_cuda_graphs(folder: Path, on_gpus: Callable[[int], None]) -> None:
    """ONNX Runtime replays them in one thread at a time."""
    on_gpus(1)
    engine = Engine(read_bundle(folder), Placement("cuda", 1, 2, cuda_graphs=True), BatchLimits(rows=2))
    assert not engine.predict.devices[0].captures


def test_graph_that_cannot_be_captured_runs_node_by_node(
    folder: Path, on_gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As ONNX Runtime refuses one with control flow, or with copies within."""
    on_gpus(1)

    def refuse(bundle: Any, spec: Any, where: Any, device: Any, buckets: Any, graphs: bool) -> Any:
        if graphs and spec.file == "predict.onnx":
            raise BundleError("predict.onnx cannot be opened with CUDA on GPU 0: it has control flow")
        return placement.open_on_gpu(bundle, spec, where, device, buckets, graphs)

    monkeypatch.setattr(session, "open_on_gpu", refuse)
    engine = Engine(read_bundle(folder), Placement("cuda", 1, cuda_graphs=True), BatchLimits(rows=1))
    assert not engine.predict.devices[0].captures
    assert engine.explain.devices[0].captures
    assert "computed node by node: predict.onnx cannot be opened with CUDA on GPU 0: it has control flow" in caplog.text


def test_graphs_that_failed_are_not_tried_after_reopening(folder: Path, on_gpus: Callable[[int], None]) -> None:
    on_gpus(1)
    limits = BatchLimits(rows=1, longest_seconds=1)
    engine = Engine(read_bundle(folder), Placement("cuda", 1, cuda_graphs=True), limits)
    engine.predict.devices[0].failed = "it differs"
    engine.reopen()
    assert not engine.predict.devices[0].captures
    assert engine.explain.devices[0].captures


def test_batches_that_do_not_fit_are_left_out(
    folder: Path, on_gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_gpus(1)
    graph = Engine(read_bundle(folder), Placement("cuda", 1), BatchLimits(rows=8, longest_seconds=3)).predict
    run = graph.devices[0].run_plain

    def limited(names: Any, arrays: Any, uploaded: Any = None) -> Any:
        if arrays["audio"].size > 6 * 16_000:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
        return run(names, arrays, uploaded)

    monkeypatch.setattr(graph.devices[0], "run_plain", limited)
    graph.warm_up()
    assert graph.buckets.batch_samples < 8 * 16_000
    assert (2, 48_000) in graph.buckets.warm
    assert (4, 32_000) not in graph.buckets.warm
    assert "predict.onnx: batches have at most" in caplog.text

    def broken(*_: object) -> None:
        raise RuntimeError("CUDA failure 700: an illegal memory access")

    monkeypatch.setattr(graph.devices[0], "run_plain", broken)
    with pytest.raises(BundleError, match="fails at warm-up: CUDA failure 700"):
        graph.warm_up()


def test_rows_of_a_batch_grow_with_the_memory() -> None:
    assert [gpu_rows(gib * GIB) for gib in (0, 16, 40, 80, 139)] == [64, 64, 128, 128, 256]


def test_limits_on_a_gpu_follow_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "find_gpus", lambda _device: (Device(CUDA), Device(CUDA, 1)))
    monkeypatch.setattr(placement, "total_memory", lambda index: (139 if index else 80) * GIB)
    fitted = loader.fit_to_device(Config())
    assert (fitted.max_batch, fitted.queue_size, fitted.max_in_flight) == (128, 512, 512)
    fitted = loader.fit_to_device(Config(max_batch=16, queue_size=20))
    assert (fitted.max_batch, fitted.queue_size, fitted.max_in_flight) == (16, 20, 128)
    assert loader.placement_of(Config(instances="2")).instances == 4


def test_limits_on_a_cpu_stay_as_they_are() -> None:
    config = Config(device="cpu")
    assert loader.fit_to_device(config) is config
    for flags in ({"cuda_graphs": True}, {"tensorrt": Path("/engines")}):
        with pytest.raises(StartupError, match=r"--(tensorrt|cuda-graphs) needs a GPU, and models run on the CPU"):
            loader.fit_to_device(Config(device="cpu", **flags))


def test_engines_of_bundles_with_other_weights_lie_apart(folder: Path, tmp_path: Path) -> None:
    """ONNX Runtime names them by the nodes alone, which the variants of a network have in common."""
    bundle, buckets = read_bundle(folder), cuda_buckets(BatchLimits(rows=64, longest_seconds=3))
    spec = VERIFY_SPECS["s1"]
    options = engine_options(b"graph", bundle, spec, tmp_path / "engines", buckets)
    size = bundle.embedding_size
    assert options["trt_profile_min_shapes"] == f"audio:1x16000,lengths:1,reference:1x{size}"
    assert options["trt_profile_max_shapes"] == f"audio:64x48000,lengths:64,reference:64x{size}"
    assert options["trt_profile_opt_shapes"].startswith("audio:64x32000,")
    changed = [
        engine_options(b"other", bundle, spec, tmp_path / "engines", buckets),
        engine_options(b"graph", bundle, EXPLAIN_SPECS["s4"], tmp_path / "engines", buckets),
        engine_options(b"graph", bundle, spec, tmp_path / "engines", replace(buckets, sizes=(1, 32))),
    ]
    folders = {each["trt_engine_cache_path"] for each in [options, *changed]}
    assert len(folders) == 4
    assert all(Path(each).stat().st_mode & 0o777 == 0o700 for each in folders)
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=r"--tensorrt .*file: cannot be written to"):
        engine_options(b"graph", bundle, spec, tmp_path / "file", buckets)
