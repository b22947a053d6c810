"""The documentation does what it says: its code runs, its commands parse, its links lead somewhere.

How a page marks a block that is special is told in docs/pages.py.
"""

import argparse
import re
import shlex
import sys
import tomllib
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from test_floors import FLOORS

from pyro_gebm.cli.parser import build_parser
from pyro_gebm.inference_data import SCHEMA_NAMES
from pyro_gebm.nets import network

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import pages  # noqa: E402

PAGES = pages.pages()
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
README_IS_SMALLER = {
    "base_steps=1000, refit_steps=500": "base_steps=20, refit_steps=20",
    "% 500": "% 10",
    "num_samples=250, warmup_steps=100": "num_samples=10, warmup_steps=10",
    "2_000, kernel": "64, num_chains=16, kernel",
    'kernel="HMC", warmup_steps=100': 'kernel="HMC", warmup_steps=10',
}
"""The README shows no comments to readers of its source."""

every_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


@pytest.fixture
def smaller_readme(tmp_path):
    text = (ROOT / "README.md").read_text()
    for old, new in README_IS_SMALLER.items():
        assert old in text, f"README: {old!r} is gone; change README_IS_SMALLER"
        text = text.replace(old, new)
    copy = tmp_path / "README.md"
    copy.write_text(text)
    return copy


@pytest.mark.filterwarnings("ignore::UserWarning")  # runs this short have not converged
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(b.runs for b in pages.blocks(page.read_text()))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_code_of_a_page_runs_and_prints_what_it_shows(
    page, tmp_path, monkeypatch, smaller_readme
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    torch.manual_seed(0)
    # Pages register networks of their own, which must not outlive them.
    monkeypatch.setattr(network, "_REGISTRY", dict(network._REGISTRY))
    shown = smaller_readme if page.name == "README.md" else page
    try:
        for block, printed in pages.run(shown, small=True):
            assert pages.shape_of(printed) == pages.shape_of(block.code), f"line {block.line}"
    finally:
        plt.close("all")  # pages leave their figures open, which other tests would count


@every_page
def test_code_that_is_not_run_has_a_reason(page):
    for block in pages.blocks(page.read_text()):
        known = block.mark in ("", "output") or re.match(r"(not run|smaller): \S", block.mark)
        assert known, f"line {block.line}: {block.mark!r}"
        if block.is_output:
            assert block.language == "text", f"line {block.line}"


# --- commands ------------------------------------------


PLAIN = {"cd", "git", "python3", "torchrun", "pytest", "ruff", "mypy", "sphinx-build"}
PLAIN |= {"pre-commit", "pip"}
"""Programs that are not ours; what follows is not looked at, but for what ours are called with."""


def command_lines(text):
    """(line of the page, words) of each command of the shell blocks of a page."""
    for block in pages.blocks(text):
        if block.language not in ("sh", "bash", "console"):
            continue
        joined = block.code.replace("\\\n", " ")
        for command in re.split(r"&&|\n", joined):
            words = shlex.split(command, comments=True)
            while words and "=" in words[0]:  # NAME=value before a command
                words = words[1:]
            if words:
                yield block.line, words


def check_command(words):
    """Raise if a command names what is not there."""
    program = Path(words[0]).name
    if program == "pyro-gebm":
        return check_ours(words[1:])
    if "pyro_gebm" in words and words[words.index("pyro_gebm") - 1] == "-m":
        return check_ours(words[words.index("pyro_gebm") + 1 :])
    if program in ("python", "python3", "pytest") or words[:3] == ["python", "-m", "pytest"]:
        for word in words[1:]:
            if word.endswith((".py", ".md")):
                assert (ROOT / word).is_file(), f"no file {word}"
        scripts = [word for word in words[1:] if word.endswith(".py")]
        if scripts and "pytest" not in words and program != "pytest":
            source = (ROOT / scripts[0]).read_text()
            # What the examples that work on a run folder share stands in one of them.
            source += (ROOT / "examples" / "inpainting.py").read_text()
            for option in (word for word in words if word.startswith("--")):
                assert f'"{option}"' in source or option == "--help", f"no option {option}"
        return None
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        asked = re.findall(r"\[([\w,]+)\]", " ".join(words))
        for extra in (name for group in asked for name in group.split(",")):
            assert extra in extras["optional-dependencies"], f"no extra {extra}"
        return None
    assert program in PLAIN, f"unknown program {program}"
    return None


def check_ours(words):
    if "--help" in words or "--version" in words:
        words = [word for word in words if word not in ("--help", "--version")]
        if not words:
            return None
        return check_known_command(words[0])
    try:
        build_parser().parse_args(words)
    except SystemExit as stopped:
        raise AssertionError(f"pyro-gebm {' '.join(words)} does not parse") from stopped
    return None


def check_known_command(name):
    subparsers = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert name in next(subparsers).choices, f"no command {name}"


@every_page
def test_commands_exist(page):
    for line, words in command_lines(page.read_text()):
        try:
            check_command(words)
        except AssertionError as error:
            raise AssertionError(f"line {line}: {' '.join(words)}: {error}") from error


@pytest.mark.parametrize(
    "command",
    [
        "pyro-gebm dance",
        "pyro-gebm sample runs/demo --no-such-option 3",
        "python -m pyro_gebm train --base marble",
        "python examples/no_such_example.py",
        "python examples/five_seeds.py --colour red",
        "pip install '.[nonsense]'",
        "rm -rf /",
    ],
)
def test_wrong_commands_are_seen(command):
    with pytest.raises(AssertionError):
        for _, words in command_lines(f"```sh\n{command}\n```\n"):
            check_command(words)


# --- links ------------------------------------------


LINK = re.compile(r"(?<!\\)\[[^\]\[]*\]\(([^)\s]+)\)")


def anchors_of(page):
    """What the headings of a page are linked by."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles]
    return {*slugs, *re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)}


def broken_links(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]+`", "", text)
    for link in LINK.findall(text):
        if re.match(r"(https?|mailto):", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            yield link


@every_page
def test_links_lead_somewhere(page):
    assert list(broken_links(page)) == []


def test_broken_links_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title\n\n[a](#a-title) [b](#no) [c](no.md) ![d](no.png) [e](page.md)\n")
    assert list(broken_links(page)) == ["#no", "no.md", "no.png"]


def test_every_picture_is_shown():
    shown = {name for page in PAGES for name in re.findall(r"images/([\w.-]+)", page.read_text())}
    there = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    assert there - shown == set(), "pictures that no page shows"


# --- tables ------------------------------------------


def test_every_sample_statistic_has_its_row():
    text = (ROOT / "docs" / "reference" / "sample_stats.md").read_text()
    table = text.partition("| name |")[2].partition("\n\n")[0]
    names = [n for row in table.splitlines()[2:] for n in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(names) == sorted(SCHEMA_NAMES.values())


def test_every_room_has_its_place_in_the_table_of_floors():
    text = (ROOT / "docs" / "developers" / "floors.md").read_text()
    table = text.partition("| floor |")[2].partition("\n\n")[0]
    found = {}
    for row in table.splitlines()[2:]:
        _, floor, rooms, *_ = row.split("|")
        found |= dict.fromkeys(re.findall(r"`(\w+)`", rooms), int(floor))
    assert found == FLOORS


def test_every_room_has_its_page_in_the_reference():
    pages_of_rooms = "".join(p.read_text() for p in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"automodule:: pyro_gebm\.(\w+)", pages_of_rooms))
    assert {room for room in FLOORS if not room.startswith("_")} - {"cli"} <= shown


# --- the machinery itself ------------------------------------------


PAGE = """
<!-- smaller: 10 -> 2 -->
```python
print("value", 10)
```

<!-- output -->
```text
value 10
```

<!-- not run: it would raise -->
```python
raise ValueError
```
"""


def test_blocks_are_made_smaller_run_and_compared(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert [printed for _, printed in pages.run(page, small=True)] == ["value 2\n"]
    assert [printed for _, printed in pages.run(page, small=False)] == ["value 10\n"]
    ((block, printed),) = pages.run(page, small=True)
    assert pages.shape_of(printed) == pages.shape_of(block.code) == {"value #"}
    assert pages.shape_of("other 2") != pages.shape_of(block.code)


def test_a_replacement_that_does_not_fit_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace("10 -> 2", "11 -> 2"))
    with pytest.raises(ValueError, match="11"):
        list(pages.run(page, small=True))


def test_a_failing_block_names_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("words\n\n```python\n\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as raised:
        list(pages.run(page, small=True))
    assert raised.traceback[-1].lineno + 1 == 5
