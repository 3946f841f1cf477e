"""The table on disk: Parquet, JSON lines or CSV, written in parts and joined at the end in memory that stays small."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from speakerlens.scoring.rows import COLUMNS, EVIDENCE, Row, columns

# Rows of one row group of a Parquet file: 16 MB of embeddings of 256 values.
GROUP_ROWS = 16_384


class Format(Protocol):
    """How a table is written."""

    def write(self, file: Path, rows: Sequence[Row]) -> None:
        """Write some rows as a whole table."""

    def join(self, parts: Iterable[Path], file: Path) -> None:
        """Write the rows of tables, in order, as one table."""


class JsonLines:
    """One JSON object per row."""

    def write(self, file: Path, rows: Sequence[Row]) -> None:
        """Write some rows as a whole table."""
        with file.open("w", encoding="utf-8") as content:
            content.writelines(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in rows)

    def join(self, parts: Iterable[Path], file: Path) -> None:
        """Write the rows of tables, in order, as one table."""
        with file.open("wb") as content:
            for part in parts:
                with part.open("rb") as rows:
                    shutil.copyfileobj(rows, content)


class Csv:
    """Comma-separated values with a header; evidence in columns of its own, the embedding as a JSON array."""

    def write(self, file: Path, rows: Sequence[Row]) -> None:
        """Write some rows as a whole table."""
        names = [name for column in COLUMNS for name in (_evidence_names() if column == "evidence" else [column])]
        with file.open("w", encoding="utf-8", newline="") as content:
            writer = csv.DictWriter(content, names)
            writer.writeheader()
            writer.writerows(_flat(row) for row in rows)

    def join(self, parts: Iterable[Path], file: Path) -> None:
        """Write the rows of tables, in order, as one table."""
        with file.open("wb") as content:
            for number, part in enumerate(parts):
                with part.open("rb") as rows:
                    header = rows.readline()
                    if number == 0:
                        content.write(header)
                    shutil.copyfileobj(rows, content)


class Parquet:
    """Apache Parquet, by pyarrow.

    Raises:
        ModuleNotFoundError: pyarrow is missing.
    """

    def __init__(self) -> None:
        import pyarrow.parquet  # noqa: PLC0415  (an extra)

        self._arrow, self._parquet = pyarrow, pyarrow.parquet

    def write(self, file: Path, rows: Sequence[Row]) -> None:
        """Write some rows as a whole table."""
        self._parquet.write_table(arrow_table(rows), file)

    def join(self, parts: Iterable[Path], file: Path) -> None:
        """Write the rows of tables, in order, as one table."""
        with self._parquet.ParquetWriter(file, arrow_schema()) as writer:
            held: list[Any] = []
            for part in parts:
                held.append(self._parquet.read_table(part, schema=arrow_schema()))
                if sum(table.num_rows for table in held) >= GROUP_ROWS:
                    writer.write_table(self._arrow.concat_tables(held))
                    held.clear()
            if held:
                writer.write_table(self._arrow.concat_tables(held))


FORMATS: Final[dict[str, Callable[[], Format]]] = {".parquet": Parquet, ".jsonl": JsonLines, ".csv": Csv}
"""The formats, by the suffix of the file."""


def format_of(file: Path) -> Format:
    """Return the format that a file's suffix names.

    Raises:
        ValueError: it names none, or the format's library is missing.
    """
    if file.suffix not in FORMATS:
        raise ValueError(f"{file}: give a name that ends with {', '.join(FORMATS)}")
    try:
        return FORMATS[file.suffix]()
    except ModuleNotFoundError:
        raise ValueError(f"{file}: Parquet needs pip install 'speakerlens[archive]'; or write .jsonl or .csv") from None


def arrow_schema() -> Any:
    """Return the schema of the table, of pyarrow."""
    import pyarrow as pa  # noqa: PLC0415  (an extra)

    kinds = {
        "version": pa.int32(),
        "score": pa.float64(),
        "logit": pa.float64(),
        "known": pa.bool_(),
        "seconds": pa.float64(),
        "speech": pa.bool_(),
        "evidence": pa.struct([(name, pa.float64()) for name in EVIDENCE]),
        "embedding": pa.list_(pa.float32()),
    }
    return pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])


def arrow_table(rows: Iterable[Row]) -> Any:
    """Return rows as a table of pyarrow."""
    import pyarrow as pa  # noqa: PLC0415  (an extra)

    return pa.table(columns(rows), schema=arrow_schema())


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with another name, then rename: a reader, or a second writer, finds a whole file or none."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        write(partial)
        with partial.open("rb+") as content:
            os.fsync(content.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _plain(row: Row) -> dict[str, Any]:
    document = row.document()
    if isinstance(document["embedding"], np.ndarray):
        document["embedding"] = [_short(value) for value in document["embedding"]]
    return document


def _short(value: np.float32) -> float:
    """Return the shortest number that is the same float32."""
    return float(str(value))


def _evidence_names() -> list[str]:
    return [f"evidence_{name}" for name in EVIDENCE]


def _flat(row: Row) -> dict[str, Any]:
    document = _plain(row)
    evidence = document.pop("evidence") or {}
    if document["embedding"] is not None:
        document["embedding"] = json.dumps(document["embedding"])
    return {**document, **{f"evidence_{name}": value for name, value in evidence.items()}}
