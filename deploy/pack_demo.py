"""Pack the demo's bundles for `speakerlens demo`: `python -m deploy.pack_demo BUNDLES speakerlens/demo.tar.xz`.

The archive has what a server needs, and a few utterances as examples. The same bundles give the same bytes.
"""

import argparse
import hashlib
import io
import json
import lzma
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The examples of the page.
UTTERANCES = 5
LEFT_OUT = ("model.ts", "weights.safetensors")


def stripped(folder: Path) -> dict[str, bytes]:
    """Return the files of a bundle without what the server does not need, and its manifest to match."""
    manifest: dict[str, Any] = json.loads((folder / "bundle.json").read_text("utf-8"))
    manifest["utterances"] = manifest["utterances"][:UTTERANCES]
    manifest["probes"] = None
    kept = {each["file"] for each in manifest["utterances"]}
    names = [
        name
        for name in manifest["files"]
        if name not in LEFT_OUT and (name in kept or not name.startswith(("utterances/", "probes/")))
    ]
    files = {name: (folder / name).read_bytes() for name in names}
    manifest["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    text = json.dumps(manifest, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return {**files, "bundle.json": text.encode()}


def packed(bundles: Path) -> bytes:
    """Return the archive of all bundles of a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for manifest in sorted(bundles.glob("*/*/bundle.json")):
            folder = manifest.parent
            for name, content in sorted(stripped(folder).items()):
                entry = tarfile.TarInfo(f"{folder.parent.name}/{folder.name}/{name}")
                entry.size, entry.mode = len(content), 0o644
                archive.addfile(entry, io.BytesIO(content))
    return lzma.compress(buffer.getvalue(), preset=9)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the archive; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.pack_demo", description=__doc__)
    parser.add_argument("bundles", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args(argv)
    content = packed(arguments.bundles)
    arguments.out.write_bytes(content)
    print(f"{arguments.out}: {len(content) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
