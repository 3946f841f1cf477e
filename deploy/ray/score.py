"""Score an archive on a Ray cluster.

    pip install "speakerlens[cpu,ray]"
    python deploy/ray/score.py LIST BUNDLE OUT [WORKERS]

LIST has the path of a recording on each line. LIST, the recordings, BUNDLE and OUT, a folder of Parquet files, must be
there under these names on every machine. Ray runs the part of a worker that ends again.
"""

import sys
from pathlib import Path

import pyarrow as pa
import ray

from speakerlens.scoring import Scorer


class Score:
    """One worker: keeps the models open between batches."""

    def __init__(self, bundle: str) -> None:
        self._scorer = Scorer(bundle, threads=1)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the rows of a batch of paths."""
        return self._scorer.table(batch["path"].to_pylist())


def main(paths: str, bundle: str, out: str, workers: str = "2") -> None:
    """Score a list; on GPUs, with `num_gpus=1`."""
    names = Path(paths).read_text("utf-8").splitlines()
    recordings = ray.data.from_arrow([pa.table({"path": names[at : at + 512]}) for at in range(0, len(names), 512)])
    pool = ray.data.ActorPoolStrategy(size=int(workers))
    rows = recordings.map_batches(
        Score, fn_constructor_args=(bundle,), batch_format="pyarrow", batch_size=512, num_cpus=0.9, compute=pool
    )
    rows.write_parquet(out, ray_remote_args={"num_cpus": 0.1})  # where the workers have all cores


if __name__ == "__main__":
    main(*sys.argv[1:])
