"""Write a software bill of materials, CycloneDX 1.6, from a lock with hashes.

    python deploy/image/sbom.py requirements/serve-cpu.txt --out sbom.cdx.json

Without any package, as it runs in the build of the image. It lists what the lock has for this Python and system; the
image's base has its own.
"""

import argparse
import importlib.util
import json
import platform
import re
import sys
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What this lock's markers say, as far as they are used.
MARKERS = {
    "python_full_version": platform.python_version(),
    "python_version": ".".join(platform.python_version_tuple()[:2]),
    "sys_platform": sys.platform,
    "implementation_name": sys.implementation.name,
    "platform_python_implementation": platform.python_implementation(),
    "platform_machine": platform.machine(),
    "os_name": "posix",
}
ENTRY = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[\w,-]+\])?==([^ ;\\]+)(?: ; ([^\\]+?))? ?\\?$", re.MULTILINE)
CONDITION = re.compile(r"(\w+) *(==|!=|<=|>=|<|>) *'([^']*)'")


def version() -> str:
    """Return the project's version, without importing the package."""
    found = importlib.util.spec_from_file_location("_version", ROOT / "speakerlens" / "_version.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return str(module.__version__)


def sbom(lock: str, name: str) -> dict[str, Any]:
    """Return the document of a lock's text; the same text gives the same document."""
    parts = re.split(r"^(?=[A-Za-z0-9])", re.sub(r"^#.*\n", "", lock, flags=re.MULTILINE), flags=re.MULTILINE)
    components = [_component(match, part) for part in parts if (match := ENTRY.match(part)) and _applies(match[3])]
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"speakerlens {version()} {name} {lock}")
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{identity}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "speakerlens",
                "name": "speakerlens",
                "version": version(),
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "purl": f"pkg:pypi/speakerlens@{version()}",
            },
            "properties": [{"name": "speakerlens:lock", "value": name}],
        },
        "components": components,
        "dependencies": [
            {"ref": "speakerlens", "dependsOn": [each["bom-ref"] for each in components]},
        ],
    }


def _component(entry: "re.Match[str]", part: str) -> dict[str, Any]:
    name = re.sub(r"[-_.]+", "-", entry[1]).lower()
    return {
        "type": "library",
        "bom-ref": f"{name}@{entry[2]}",
        "name": name,
        "version": entry[2],
        "purl": f"pkg:pypi/{name}@{entry[2]}",
        # Each is of one of the files of this version.
        "externalReferences": [
            {
                "type": "distribution",
                "url": f"https://pypi.org/project/{name}/{entry[2]}/",
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }
            for digest in re.findall(r"--hash=sha256:([0-9a-f]{64})", part)
        ],
    }


def _applies(marker: str | None) -> bool:
    """Return whether a marker of `and` alone holds here.

    Raises:
        ValueError: it has another form.
    """
    for condition in (marker or "").split(" and ") if marker else ():
        match = CONDITION.fullmatch(condition.strip())
        if match is None or match[1] not in MARKERS:
            raise ValueError(f"the marker {marker} is not known here")
        actual, operator, wanted = MARKERS[match[1]], match[2], match[3]
        left, right = (_number(actual), _number(wanted)) if match[1].startswith("python_") else (actual, wanted)
        holds = {
            "==": left == right,
            "!=": left != right,
            "<": left < right,  # type: ignore[operator]
            "<=": left <= right,  # type: ignore[operator]
            ">": left > right,  # type: ignore[operator]
            ">=": left >= right,  # type: ignore[operator]
        }[operator]
        if not holds:
            return False
    return True


def _number(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def main() -> None:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lock", type=Path, help="such as requirements/serve-cpu.txt")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True)
    arguments = parser.parse_args()
    document = sbom(arguments.lock.read_text("utf-8"), arguments.lock.stem)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
