"""The documentation is true: its examples run, and every command, option and exit code is in it."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import click
import pytest

from nearlite import cli
from nearlite.spawn import primary

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "docs/start.md", "docs/replicas.md", "docs/server.md", "docs/operations.md"]
PAGES += ["docs/encryption.md", "docs/databases.md", "docs/driver.md", "docs/deploying.md"]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
# The address that the pages use; the tests put a real one in its place.
URL = "http://127.0.0.1:8080"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DEADLINE = 60.0


def blocks(page, kind):
    return [text for found, text in BLOCK.findall((ROOT / page).read_text()) if found == kind]


@pytest.fixture
def url(tmp_path):
    with primary(tmp_path / "data.db", "--durability", "normal") as url:
        yield url.rstrip("/")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_examples_of_a_page_run_in_order(page, url, tmp_path):
    script = "\n".join(blocks(page, "python")).replace(URL, url)
    (tmp_path / "page.py").write_text(script)
    environment = {key: value for key, value in os.environ.items() if key != "NEARLITE_AUTH_TOKEN"}
    answer = subprocess.run(
        [sys.executable, "-W", "error", "page.py"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env=environment,
    )
    assert answer.returncode == 0, answer.stderr


def test_the_readme_example_is_twelve_lines():
    (example,) = blocks("README.md", "python")
    assert len(example.splitlines()) <= 12


def console_commands(page):
    """(command, expected output) of each `$` line."""
    for text in blocks(page, "console"):
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


def run_console(command, folder):
    words = shlex.split(command)
    if words[0] == "nearlite":
        words[:1] = [sys.executable, "-m", "nearlite"]
        answer = subprocess.run(
            words, check=False, cwd=folder, capture_output=True, text=True, timeout=DEADLINE
        )
        return answer.stdout
    assert words[0] == "sqlite3"  # stock SQLite, whether or not its shell is installed
    with closing(sqlite3.connect(folder / words[1])) as stock:
        return "".join("|".join(map(str, row)) + "\n" for row in stock.execute(words[2]))


def has_commands(page):
    """Beside those that serve, which are the fixtures of the tests."""
    return any(not command.startswith("nearlite serve") for command, _ in console_commands(page))


@pytest.mark.parametrize("page", [page for page in PAGES if has_commands(page)])
def test_the_commands_of_a_page_print_what_it_says(page, url, tmp_path):
    script = "\n".join(blocks(page, "python")).replace(URL, url)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=DEADLINE)
    ran = 0
    for command, expected in console_commands(page):
        if command.startswith("nearlite serve"):
            continue  # the fixture's primary is this command
        pattern = ".*?".join(map(re.escape, expected.replace(URL, url).split("...")))
        output = run_console(command.replace(URL, url), tmp_path)
        assert re.fullmatch(pattern, output, re.DOTALL), (command, output)
        ran += 1
    assert ran


def test_the_line_that_serve_prints_is_the_documented_one(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "nearlite", "serve", "data.db", "--listen", "127.0.0.1:0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
    expected = dict(console_commands("docs/start.md"))[
        "nearlite serve data.db --listen 127.0.0.1:8080"
    ]
    assert re.fullmatch(re.escape(expected).replace("8080", r"\d+"), line)


def commands():
    return [command for command in cli.cli.commands.values() if not command.hidden]


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_every_command_and_its_arguments_are_documented(command):
    arguments = [p.human_readable_name for p in command.params if isinstance(p, click.Argument)]
    heading = " ".join(["### nearlite", command.name, *arguments])
    assert heading in OPERATIONS.splitlines()


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_every_option_is_documented(command):
    options = [p.opts[-1] for p in command.params if isinstance(p, click.Option)]
    missing = [option for option in options if option not in OPERATIONS]
    assert missing == []


def test_exactly_the_documented_exit_codes_exist():
    used = {value for name, value in vars(cli).items() if name.startswith("EXIT_")}
    table = OPERATIONS.partition("## Exit codes")[2].partition("\n## ")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert documented == used


def test_every_link_between_pages_leads_somewhere():
    pages = [ROOT / "README.md", *ROOT.glob("*/README.md"), *(ROOT / "docs").glob("*.md")]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target
    ]
    assert links
    assert [(p.name, target) for p, target in links if not (p.parent / target).exists()] == []


def test_the_figures_of_the_readme_are_those_that_were_measured():
    """Every figure in the table names a figure of bench/figures.py, and none is made up."""
    readme = (ROOT / "README.md").read_text()
    table = readme.partition("<!-- figures -->")[2].partition("<!-- end of figures -->")[0]
    titles = [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("| ")][1:]
    named = {figure.title for figure in runpy.run_path(str(ROOT / "bench/figures.py"))["FIGURES"]}
    assert [title for title in titles if title not in named] == []
