"""What the site takes from the code, so that it cannot go stale. MkDocs calls the `on_…` functions.

A page asks for it with a line of its own: `<!-- generate: NAME WORDS -->`.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import click

from minicollab import errors
from minicollab.cli import main
from minicollab.gguf.architectures import ARCHITECTURES
from minicollab.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minicollab"
_MARK = re.compile(r"^<!-- generate: (\w+)(.*) -->$", re.MULTILINE)
_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """The recipes are a part of the site, for pages to link to."""
    from mkdocs.structure.files import File

    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page with its marks filled. Links to recipes are from `docs/` in the checkout, from the top here."""
    filled = _MARK.sub(lambda mark: GENERATED[mark[1]](*mark[2].split()), markdown)
    return filled.replace("](../recipes/", "](recipes/")


def readme(*heading: str) -> str:
    """A section of the README, whose links are from the top of the checkout."""
    text = (ROOT / "README.md").read_text("utf-8")
    _, found, rest = text.partition(f"\n## {' '.join(heading)}\n")
    if not found:
        raise ValueError(f"README.md has no section {' '.join(heading)!r}")
    return rest.partition("\n## ")[0].strip().replace("](docs/", "](")


def commands() -> str:
    """Every command with what its --help says."""
    return "\n\n".join(_command(name, command) for name, command in every_command())


def every_command() -> Iterator[tuple[str, click.Command]]:
    """Names as they are typed, groups before what is in them."""

    def under(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield name, command
        if isinstance(command, click.Group):
            for word in sorted(command.commands):
                yield from under(f"{name} {word}", command.commands[word])

    return under("minicollab", main)


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    help = escape(inspect.cleandoc(command.help or ""), quote=False)
    options = [p.get_help_record(context) for p in command.params if isinstance(p, click.Option)]
    rows = [[f"`{record[0]}`", escape(record[1], quote=False)] for record in options if record]
    return f"## {name}\n\n`{usage}`\n\n{help}\n\n{_table(['option', ''], rows) if rows else ''}".strip()


def exits() -> str:
    """The exit codes of what a person can mend."""
    kinds = sorted(errors.MinicollabError.__subclasses__(), key=lambda kind: kind.code)
    return _table(["exit code", ""], [[str(kind.code), inspect.getdoc(kind) or ""] for kind in kinds])


def architectures() -> str:
    """The model families that can be trained and exported."""
    rows = [[f"`{name}`", what.families] for name, what in ARCHITECTURES.items()]
    return _table(["`general.architecture` of the GGUF", ""], rows)


def keys() -> str:
    """Every section of the recipe, its keys, their kinds and defaults."""
    schema = Recipe.model_json_schema()
    whole = {key: what for key, what in schema["properties"].items() if "$ref" not in what}
    parts = [_section("The recipe itself", schema | {"properties": whole}, {})]
    places: dict[str, str] = {}  # definition → the section where it is described
    left = [(key, what) for key, what in schema["properties"].items() if "$ref" in what]
    while left:
        name, what = left.pop(0)
        for definition in re.findall(r"#/\$defs/(\w+)", json.dumps(what)):
            if definition in places:
                continue
            places[definition] = name
            described = schema["$defs"][definition]
            inside = [(f"{name}.{key}", value) for key, value in described["properties"].items()]
            left += [(key, value) for key, value in inside if "$ref" in json.dumps(value)]
            parts.append(_section(name, described, places))
    return "\n\n".join(parts)


def _section(name: str, schema: dict[str, Any], places: dict[str, str]) -> str:
    required = schema.get("required", ())
    rows = [
        [f"`{key}`", _kind(what, places), _default(key, what, required)]
        for key, what in schema["properties"].items()
    ]
    says = schema.get("description", "")
    return f"## {name}\n\n{says}\n\n{_table(['key', 'kind', 'default'], rows)}"


def _default(key: str, what: dict[str, Any], required: Any) -> str:
    if key in required:
        return "must be given"
    default = what.get("default")
    return "" if default is None or "$ref" in what else f"`{json.dumps(default)}`"


def _kind(what: dict[str, Any], places: dict[str, str]) -> str:
    """A JSON schema in words."""
    if says := what.get("description"):
        return f"{_kind({k: v for k, v in what.items() if k != 'description'}, places)} ({says})"
    if "$ref" in what:
        definition = what["$ref"].rpartition("/")[2]
        return f"keys as of `{places[definition]}`" if definition in places else "keys of its own, below"
    if "anyOf" in what:
        return " or ".join(_kind(one, places) for one in what["anyOf"] if one.get("type") != "null")
    if "enum" in what:
        return ", ".join(f"`{value}`" for value in what["enum"])
    if what["type"] == "array":
        return f"list of {_kind(what['items'], places)}"
    if what["type"] == "object":
        return f"names, each with: {_kind(what['additionalProperties'], places)}"
    bounds = [f"{sign} {what[bound]:g}" for bound, sign in _BOUNDS.items() if bound in what]
    return " ".join([_TYPES[what["type"]], ", ".join(bounds)]).strip()


def modules(*names: str) -> str:
    """A table of modules and how their docstrings begin. A package's name stands for all in it."""
    rows = []
    for path in module_files(*names):
        says = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n\n")[0]
        rows.append([f"`{path.relative_to(PACKAGE)}`", escape(" ".join(says.split()), quote=False)])
    return _table(["module", ""], rows)


def module_files(*names: str) -> list[Path]:
    """FileNotFoundError if there is none of that name."""
    found: list[Path] = []
    for name in names:
        path = PACKAGE / name.replace(".", "/")
        found += (
            sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py").resolve(strict=True)]
        )
    return found


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(' '.join(cell.split()) for cell in line)} |" for line in lines)


GENERATED = {f.__name__: f for f in (readme, commands, exits, architectures, keys, modules)}
