"""Results of the probes for bundles with damaged weights, without traffic.

  python -m benchmarks.damage build/demo/bundles --variant act-da --out benchmarks/results/damage.md

Copies a variant's newest bundle, adds noise to the network's weights in its graphs (in percent of each tensor's
standard deviation, the same in every graph), and updates the digests, so that the server accepts it. Serves each copy
in turn without requests, and prints a table: accuracy and deletion index in each condition, at export and in the
server's first round, and the time from the server being ready to the round being shown. With `--instead OTHER`, the
last column is of another variant's graphs under this one's name.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.serving.harness import ServerProcess

GRAPHS = ("predict.onnx", "explain.onnx", "verify.onnx")
FRONT_END = "front_end"  # mostly zeros, which any noise destroys
PERIOD_SECONDS = 300.0  # the server's own


@dataclass(frozen=True)
class Shown:
    """A variant's probe metrics by name and condition, and the seconds until they appeared."""

    values: Mapping[tuple[str, str, str], float]
    seconds: float


def main() -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description="Measure how probes show damaged weights.")
    parser.add_argument("bundles", type=Path, help="<variant>/<version>/ folders; they are left as they are")
    parser.add_argument("--variant", default="act-da")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.2, 0.3, 0.4], help="shares of the weights' size")
    parser.add_argument("--instead", metavar="OTHER", help="a variant whose graphs are served under this one's name")
    parser.add_argument("--period", type=float, default=PERIOD_SECONDS, help="--probe-seconds of the servers")
    parser.add_argument("--out", type=Path, help="file for the table")
    args = parser.parse_args()
    source = newest(args.bundles / args.variant)
    columns = {"at export": exported(source), "as exported": served(source, 0.0, period=args.period)}
    for share in args.noise:
        columns[f"{share:.0%} noise"] = served(source, share, period=args.period)
    if args.instead:
        graphs = newest(args.bundles / args.instead)
        columns[f"graphs of `{args.instead}`"] = served(source, 0.0, graphs, args.period)
    text = table(args.variant, columns, args.period)
    sys.stdout.write(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")
    return 0


def newest(variant: Path) -> Path:
    """Return the folder of a variant's newest version."""
    return max((each for each in variant.iterdir() if each.name.isdecimal()), key=lambda each: int(each.name))


def served(source: Path, share: float, graphs: Path | None = None, period: float = PERIOD_SECONDS) -> Shown:
    """Return the probe metrics of a copy of a bundle with noise in its weights, or with the graphs of another bundle.

    Raises:
        TimeoutError: a period of the server's own length was not enough.
    """
    with tempfile.TemporaryDirectory() as root:
        copy = Path(root) / source.parent.name / source.name
        shutil.copytree(source, copy)
        if graphs is not None:
            put_instead(copy, graphs)
        if share:
            damage(copy, share)
        with ServerProcess(Path(root), f"--probe-seconds={period:g}", "--window-seconds=3") as server:
            ready = time.monotonic()
            name = f'speakerlens_probe_round_timestamp_seconds{{variant="{source.parent.name}"}}'
            while not server.metrics().get(name):
                if time.monotonic() - ready > PERIOD_SECONDS:
                    raise TimeoutError(f"no round of {source} was over within {PERIOD_SECONDS:g} s")
                time.sleep(0.5)
            return Shown(shown(server.metrics()), time.monotonic() - ready)


def shown(metrics: Mapping[str, float]) -> dict[tuple[str, str, str], float]:
    """Return accuracy and deletion index by metric, interference and SNR, from the samples of a server."""
    found = {}
    for sample, value in metrics.items():
        name, _, labels = sample.removeprefix("speakerlens_probe_").partition("{")
        if name in ("accuracy_ratio", "deletion_index"):
            parts = dict(each.split("=") for each in labels.rstrip("}").replace('"', "").split(","))
            found[name, parts["interference"], parts["snr"]] = value
    return found


def exported(folder: Path) -> Shown:
    """Return the results at export."""
    values = {}
    for each in json.loads((folder / "baseline.json").read_text("utf-8"))["probes"]:
        condition = each["interference"], "" if each["snr_db"] is None else f"{each['snr_db']:g}"
        values["accuracy_ratio", *condition] = each["accuracy"]
        if each["deletion_index"] is not None:
            values["deletion_index", *condition] = each["deletion_index"]
    return Shown(values, 0.0)


def damage(folder: Path, share: float, graphs: Sequence[str] = GRAPHS) -> None:
    """Add noise to the trained weights of a bundle's graphs, the same to equal tensors, and update the digests."""
    for name in graphs:
        model = onnx.load(str(folder / name))
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.size > 1 and FRONT_END not in tensor.name:
                seed = int.from_bytes(hashlib.sha256(values.tobytes()).digest()[:8])
                noise = np.random.default_rng(seed).normal(0.0, share * float(values.std()), values.shape)
                tensor.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), tensor.name))
        onnx.save(model, str(folder / name))
    reseal(folder)


def put_instead(folder: Path, other: Path) -> None:
    """Replace a bundle's graphs by those of another, with the metadata of the first."""
    for name in GRAPHS:
        own, model = onnx.load(str(folder / name)), onnx.load(str(other / name))
        onnx.helper.set_model_props(model, {each.key: each.value for each in own.metadata_props})
        onnx.save(model, str(folder / name))
    reseal(folder)


def reseal(folder: Path) -> None:
    """Record the present digests of the files."""
    manifest = json.loads((folder / "bundle.json").read_text("utf-8"))
    manifest["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]}
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")


def table(variant: str, columns: Mapping[str, Shown], period: float) -> str:
    """Return all results as Markdown."""
    first = next(iter(columns.values()))
    lines = [f"Probes of `{variant}` every {period:g} s, and no other request: accuracy (deletion index)", ""]
    lines += [f"| condition | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, *condition in first.values:
        if name == "accuracy_ratio":
            cells = [_cell(column.values, condition) for column in columns.values()]
            lines.append(f"| {condition[0]}{f' {condition[1]} dB' if condition[1] else ''} | {' | '.join(cells)} |")
    means = [
        np.mean([v for (name, *_), v in each.values.items() if name == "accuracy_ratio"]) for each in columns.values()
    ]
    lines.append(f"| **all** | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    waited = [f"{each.seconds:.1f} s" if each.seconds else "" for each in columns.values()]
    lines.append(f"| shown after | {' | '.join(waited)} |")
    return "\n".join(lines) + "\n"


def _cell(values: Mapping[tuple[str, str, str], float], condition: list[Any]) -> str:
    deletion = values.get(("deletion_index", *condition))
    return f"{values['accuracy_ratio', *condition]:.3f}" + ("" if deletion is None else f" ({deletion:.2f})")


if __name__ == "__main__":
    sys.exit(main())
