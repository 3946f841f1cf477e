"""Choose the number format of a bundle's graphs: what was asked for, if the bundle's own figures allow it."""

from speakerlens.measures.precision import FP16, FP32, INT8
from speakerlens.serving.bundle import Bundle, BundleError, Fault

AUTO = "auto"
# Less than this share of float32's processor time counts as faster: the rest is within what the measurement varies.
FASTER = 0.95


def choose_precision(bundle: Bundle, wanted: str, on_gpu: bool) -> str:
    """Return the precision to serve a bundle in.

    Args:
        bundle: read and checked.
        wanted: `fp32`, `int8`, `fp16`, or `auto`: the fastest whose figures meet the floor and that the device supports
            well. That is fp16 on a GPU; on a CPU int8, if the export measured that it is faster; otherwise fp32.
        on_gpu: whether graphs run with CUDA.

    Raises:
        BundleError: the bundle does not have it, its figures miss the floor, or the device does not compute it.
    """
    if wanted == AUTO:
        found = bundle.precisions.get(FP16 if on_gpu else INT8)
        allowed = found is not None and not found.misses and (on_gpu or found.predict_time < FASTER)
        return (FP16 if on_gpu else INT8) if allowed else FP32
    if wanted == FP32:
        return wanted
    if wanted not in bundle.precisions:
        there = ", ".join((FP32, *bundle.precisions))
        raise BundleError(
            f"{bundle.name} has no {wanted}, only {there}: export it with --precision {wanted}, or serve --precision "
            "auto",
            Fault.PRECISION,
        )
    if wanted == INT8 and on_gpu:
        raise BundleError(f"{bundle.name}: int8 is for CPUs; serve --precision fp16 or fp32 with CUDA", Fault.PRECISION)
    missed = bundle.precisions[wanted].misses
    if missed:
        more = f" ({len(missed) - 1} more figures miss it)" if len(missed) > 1 else ""
        raise BundleError(
            f"{bundle.name} in {wanted} misses the floor for serving: {missed[0]}{more}; serve --precision fp32",
            Fault.PRECISION,
        )
    return wanted
