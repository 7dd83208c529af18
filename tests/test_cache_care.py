"""The store's own doctor, on databases that were really damaged."""

from __future__ import annotations

import asyncio
import json
import pickle
import random
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from minicollab.cache import care
from minicollab.cache.keys import content_hash
from minicollab.cache.rows import Row, _checksum
from minicollab.cache.store import DATABASE, TALLY, Store
from minicollab.cache.walk import entries, entries_by_key
from minicollab.errors import RunError

PAGE = 4096
LONG = content_hash("long")


def rows(number: int, recipe: str = "one", first: int = 0) -> dict[str, Row]:
    return {
        content_hash(i): Row("generate", {"text": f"answer {i}: " + "so " * 80}, 40, 0.5, recipe, "simulate")
        for i in range(first, first + number)
    }


def fill(folder: Path, known: dict[str, Row]) -> Store:
    """Puts them in, in one transaction."""
    store = Store(folder)

    async def put() -> None:
        for key, row in known.items():
            store.put(key, row)

    asyncio.run(put())
    store.flush()
    return store


def sound(folder: Path) -> dict[str, Row]:
    """What a store gives."""
    keys = [entry.key for entry in entries(folder)]
    store = Store(folder)
    found = {key: store.row(key) for key in keys}
    store.close()
    return {key: row for key, row in found.items() if row}


def sql(folder: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        assert database.execute(statement, values).rowcount == 1


def overwrite(folder: Path, at: int, what: bytes) -> None:
    with open(folder / DATABASE, "r+b") as file:
        file.seek(at)
        file.write(what)


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> object:
        return (open, (str(self.path), "w"))


def sealed(key: str, text: str) -> str:
    """A text with the checksum that belongs to it, as somebody might forge it."""
    return f"{_checksum(key, text)} {text}"


def test_the_walk_gives_every_row(tmp_path: Path) -> None:
    known = rows(2500)
    fill(tmp_path, known).close()
    seen = list(entries(tmp_path))
    assert {entry.key: entry.row for entry in seen} == known and len(seen) == len(known)
    assert all(abs(entry.stored - time.time()) < 60 for entry in seen)
    assert [entry.key for entry in entries_by_key(tmp_path)] == sorted(known)
    assert care.verify(tmp_path) == {
        "cache": str(tmp_path), "rows": 2500, "broken": [], "damage": "", "repaired": False, "kept": None,
    }  # fmt: skip


def test_there_is_no_cache(tmp_path: Path) -> None:
    for work in (care.stats, care.verify, care.prunable):
        with pytest.raises(RunError, match="there is no cache in"):
            work(tmp_path / "none")
    assert not (tmp_path / "none").exists()


PLANTED = {
    "is a pickle": ("mode = 4, value = ?", lambda key, bomb: bomb),
    "has a pickled key": ("raw = 0, key = ?", lambda key, bomb: bomb),
    "is not text": ("value = ?", lambda key, bomb: bomb),
    "has a wrong checksum": ("value = ?", lambda key, bomb: Row("generate", "other").seal("another key")),
    "is not a row of this cache": ("value = ?", lambda key, bomb: sealed(key, '{"kind": ')),
}
FOREIGN = ['{"kind": "x"}', '{"kind": "x", "answer": 1, "more": 2}', "[1]", "[" * 100_000, "7"]


@pytest.mark.parametrize("wrong", PLANTED)
def test_a_broken_row_is_named_and_dropped(tmp_path: Path, wrong: str) -> None:
    known = rows(20)
    fill(tmp_path / "c", known).close()
    key = list(known)[7]
    what, make = PLANTED[wrong]
    value = make(key, pickle.dumps(Bomb(tmp_path / "exploded")))
    sql(tmp_path / "c", f"UPDATE Cache SET {what} WHERE key = ?", value, key)
    name = "row 8" if "key" in wrong else key
    for repair in (False, True):
        report = care.verify(tmp_path / "c", repair)
        assert report["broken"] == [{"row": name, "wrong": wrong}]
        assert (report["rows"], report["damage"], report["repaired"]) == (19, "", repair)
    del known[key]
    assert sound(tmp_path / "c") == known and care.verify(tmp_path / "c")["broken"] == []
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("text", FOREIGN, ids=range(len(FOREIGN)))
def test_a_forged_checksum_does_not_make_a_row(tmp_path: Path, text: str) -> None:
    fill(tmp_path, rows(2)).close()
    key = next(iter(rows(1)))
    sql(tmp_path, "UPDATE Cache SET value = ? WHERE key = ?", sealed(key, text), key)
    assert [entry["row"] for entry in care.verify(tmp_path)["broken"]] == [key]


@pytest.mark.parametrize("byte", [b"\xff", b"#", b"\x00"])
def test_a_flipped_byte_in_a_value(tmp_path: Path, byte: bytes) -> None:
    known = rows(50)
    fill(tmp_path, known).close()
    overwrite(tmp_path, (tmp_path / DATABASE).read_bytes().index(b"answer 30:"), byte)
    key = list(known)[30]
    assert [entry["row"] for entry in care.verify(tmp_path, repair=True)["broken"]] == [key]
    del known[key]
    assert sound(tmp_path) == known


@pytest.mark.parametrize("which", [0, 1])
def test_a_flipped_byte_in_a_key(tmp_path: Path, which: int) -> None:
    """It stands in the table and in the index: they disagree, and look-ups would miss."""
    known = rows(50)
    fill(tmp_path, known).close()
    key, raw = list(known)[30], (tmp_path / DATABASE).read_bytes()
    at = raw.index(key.encode())
    at = raw.index(key.encode(), at + 1) if which else at
    overwrite(tmp_path, at + 5, b"!")
    report = care.verify(tmp_path, repair=True)
    assert report["damage"] and report["kept"]
    lost = set(known) - set(sound(tmp_path))
    assert lost == ({key} if report["broken"] else set()) and report["rows"] == 50 - len(lost)


@pytest.mark.slow
def test_whatever_page_is_damaged_it_costs_only_the_rows_on_it(tmp_path: Path) -> None:
    known = rows(200) | {LONG: Row("generate", {"text": "long " * 5000}, 5000)}
    fill(tmp_path / "c", known).close()
    fill(tmp_path / "c", rows(50, first=200)).close()
    known |= rows(50, first=200)
    noise, lost = random.Random(4), []
    whole = (tmp_path / "c" / DATABASE).read_bytes()
    assert len(whole) > 30 * PAGE
    for page in range(len(whole) // PAGE):
        folder = tmp_path / f"page {page}"
        shutil.copytree(tmp_path / "c", folder)
        garbage = noise.randbytes(PAGE) if page % 3 else bytes(PAGE)
        overwrite(folder, page * PAGE, garbage)
        report = care.verify(folder, repair=True)
        assert report["damage"] and report["repaired"], page
        assert report["kept"] == str(folder / f"{DATABASE}.damaged-1")
        kept = Path(report["kept"]).read_bytes()
        assert kept[page * PAGE :][:PAGE] == garbage and len(kept) == len(whole)
        found = sound(folder)
        assert found.items() <= known.items() and report["rows"] == len(found)
        after = care.verify(folder)
        assert (after["rows"], after["broken"], after["damage"]) == (len(found), [], "")
        assert not list(folder.glob("*salvaged*"))
        lost += [key for key in known if key not in found]
    # Each row lies on one page, the long one on many.
    assert sorted(set(lost)) == sorted(known) and len(lost) - lost.count(LONG) == len(known) - 1
    assert 3 < lost.count(LONG) < 10


def test_rows_in_the_log_are_saved_where_the_header_is_gone(tmp_path: Path) -> None:
    known = rows(200)
    fill(tmp_path / "c", known).close()
    more = {LONG: Row("generate", "long " * 5000)} | rows(200, first=200)
    store = fill(tmp_path / "c", more)  # open: its rows are in the log yet
    shutil.copytree(tmp_path / "c", tmp_path / "d")
    store.close()
    log = (tmp_path / "d/cache.db-wal").read_bytes()
    overwrite(tmp_path / "d", 0, bytes(PAGE))
    for number, cut in ((401, len(log)), (200, len(log) - 1), (200, len(log) // 2), (200, 10), (200, 0)):
        shutil.rmtree(tmp_path / "e", ignore_errors=True)
        shutil.copytree(tmp_path / "d", tmp_path / "e")
        (tmp_path / "e/cache.db-wal").write_bytes(log[:cut])
        (tmp_path / "e/cache.db-shm").unlink()
        care.verify(tmp_path / "e", repair=True)
        found = sound(tmp_path / "e")
        assert len(found) == number and found.items() <= (known | more).items()


def test_repaired_rows_are_in_the_database_and_not_in_its_log(tmp_path: Path) -> None:
    """Where the disk is nearly full SQLite leaves them in the log without a word when it closes; so
    it does where somebody else looks at the new database."""
    known, lookers = rows(400), []
    fill(tmp_path, known).close()
    overwrite(tmp_path, 30 * PAGE, bytes(PAGE))

    def look(*_: Any) -> None:
        fresh = tmp_path / "salvaged" / DATABASE
        if fresh.exists() and not lookers:
            lookers.append(sqlite3.connect(fresh))
            lookers[0].execute("SELECT count(*) FROM Cache").fetchone()

    report = care.verify(tmp_path, repair=True, progress=look)
    assert lookers and report["rows"] > 380
    assert len(sound(tmp_path)) == report["rows"] and care.verify(tmp_path)["damage"] == ""
    lookers[0].close()


def test_rows_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    fill(tmp_path, rows(400)).close()
    at = (tmp_path / DATABASE).read_bytes().index(b"answer 200:") // PAGE * PAGE
    overwrite(tmp_path, at, bytes(PAGE))
    seen = list(entries(tmp_path))
    bad = [entry.rowid for entry in seen if entry.row is None]
    assert 201 in bad and bad == list(range(bad[0], bad[-1] + 1)) and 5 < len(bad) < 20
    assert {entry.wrong for entry in seen if entry.row is None} == {"cannot be read"}
    assert [entry.rowid for entry in seen] == list(range(1, 401))


@pytest.mark.parametrize("raw", [b"", b"x", b"not a database" * 1000, b"SQLite format 3\0"])
def test_not_a_database(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / DATABASE).write_bytes(raw)
    for work in (care.stats, care.prunable):
        with pytest.raises(RunError, match=r"is damaged .* verify --repair; sound rows stay.$"):
            work(tmp_path)
    assert care.verify(tmp_path)["damage"]
    report = care.verify(tmp_path, repair=True)
    assert (report["rows"], sound(tmp_path)) == (0, {})
    assert Path(report["kept"]).read_bytes() == raw
    (tmp_path / DATABASE).write_bytes(b"again")
    assert care.verify(tmp_path, repair=True)["kept"].endswith(".damaged-2")


def test_a_header_that_lets_nobody_write(tmp_path: Path) -> None:
    """SQLite finds nothing wrong with it, but takes the database for one of a later version."""
    fill(tmp_path, rows(60)).close()
    overwrite(tmp_path, 18, b"\x03")
    assert care.verify(tmp_path)["damage"]
    assert care.verify(tmp_path, repair=True)["rows"] == 60 and sound(tmp_path) == rows(60)


@pytest.mark.slow
def test_a_damaged_database_in_use_is_left_alone(tmp_path: Path) -> None:
    known = rows(400)
    fill(tmp_path, known).close()
    store = Store(tmp_path)
    assert store.row(next(iter(known)))
    overwrite(tmp_path, 30 * PAGE, bytes(PAGE))
    before = (tmp_path / DATABASE).read_bytes()
    with pytest.raises(RunError, match="in use"):
        care.verify(tmp_path, repair=True)
    assert (tmp_path / DATABASE).read_bytes() == before and not list(tmp_path.glob("*damaged*"))
    store.close()
    assert care.verify(tmp_path, repair=True)["rows"] > 380


def test_stats(tmp_path: Path) -> None:
    store = fill(tmp_path, rows(10) | {content_hash("s"): Row("score", [-1.5]), "f": Row("file", "x")})
    for key in (*rows(6), "unknown", "unheard-of"):
        store.get(key, "generate")
    store.get(content_hash("s"), "score")
    store.close()
    again = Store(tmp_path)
    again.get("no", "score")
    again.close()
    result = care.stats(tmp_path)
    assert json.loads(json.dumps(result)) == result
    assert (result["entries"], result["broken"]) == (12, 0)
    generate, score = result["kinds"]["generate"], result["kinds"]["score"]
    assert generate["bytes"] == sum(len(row.seal(key)) for key, row in rows(10).items())
    assert (generate["entries"], generate["hits"], generate["misses"], generate["hit_rate"]) == (
        10,
        6,
        2,
        0.75,
    )
    assert (score["entries"], score["hit_rate"]) == (1, 0.5)
    assert set(result["kinds"]) == {"file", "generate", "score"} and "hit_rate" not in result["kinds"]["file"]
    assert result["tokens_saved"] == 240 and result["hours_saved"] == pytest.approx(3 / 3600)
    assert result["bytes_on_disk"] >= (tmp_path / DATABASE).stat().st_size


def tallied(folder: Path, known: dict[str, Row]) -> None:
    store = fill(folder, known)
    store.get("none", "generate")
    store.close()


def test_prune_by_age(tmp_path: Path) -> None:
    tallied(tmp_path, rows(30))
    old = list(rows(10))
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
        database.executemany(
            "UPDATE Cache SET store_time = store_time - ? WHERE key = ?",
            [((3 + i) * 86400, key) for i, key in enumerate(old)],
        )
        database.execute("UPDATE Cache SET store_time = store_time - 9e9 WHERE key = ?", (TALLY,))
    doomed = care.prunable(tmp_path, older_than_days=7.5)
    assert {entry.key for entry in doomed} == set(old[5:]) and len(sound(tmp_path)) == 31
    assert care.prune(tmp_path, doomed) == 5 and care.prune(tmp_path, doomed) == 0
    assert sound(tmp_path).keys() - {TALLY} == rows(30).keys() - set(old[5:])
    assert care.stats(tmp_path)["kinds"]["generate"]["misses"] == 1


def test_prune_with_the_clock_set_back(tmp_path: Path) -> None:
    fill(tmp_path, rows(3)).close()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
        database.execute("UPDATE Cache SET store_time = store_time + 1e9")
    assert care.prunable(tmp_path, older_than_days=0) == []


def test_prune_by_recipe(tmp_path: Path) -> None:
    tallied(tmp_path, rows(20) | rows(15, "two", first=20))
    assert care.prune(tmp_path, care.prunable(tmp_path, recipe="two")) == 15
    assert sound(tmp_path).keys() - {TALLY} == rows(20).keys()


def test_prune_to_a_size_really_frees_it(tmp_path: Path) -> None:
    tallied(tmp_path, rows(5000))
    before = care.size_on_disk(tmp_path)
    assert care.prunable(tmp_path, to_bytes=before) == []
    for share in (0.5, 0.1):
        care.prune(tmp_path, care.prunable(tmp_path, to_bytes=int(before * share)))
        assert 0.7 * share < care.size_on_disk(tmp_path) / before <= share
        left = sorted(entry.rowid for entry in entries(tmp_path))
        assert left[:-1] == list(range(left[0], 5001)) and left[-1] == 5001  # the oldest went
    care.prune(tmp_path, care.prunable(tmp_path, to_bytes=0))
    assert [entry.key for entry in entries(tmp_path)] == [TALLY]


def test_a_row_stored_again_meanwhile_is_not_dropped(tmp_path: Path) -> None:
    fill(tmp_path, rows(3)).close()
    doomed = care.prunable(tmp_path, to_bytes=0)
    key, row = next(iter(rows(1).items()))
    store = Store(tmp_path)
    store.put(key, row)
    store.close()
    assert care.prune(tmp_path, doomed) == 2 and sound(tmp_path) == {key: row}
