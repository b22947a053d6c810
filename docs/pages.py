"""The pages of this site as programs: their Python blocks run, their outputs are compared.

    python docs/pages.py docs/tutorials/digits.md    # at full size; writes outputs and pictures

The blocks of a page run in one namespace, in a folder of their own. A comment before a block says
what is special about it; none of them is seen in the page:

    <!-- smaller: base_steps=3000 -> base_steps=20; num_samples=500 -> num_samples=30 -->
        replacements for the tests, which have little time
    <!-- not run: it needs a GPU -->
        why the tests leave the block out
    <!-- output -->
        before a text block: what the blocks above have printed
"""

import argparse
import contextlib
import io
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent
ROOT = DOCS.parent

BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n\s*)?^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"[-+]?(\d[\d,._]*(e[-+]?\d+)?|\bnan\b|\binf\b)")


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    code: str
    mark: str
    """What the comment before it says; empty if there is none."""
    line: int
    """Line of the page on which the code begins, from 1."""
    span: tuple[int, int]
    """Where the code stands in the page's text."""

    @property
    def runs(self) -> bool:
        """It is Python, and no reason is given against running it."""
        return self.language == "python" and not self.mark.startswith("not run:")

    @property
    def is_output(self) -> bool:
        """It shows what the blocks above print."""
        return self.mark == "output"


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    return [
        Block(
            found["language"],
            found["code"],
            found["mark"] or "",
            text.count("\n", 0, found.start("code")) + 1,
            found.span("code"),
        )
        for found in BLOCK.finditer(text)
    ]


def pages() -> list[Path]:
    """All pages, the README, and what contributors read."""
    built = DOCS / "build"
    own = sorted(page for page in DOCS.rglob("*.md") if built not in page.parents)
    return [ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md", *own]


def made_smaller(block: Block) -> str:
    """The code with the replacements that its mark asks for.

    Raises:
        ValueError: something to be replaced is not there.
    """
    code = block.code
    if not block.mark.startswith("smaller:"):
        return code
    for pair in block.mark.removeprefix("smaller:").split(";"):
        old, arrow, new = (part.strip() for part in pair.partition("->"))
        if not arrow or old not in code:
            raise ValueError(f"line {block.line}: {old!r} is to be replaced and not there")
        code = code.replace(old, new)
    return code


def run(page: Path, *, small: bool) -> Iterator[tuple[Block, str]]:
    """Run the blocks of a page; yields its output blocks with what was printed for each.

    Args:
        page: a Markdown file.
        small: make the replacements that are meant for tests.
    """
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = io.StringIO()
    for block in blocks(page.read_text()):
        if block.runs:
            code = made_smaller(block) if small else block.code
            # So that a traceback names the line of the page.
            lines = "\n" * (block.line - 1) + code
            with contextlib.redirect_stdout(printed):
                exec(compile(lines, str(page), "exec"), namespace)
        elif block.is_output:
            yield block, printed.getvalue()
            printed = io.StringIO()


def shape_of(text: str) -> set[str]:
    """The lines of an output without their numbers, which differ from machine to machine."""
    squeezed = (re.sub(r"[\s-]+", " ", NUMBER.sub("#", line)).strip() for line in text.split("\n"))
    return {line for line in squeezed if line}


def refresh(page: Path) -> None:
    """Run a page at full size; write its outputs and the pictures that it shows."""
    text = page.read_text()
    shown = set(re.findall(r"images/([\w.-]+)\)", text))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        warnings.simplefilter("default")
        found = list(run(page, small=False))
        for picture in Path(folder).rglob("*.png"):
            if picture.name in shown:
                shutil.copy(picture, DOCS / "images" / picture.name)
    for block, printed in reversed(found):
        start, end = block.span
        text = text[:start] + printed.rstrip() + "\n" + text[end:]
    page.write_text(text)


def main() -> None:
    """Refresh the pages that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", type=Path, nargs="+")
    for page in parser.parse_args().pages:
        refresh(page.resolve())


if __name__ == "__main__":
    main()
