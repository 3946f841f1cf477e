"""Score an archive on a Spark cluster.

    pip install "speakerlens[cpu,archive]" pyspark pandas
    spark-submit deploy/spark/score.py LIST BUNDLE OUT

LIST has the path of a recording on each line. LIST, the recordings, BUNDLE and OUT, a folder of Parquet files, must be
there under these names on every machine. Spark runs the part of a worker that ends again.
"""

import sys
from collections.abc import Iterable, Iterator

import pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from speakerlens.scoring import Scorer
from speakerlens.scoring.writing import arrow_schema


def main(paths: str, bundle: str, out: str, parts: str = "2") -> None:
    """Score a list in as many parts."""

    def score(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        with Scorer(bundle, threads=1) as scorer:
            for frame in frames:
                yield scorer.table(frame["value"]).to_pandas()

    recordings = SparkSession.builder.getOrCreate().read.text(paths).repartition(int(parts))
    recordings.mapInPandas(score, from_arrow_schema(arrow_schema())).write.parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
