"""The docs are true: commands exist and run, YAML is a recipe's, links lead somewhere, all is there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from docs_blocks import PAGES, REPO, TUTORIAL, blocks, files, words

from minicollab.cli import main
from minicollab.errors import MinicollabError
from minicollab.recipe import Recipe

LINK = re.compile(r"\]\(([^)\s]+)\)")
LEAST = {"name": "least", "models": {"policy": "p.gguf"}, "tasks": {"path": "tasks.jsonl"}}


def pages(*paths: Path) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", paths, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", REPO / "docs/generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pages(*PAGES)
def test_every_block_of_commands_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        if block.has_commands:
            assert block.language == "bash", f"fence it as bash: {block.text}"
            reasons = "needs |takes " if page == TUTORIAL else "needs "  # test_own_task.py runs the tutorial
            assert not block.title or re.match(reasons, block.title), f"not a reason: {block.title}"


@pages(*(page for page in PAGES if any(block.is_run for block in blocks(page))))
def test_blocks_run_and_print_what_is_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in files(page).items():
        Path(name).write_text(text, "utf-8")
    printed: list[str] = []
    for block in blocks(page):
        if block.is_run:
            printed = [line for command in block.lines for line in said(command).splitlines()]
        elif printed and block.language == "text":
            assert not set(block.text.splitlines()) - set(printed)
        if not block.is_run:
            printed = []


def said(line: str) -> str:
    program, *arguments = words(line) or [""]
    if not program:
        return ""
    assert program == "minicollab", f"only minicollab is run: give {line!r} a title"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pages(*PAGES, REPO / "README.md")
def test_commands_that_are_shown_exist(page: Path) -> None:
    shown = [line for block in blocks(page) if block.language == "bash" for line in block.lines]
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    shown += re.findall(r"`(minicollab [^`]+)`", " ".join(prose.split()))
    for line in shown:
        command = line.rpartition("| ")[2]
        if command.startswith("minicollab "):
            parsed(main, words(command)[1:], line)


def parsed(command: click.Command, arguments: list[str], line: str) -> None:
    """Its options exist, and it takes that many words; what they are is not looked at."""
    context = click.Context(command)
    if isinstance(command, click.Group):
        name, *rest = arguments or [""]
        if "|" in name or (not rest and not command.commands.get(name)):
            return  # `tasks check|preview`
        assert name in command.commands or name.startswith("-"), f"there is no {name}: {line}"
        if name in command.commands:
            parsed(command.commands[name], rest, line)
        return
    try:
        _, left, _ = command.make_parser(context).parse_args([*arguments])
    except click.UsageError as error:
        pytest.fail(f"{line}: {error.message}")
    assert not left, f"too many words: {line}"


@pages(*PAGES)
def test_yaml_is_valid_in_a_recipe(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            Recipe.model_validate(merged(LEAST, yaml.safe_load(block.text)))


def merged(base: Any, more: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(more, dict)):
        return more
    return base | {key: merged(base.get(key), value) for key, value in more.items()}


@pages(*PAGES, REPO / "README.md")
def test_links_lead_somewhere(page: Path, generate: ModuleType) -> None:
    for link in LINK.findall(page.read_text("utf-8")):
        if link.startswith(("http://", "https://")):
            continue  # nothing is fetched
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} → {link}"
        if anchor:
            assert anchor in anchors(generate.on_page_markdown(target.read_text("utf-8"))), link


def anchors(text: str) -> Iterator[str]:
    """As Python-Markdown makes them of headings."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", heading.replace("`", "").encode("ascii", "ignore").decode())
        yield re.sub(r"[-\s]+", "-", plain.strip().lower())


def test_what_is_generated_is_whole(generate: ModuleType) -> None:
    made = {page.stem: generate.on_page_markdown(page.read_text("utf-8")) for page in PAGES}
    assert not [name for name, text in made.items() if re.search(r"^<!-- generate:", text, re.MULTILINE)]
    for name, command in generate.every_command():
        assert f"\n## {name}\n" in made["reference"]
        assert all(
            f"`{p.opts[0]}" in made["reference"] for p in command.params if isinstance(p, click.Option)
        )
    for definition in Recipe.model_json_schema()["$defs"].values():
        for key in definition["properties"]:
            assert f"| `{key}` |" in made["recipes"]
    for kind in MinicollabError.__subclasses__():
        assert f"\n| {kind.code} | {kind.__doc__}" in made["reference"]


def test_the_map_has_every_module_once(generate: ModuleType) -> None:
    marks = re.findall(r"<!-- generate: modules (.*) -->", (REPO / "docs/contributing.md").read_text("utf-8"))
    mapped = [path for mark in marks for path in generate.module_files(*mark.split())]
    assert sorted(mapped) == sorted((REPO / "minicollab").rglob("*.py"))
    described = generate.modules(*" ".join(marks).split()).splitlines()[2:]
    assert not [row for row in described if row.endswith("|  |")]


def test_every_page_is_in_the_navigation() -> None:
    text = (REPO / "mkdocs.yml").read_text("utf-8")
    named = re.findall(r"^ +- .+: (\w+\.md)$", text.partition("\nnav:")[2], re.MULTILINE)
    assert sorted(named) == [page.name for page in PAGES]


def test_the_site_builds_strictly_and_asks_nobody(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="make docs installs it")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = list(tmp_path.rglob("*.html"))
    assert {page.stem for page in PAGES} <= {path.stem for path in made}
    for path in made:
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", path.read_text("utf-8"))
        assert not [tag for tag in tags if re.search(r"(?:src|href)=\"?(?:https?:)?//", tag)]
