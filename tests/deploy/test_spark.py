"""The job for Spark: a row for each recording, the scores of a scorer here. Needs Java, pyspark and pandas."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import soundfile

from speakerlens.scoring import Scorer
from tests.conftest import ROOT
from tests.serving import toy
from tests.serving.harness import talk

pytestmark = pytest.mark.slow
SECONDS = 900


def test_spark_writes_the_rows_of_a_scorer(tmp_path: Path) -> None:
    pytest.importorskip("pyspark", reason="needs pyspark, pandas and Java")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    bundle = toy.write_bundle(tmp_path / "bundles", "clean", 1)
    good = [tmp_path / f"{number}.wav" for number in range(8)]
    for number, file in enumerate(good):
        soundfile.write(file, talk(0.6 + 0.1 * number, seed=number), 16_000)
    paths = [*good, tmp_path / "missing.wav"]
    (tmp_path / "list").write_text("".join(f"{path}\n" for path in paths))
    words = [sys.executable, str(ROOT / "deploy" / "spark" / "score.py"), str(tmp_path / "list"), str(bundle)]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    done = subprocess.run(
        [*words, str(tmp_path / "out"), "2"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["path"]: row for row in pyarrow.parquet.read_table(tmp_path / "out").to_pylist()}
    assert sorted(rows) == sorted(map(str, paths))
    assert rows[str(paths[-1])]["code"] == "UNREADABLE"
    with Scorer(bundle, threads=1) as scorer:
        for wanted in scorer.score(good):
            found = rows[wanted.path]
            assert (found["variant"], found["speaker"], found["known"]) == ("clean", wanted.speaker, wanted.known)
            assert found["logit"] == pytest.approx(wanted.logit, abs=1e-5)
            assert wanted.embedding is not None
            assert found["embedding"] == pytest.approx(wanted.embedding.tolist(), abs=1e-5)
