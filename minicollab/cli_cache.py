"""`minicollab cache`: care of the store, and packs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import click

from minicollab.cache import care
from minicollab.cache.pack import export_pack, import_pack
from minicollab.cache.store import MEND, Store
from minicollab.cli_common import Number, display, json_option
from minicollab.errors import RunError
from minicollab.progress import Progress
from minicollab.run import store_folder

_PATIENCE = 2.0  # seconds that nobody minds waiting without a bar


class _Size(click.ParamType):
    """2GB, 500 MB or plain bytes → bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?) ?([kmgt]?b?)", value.strip().lower())
        if not found:
            self.fail(f"{value!r} is not a size like 2GB or 500MB.", param, ctx)
        return int(float(found[1]) * 1000 ** " kmgt".index(found[2][:1].replace("b", "") or " "))


_folder = click.option(
    "--cache",
    "folder",
    type=click.Path(path_type=Path),
    default=store_folder,
    metavar="DIR",
    help="The cache's folder, if not the usual one.",
)
_pack = click.argument("file", type=click.Path(path_type=Path))


@click.group("cache")
def cache() -> None:
    """Look after the cache, where every answer is kept so that nothing is computed twice."""


@cache.command("path")
@_folder
def path_command(folder: Path) -> None:
    """Print where the cache is."""
    click.echo(folder)


@cache.command("stats")
@_folder
@json_option
def stats_command(folder: Path, as_json: bool) -> None:
    """What the cache holds, and what it has saved."""
    with _progress() as progress:
        result = care.stats(folder, progress)
    click.echo(json.dumps(result, indent=1) if as_json else _counted(result))


@cache.command("verify")
@click.option("--repair", is_flag=True, help="Drop broken rows; move sound ones out of a damaged database.")
@_folder
@json_option
def verify_command(repair: bool, folder: Path, as_json: bool) -> None:
    """Check every row's checksum, and name those that are broken."""
    with _progress() as progress:
        result = care.verify(folder, repair, progress)
    click.echo(json.dumps(result, indent=1) if as_json else _verified(result))
    if (result["broken"] or result["damage"]) and not repair:
        what = "is damaged" if result["damage"] else f"has {_rows(len(result['broken']))} that cannot be used"
        raise RunError(f"the cache in {folder} {what}", MEND)


@cache.command("export")
@_pack
@click.option("--recipe", metavar="NAME", help="Only what this recipe asked first.")
@click.option("--stage", metavar="NAME", help="Only what this stage asked first.")
@_folder
def export_command(file: Path, recipe: str | None, stage: str | None, folder: Path) -> None:
    """Write the answers to FILE, a pack that others can import."""
    with _progress() as progress:
        number = export_pack(folder, file, recipe, stage, progress)
    click.echo(f"{_rows(number)}, {_bytes(file.stat().st_size)}\n  {file}")


@cache.command("import")
@_pack
@_folder
@json_option
def import_command(file: Path, folder: Path, as_json: bool) -> None:
    """Add the answers in FILE, a pack; what is in the cache already stays."""
    with closing(Store(folder)) as store, _progress() as progress:
        new = import_pack(store, file, progress)
    click.echo(json.dumps({"new": new}) if as_json else f"{_rows(new)} of {file} were new to the cache")


@cache.command("prune")
@click.option("--older-than", "days", type=Number(0), metavar="DAYS", help="Rows stored before.")
@click.option("--recipe", metavar="NAME", help="Rows that this recipe asked first.")
@click.option("--to", "size", type=_Size(), metavar="SIZE", help="The oldest, until 2GB, 500MB … are left.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_folder
@json_option
def prune_command(
    days: float | None, recipe: str | None, size: int | None, yes: bool, folder: Path, as_json: bool
) -> None:
    """Drop rows: the old ones, a recipe's, or as many as it takes. Asks first."""
    if [days, recipe, size].count(None) != 2:
        raise click.UsageError("Name one of --older-than DAYS, --recipe NAME and --to SIZE.")
    with _progress() as progress:
        doomed = care.prunable(folder, days, recipe, size, progress)
    went = {"rows": len(doomed), "bytes": sum(entry.size for entry in doomed)}
    said = f"{_rows(went['rows'])}, {_bytes(went['bytes'])}"
    if doomed and not yes:
        click.confirm(f"Drop {said} from {folder}?", abort=True, err=True)
    if doomed:
        went["rows"] = care.prune(folder, doomed)
    left = care.size_on_disk(folder)
    if as_json:
        click.echo(json.dumps(went | {"bytes_on_disk": left}))
    else:
        click.echo(f"dropped {said}; {_bytes(left)} are left on disk")


@contextmanager
def _progress() -> Iterator[Progress]:
    """Shows nothing of work that is done in a moment."""
    begin, bars = time.monotonic(), None

    with ExitStack() as stack:

        def progress(what: str, done: float, total: float) -> None:
            nonlocal bars
            if not bars and time.monotonic() - begin > _PATIENCE:
                bars = stack.enter_context(display("cache"))
            if bars:
                bars(what, done, total)

        yield progress


def _counted(result: dict[str, Any]) -> str:
    lines = [f"{result['entries']:,} entries, {_bytes(result['bytes_on_disk'])} on disk in {result['cache']}"]
    if result["broken"]:
        lines.append(f"{_rows(result['broken'])} that cannot be used: minicollab cache verify names them")
    for name, kind in result["kinds"].items():
        hits = f"{kind['hit_rate']:7.1%} of look-ups hit" if "hit_rate" in kind else ""
        lines.append(f"  {name:<12}{kind['entries']:>12,}{_bytes(kind['bytes']):>12}{hits:>24}".rstrip())
    saved = f"{result['tokens_saved']:,} tokens and {result['hours_saved']:.1f} hours saved so far"
    return "\n".join([*lines, saved])


def _verified(result: dict[str, Any]) -> str:
    lines = [f"{entry['row']} {entry['wrong']}" for entry in result["broken"]]
    if result["kept"]:
        lines.append(f"the database was damaged ({result['damage']}) and is kept as {result['kept']}")
    elif result["repaired"]:
        lines.append(f"dropped {_rows(len(result['broken']))}")
    return "\n".join([*lines, f"sound: {_rows(result['rows'])}"])


def _rows(number: int) -> str:
    return f"{number:,} row{'s' * (number != 1)}"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
