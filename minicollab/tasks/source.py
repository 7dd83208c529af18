"""Rows of a local file: JSON Lines or CSV, plain or gzipped, or Parquet; one at a time."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase
from itertools import chain
from pathlib import Path
from typing import Any

from minicollab.errors import TaskError

LONGEST = 1 << 20  # bytes of a line
_KINDS = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Entry:
    """A row as it stands there, and the line it begins on (in Parquet its number); both from 1.
    `fault` says why it cannot be read."""

    number: int
    row: dict[str, Any] = field(default_factory=dict)
    fault: str = ""


def kind_of(path: Path) -> str:
    """`.jsonl`, `.csv` or `.parquet`. Raises TaskError for another ending."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix not in _KINDS or (plain.suffix == ".parquet" and plain != path):
        raise TaskError(
            f"{path} is no task file",
            "Its name must end in .jsonl, .csv (both may be gzipped: .gz) or .parquet.",
        )
    return plain.suffix


def entries(path: Path) -> Iterator[Entry]:
    """Every row that is not blank, in file order. Raises TaskError if the file cannot be read."""
    if not path.exists():
        raise TaskError(f"there is no task file {path}", "Set tasks.path in the recipe to one.")
    kind = kind_of(path)
    try:
        if kind == ".parquet":
            yield from _parquet(path)
            return
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from (_json_lines if kind == ".jsonl" else _csv)(_lines(file))
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{path} cannot be read: {error}", "Check the file, or fetch it again.") from None


def _lines(file: BufferedIOBase) -> Iterator[tuple[str, str]]:
    """Every line with its line break, and what is wrong with it ("": nothing)."""
    encoding = "utf-8-sig"
    while raw := file.readline(LONGEST + 1):
        if len(raw) > LONGEST:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(LONGEST)
            yield "\n", "longer than 1 MiB"
        else:
            try:
                yield raw.decode(encoding), ""
            except UnicodeDecodeError:
                yield raw.decode(encoding, "replace"), "not UTF-8"
        encoding = "utf-8"


def _json_lines(lines: Iterator[tuple[str, str]]) -> Iterator[Entry]:
    # Not json: it lets lone surrogates through, which no file can be written with.
    from pydantic_core import from_json

    for number, (text, fault) in enumerate(lines, start=1):
        if fault:
            yield Entry(number, fault=fault)
        elif text.strip():
            try:
                row = from_json(text.rstrip())
            except ValueError as error:
                yield Entry(number, fault=f"not JSON ({str(error).replace('line 1 ', '')})")
            else:
                is_object = isinstance(row, dict)
                yield Entry(number, row) if is_object else Entry(number, fault="not a JSON object")


def _csv(lines: Iterator[tuple[str, str]]) -> Iterator[Entry]:
    """The first line names the columns; they are split where it has most of `,`, `;` or tabs."""
    header, fault = next(lines, ("", ""))
    if fault:
        yield Entry(1, fault=fault)
        return
    faults: dict[int, str] = {}

    def texts() -> Iterator[str]:
        for number, (text, fault) in enumerate(lines, start=2):
            if fault:
                faults[number] = fault
            yield text

    csv.field_size_limit(LONGEST)
    reader = csv.reader(chain([header], texts()), delimiter=max(",;\t", key=header.count), strict=True)
    names: list[str] = []
    while True:
        begin = reader.line_num + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            yield Entry(begin, fault=f"not CSV ({error})")
            if "limit" in str(error):  # within a cell: who knows where it ends
                return
            continue
        broken = [number for number in range(begin, reader.line_num + 1) if number in faults]
        if broken:
            yield Entry(broken[0], fault=faults[broken[0]])
        elif not names:
            names = cells
            if twice := {name for name in names if name and names.count(name) > 1}:
                yield Entry(begin, fault=f"two columns are called {min(twice)}")
                return
        elif any(cells):
            if len(cells) == len(names):
                yield Entry(begin, {name: cell for name, cell in zip(names, cells, strict=True) if name})
            else:
                yield Entry(begin, fault=f"{len(cells)} fields where the first line has {len(names)}")


def _parquet(path: Path) -> Iterator[Entry]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches())
            for number, row in enumerate(rows, start=1):
                yield Entry(number, row)
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise OSError(str(error).partition("\n")[0]) from None
