from __future__ import annotations

import asyncio
import os
import pickle
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minicollab.cache.engine import CachedEngine
from minicollab.cache.keys import content_hash, file_fingerprint
from minicollab.cache.rows import Row
from minicollab.cache.store import TALLY, Store
from minicollab.engine.base import Completion, Sampling, Segment
from minicollab.engine.scripted import Request, ScriptedEngine
from minicollab.errors import RunError

PROMPT = (Segment("hi"),)
HOW = Sampling(max_tokens=8, seed=1, temperature=0.5, stop=("\n",))


def numbered() -> ScriptedEngine:
    answers = iter(range(1000))
    return ScriptedEngine(lambda _: f"answer {next(answers)}", lambda r: [-float(len(r.continuations))])


def test_the_same_request_is_answered_from_the_store(tmp_path: Path) -> None:
    engine, store = numbered(), Store(tmp_path / "c")
    cached = CachedEngine(engine, store)

    async def work() -> None:
        first = await cached.generate(PROMPT, HOW)
        assert first == await cached.generate(PROMPT, HOW) == Completion("answer 0", 2, "end")
        assert await cached.score(PROMPT, ("a", "b")) == await cached.score(PROMPT, ["a", "b"]) == [-2.0]

    asyncio.run(work())
    assert (len(engine.requests), store.hits, store.misses) == (2, 2, 2)
    assert cached.usage is engine.usage and cached.count("a b c") == 3


def test_whatever_changes_the_answer_changes_the_key(tmp_path: Path) -> None:
    store = Store(tmp_path / "c")
    changes: dict[str, Any] = {"seed": 2, "max_tokens": 9, "temperature": 0.6, "top_p": 0.9, "min_p": 0.1}
    changes |= {"stop": (), "grammar": "r"}
    other_ways = [replace(HOW, **{field: value}) for field, value in changes.items()]
    other_prompts = [(Segment("ho"),), (Segment("hi", control=True),), (Segment("h"), Segment("i"))]
    asked = [(PROMPT, HOW), *((PROMPT, how) for how in other_ways), *((p, HOW) for p in other_prompts)]

    async def texts(engine: CachedEngine) -> list[str]:
        return [(await engine.generate(prompt, how)).text for prompt, how in asked]

    engine = CachedEngine(numbered(), store)
    first = asyncio.run(texts(engine))
    assert len(set(first)) == len(asked)
    other = ScriptedEngine(["other"] * len(asked), fingerprint="other weights")
    assert set(asyncio.run(texts(CachedEngine(other, store)))) == {"other"}
    assert asyncio.run(texts(engine)) == first


def test_generate_and_score_do_not_mix(tmp_path: Path) -> None:
    cached = CachedEngine(ScriptedEngine(["text"], [[-1.0], [-2.0]]), Store(tmp_path / "c"))

    async def work() -> list[object]:
        return [await cached.score(PROMPT, ["a"]), await cached.score(PROMPT, ["b"])]

    assert asyncio.run(work()) == [[-1.0], [-2.0]]


def test_canonical_json() -> None:
    assert content_hash({"a": 1, "b": [1, {"x": 2, "y": 3}]}) == content_hash(
        {"b": [1, {"y": 3, "x": 2}], "a": 1}
    )
    assert content_hash([1, 2]) != content_hash([2, 1])
    assert content_hash("\ud800") != content_hash("")  # half a surrogate pair, as models can write it


class SlowEngine(ScriptedEngine):
    async def generate(self, prompt: tuple[Segment, ...], sampling: Sampling) -> Completion:
        await asyncio.sleep(0.01)
        return await super().generate(prompt, sampling)


def test_equal_requests_under_way_are_asked_once(tmp_path: Path) -> None:
    engine = SlowEngine(["one"])
    cached = CachedEngine(engine, Store(tmp_path / "c"))

    async def work() -> list[Completion]:
        return await asyncio.gather(*(cached.generate(PROMPT, HOW) for _ in range(5)))

    assert {c.text for c in asyncio.run(work())} == {"one"}
    assert len(engine.requests) == 1


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    answers = iter([RuntimeError("no"), "yes"])

    def answer(_: Request) -> str:
        if isinstance(said := next(answers), Exception):
            raise said
        return said

    cached = CachedEngine(ScriptedEngine(answer), Store(tmp_path / "c"))
    with pytest.raises(RuntimeError):
        asyncio.run(cached.generate(PROMPT, HOW))
    assert asyncio.run(cached.generate(PROMPT, HOW)).text == "yes"


def put(store: Store, key: str, answer: Any) -> None:
    store.put(key, Row("generate", answer, tokens=3, seconds=0.5, recipe="r", stage="simulate"))


def change(folder: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(folder / "cache.db") as rows:
        rows.execute(statement, values)
    rows.close()


def test_values_survive_and_the_folder_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "deep/c"
    values = {"small": {"text": "naïve ☃ \u2028 \ud800"}, "big": "x" * 200_000, "list": [1, -0.5, None]}
    store = Store(folder)
    for key, value in values.items():
        put(store, key, value)
    store.close()
    assert folder.stat().st_mode & 0o777 == 0o700
    again = Store(folder)
    assert {key: again.get(key, "generate") for key in values} == values
    assert again.get("absent", "generate") is None and (again.hits, again.misses) == (3, 1)
    assert {path.name.partition("-")[0] for path in folder.iterdir()} == {"cache.db", "opening.lock"}


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)
    Store(tmp_path).close()
    assert tmp_path.stat().st_mode & 0o7777 == 0o2775


def test_the_order_of_a_schema_is_part_of_the_request(tmp_path: Path) -> None:
    engine = ScriptedEngine(["reason first", "score first"])
    cached = CachedEngine(engine, Store(tmp_path / "c"))
    kinds = {"reason": {"type": "string"}, "score": {"type": "integer"}}
    for order, text in ((kinds, "reason first"), (dict(reversed(kinds.items())), "score first")):
        how = Sampling(max_tokens=9, seed=1, json_schema={"type": "object", "properties": order})
        assert asyncio.run(cached.generate(engine.plain("judge"), how)).text == text


def test_what_an_engine_finishes_in_one_step_is_written_at_once(tmp_path: Path) -> None:
    store, other = Store(tmp_path / "c"), Store(tmp_path / "c")

    async def work() -> None:
        for i in range(5):
            put(store, f"k{i}", i)
        assert other.row("k0") is None and store.row("k0") is not None  # it waits, and can be had
        await asyncio.sleep(0)
        assert [row.answer for i in range(5) if (row := other.row(f"k{i}"))] == list(range(5))

    asyncio.run(work())


def test_outside_of_a_loop_it_is_written_now(tmp_path: Path) -> None:
    put(Store(tmp_path / "c"), "k", 1)
    assert Store(tmp_path / "c").get("k", "generate") == 1


def test_the_tallies_of_all_runs_add_up(tmp_path: Path) -> None:
    for run in range(2):
        store = Store(tmp_path / "c")
        cached = CachedEngine(ScriptedEngine(["one two"]), store)
        asyncio.run(cached.generate(PROMPT, HOW))
        store.close()
        assert store.lifetime()["generate"]["hits"] == run
    (tally,) = Store(tmp_path / "c").lifetime().values()
    assert (tally["hits"], tally["misses"], tally["tokens"]) == (1, 1, 2)
    assert Store(tmp_path / "c").row(TALLY) is not None


def test_requests_at_work_together_share_the_time(tmp_path: Path) -> None:
    store = Store(tmp_path / "c")
    engine = SlowEngine(lambda r: r.prompt)

    async def work() -> float:
        begun = asyncio.get_running_loop().time()
        prompts = [(Segment(str(i)),) for i in range(8)]
        await asyncio.gather(*(CachedEngine(engine, store).generate(p, HOW) for p in prompts))
        return asyncio.get_running_loop().time() - begun

    wall = asyncio.run(work())
    store.close()
    found = sqlite3.connect(tmp_path / "c/cache.db").execute("SELECT key, value FROM Cache").fetchall()
    rows = [Row.unseal(key, value) for key, value in found if key != TALLY]
    assert len(rows) == 8 and 0.005 < sum(row.seconds for row in rows) <= wall


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> object:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_planted_pickle_is_refused_with_its_key(tmp_path: Path, on_disk: bool) -> None:
    store = Store(tmp_path / "c")
    put(store, "abc", "good")
    store.close()
    payload = pickle.dumps(Bomb(tmp_path / "exploded"))
    (tmp_path / "c/planted.val").write_bytes(payload)
    name, value = ("planted.val", None) if on_disk else (None, payload)
    change(tmp_path / "c", "UPDATE Cache SET mode = 4, filename = ?, value = ?", name, value)
    with pytest.raises(RunError, match=r"row abc is a pickle.*verify --repair"):
        Store(tmp_path / "c").get("abc", "generate")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "change_to",
    [
        "replace(value, 'good', 'evil')",
        "substr(value, 2)",
        "''",
        "17",
        "x'00ff'",
        "value || ' '",
        "CAST(x'ff' AS TEXT)",
    ],
)
def test_a_row_that_was_changed_is_refused_with_its_key(tmp_path: Path, change_to: str) -> None:
    store = Store(tmp_path / "c")
    put(store, "abc", "good")
    store.close()
    change(tmp_path / "c", f"UPDATE Cache SET value = {change_to}")
    with pytest.raises(RunError, match=r"row abc (has a wrong checksum|is not text)"):
        Store(tmp_path / "c").get("abc", "generate")


def test_a_row_under_another_key_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "c")
    put(store, "abc", "good")
    store.close()
    change(tmp_path / "c", "UPDATE Cache SET key = 'abd'")
    with pytest.raises(RunError, match="row abd has a wrong checksum"):
        Store(tmp_path / "c").get("abd", "generate")


def test_only_text_is_stored(tmp_path: Path) -> None:
    store = Store(tmp_path / "c")
    put(store, "k", {"a": 1})
    with pytest.raises(TypeError):
        store._rows.set("k", {"a": 1})
    with sqlite3.connect(tmp_path / "c/cache.db") as rows:
        assert {row[0] for row in rows.execute("SELECT typeof(value) FROM Cache")} == {"text"}


def test_a_folder_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="MINICOLLAB_CACHE"):
        Store(tmp_path / "file/c")


def test_a_damaged_database_says_so(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/cache.db").write_bytes(b"not a database" * 100)
    with pytest.raises(RunError, match=r"damaged.*verify --repair"):
        Store(tmp_path / "c")


def test_a_write_that_fails_is_told_by_the_next_call_and_nothing_is_lost(tmp_path: Path) -> None:
    store = Store(tmp_path / "c")
    put(store, "before", 0)
    pages = store._rows._sql("PRAGMA page_count").fetchone()[0]
    store._rows._sql(f"PRAGMA max_page_count = {pages + 2}")  # a disk that is full

    async def work() -> None:
        put(store, "k", "x" * 50_000)
        await asyncio.sleep(0)
        with pytest.raises(RunError, match="full"):
            store.get("before", "generate")

    asyncio.run(work())
    store.close()  # there is room again: the limit was of the connection that failed
    again = Store(tmp_path / "c")
    assert again.get("before", "generate") == 0 and len(again.get("k", "generate") or "") == 50_000


def test_a_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path, store = tmp_path / "model", Store(tmp_path / "c")
    path.write_bytes(b"one")
    first = file_fingerprint(path, store)
    assert first == file_fingerprint(path, store) == file_fingerprint(path)
    path.write_bytes(b"two!")
    assert file_fingerprint(path, store) == file_fingerprint(path) != first
    (tmp_path / "copy").write_bytes(b"one")
    assert file_fingerprint(tmp_path / "copy", store) == first


def test_a_fingerprint_is_not_fooled_by_a_file_of_the_same_size_and_time(tmp_path: Path) -> None:
    path, store = tmp_path / "model", Store(tmp_path / "c")
    path.write_bytes(b"a" * 1_000_000)
    before, status = file_fingerprint(path, store), path.stat()
    with open(path, "r+b") as file:
        file.write(b"b")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert file_fingerprint(path, store) == file_fingerprint(path) != before


def test_a_fingerprint_whose_row_is_bad_is_computed_again(tmp_path: Path) -> None:
    path, store = tmp_path / "model", Store(tmp_path / "c")
    path.write_bytes(b"one")
    first = file_fingerprint(path, store)
    store.close()
    change(tmp_path / "c", "UPDATE Cache SET value = 'x'")
    assert file_fingerprint(path, Store(tmp_path / "c")) == first
