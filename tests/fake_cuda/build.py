"""Compile the stand-ins of CUDA's libraries for one onnxruntime-gpu.

Needs gcc and nm. What the provider asks for is read from its file, so that another version needs no change here as long
as the functions in the C files keep their meaning.
"""

import re
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = {"libcudart": "runtime.c", "libcuda": "driver.c", "libcudnn": "cudnn.c"}
# Functions whose first argument receives a handle.
CREATES = re.compile(r"(cublas|cublasLt|cudnn)(Create\w*)")
# The headers' macros that matter to nvcc alone.
EMPTY = (
    "__device_builtin__ __cudart_builtin__ __device_builtin_texture_type__ __device_builtin_surface_type__ CUDARTAPI "
    "__host__ __device__ __specialization_static"
).split()
MACROS = "".join(f"#define {name}\n" for name in EMPTY) + (
    "#define __builtin_align__(bytes) __attribute__((aligned(bytes)))\n"
    "#define __align__(bytes) __attribute__((aligned(bytes)))\n"
)


def build(provider: Path, headers: Path, out: Path) -> Path:
    """Compile the libraries into a folder, for LD_LIBRARY_PATH.

    Args:
        provider: libonnxruntime_providers_cuda.so of the wheel.
        headers: folder of `driver_types.h`.
        out: an empty folder.

    Returns:
        `out`.

    Raises:
        subprocess.CalledProcessError: nm or gcc fails.
    """
    (out / "include" / "crt").mkdir(parents=True)
    (out / "include" / "crt" / "host_defines.h").write_text(MACROS)
    for library, functions in wanted(provider).items():
        _compile(library, functions, [out / "include", headers], out)
    return out


def wanted(provider: Path) -> dict[str, set[str]]:
    """Return the functions that a provider wants of each of CUDA's libraries, by the library's file name."""
    dynamic = _run("readelf", "--dynamic", str(provider))
    needed = re.findall(r"NEEDED.*\[(lib(?:cu)\w+\.so\.\d+)\]", dynamic)
    found: dict[str, set[str]] = {name: set() for name in needed}
    for line in _run("nm", "--dynamic", "--undefined-only", "--with-symbol-versions", str(provider)).splitlines():
        name, _, version = line.split()[-1].partition("@")
        if version in found:
            found[version].add(name)
        elif not version:
            # Libraries without versioned symbols are told apart by the functions' prefix.
            for library in needed:
                prefix = library.removeprefix("lib").partition(".")[0].removesuffix("da")
                if library.startswith(("libcurand", "libcuda.", "libcufft")) and name.startswith(prefix):
                    found[library].add(name)
    # Opened by name while the provider runs; the names of its functions are strings in the file.
    text = provider.read_bytes()
    found["libcudnn.so.9"] = {each.decode() for each in re.findall(rb"\x00(cudnn[A-Z]\w+)(?=\x00)", text)}
    return found


def _compile(library: str, functions: set[str], include: list[Path], out: Path) -> None:
    source = SOURCES.get(library.partition(".")[0])
    own = (HERE / source).read_text("utf-8") if source else ""
    defined = set(re.findall(r"^(?:[\w ]+?[ *]+)(\w+)\(", own, re.MULTILINE))
    made = [own]
    for name in sorted(functions - defined):
        if CREATES.fullmatch(name):
            made.append(f"int {name}(void **handle) {{ *handle = (void *)16; return 0; }}")
        else:
            made.append(f"int {name}() {{ return 0; }}")
    file = out / f"{library}.c"
    file.write_text("\n".join(made) + "\n")
    script = out / f"{library}.map"
    script.write_text(f"{library} {{ global: *; }};\n")
    versioned = library.startswith(("libcudart", "libcublas"))
    _run(
        "gcc", "-w", "-O1", "-shared", "-fPIC", *(f"-I{folder}" for folder in include), f"-Wl,-soname,{library}",
        *([f"-Wl,--version-script={script}"] if versioned else []), "-o", str(out / library), str(file),
    )  # fmt: skip


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
