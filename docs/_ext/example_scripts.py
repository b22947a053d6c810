"""Two directives for the percent-scripts in examples/, whose pages are made from the scripts.

``{example} NAME`` is a page: what the first cell says, what a full run gave, the code, cell by
cell. Nothing runs. Tables and pictures of the full run are those of other pages of this site, which
the option ``results`` names as ``page.md#heading``, several parted by spaces.

``{example-list}`` has a line for each script, and sees to it that each has its page.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

DOCS = Path(__file__).parents[1]
FOLDER = DOCS.parent / "examples"
CELL = re.compile(r"^# %%.*\n", re.MULTILINE)
RULE = re.compile(r"^# --- (.+?) -+$", re.MULTILINE)
SHOWN = re.compile(r"(?:^\|.*\n)+|^!\[[^\]]*\]\([^)\s]+\)$", re.MULTILINE)
"""A table or a picture of a page."""


def scripts() -> list[Path]:
    """Every example; a leading underscore marks what several of them share."""
    found = sorted(FOLDER.glob("[!_]*.py"))
    return [path for path in found if path.read_text().startswith("# %% [markdown]")]


def words_of(cell: str) -> str:
    """The Markdown of a cell of comments."""
    lines = [line.removeprefix("#").removeprefix(" ") for line in cell.strip().split("\n")]
    return "\n".join(lines)


def first_cell(source: str) -> str:
    """What a script says of itself: a title, and paragraphs."""
    return words_of(CELL.split(source)[1])


def code_cells(source: str) -> Iterator[str]:
    """Markdown of what follows the first cell: prose, headings, and code in blocks."""
    marks = CELL.findall(source)
    for mark, cell in list(zip(marks, CELL.split(source)[1:], strict=True))[1:]:
        if "[markdown]" in mark:
            yield re.sub("^#", "##", words_of(cell), flags=re.MULTILINE)
            continue
        # A rule in the code begins a part of it.
        pieces = RULE.split(cell)
        for heading, code in zip(["", *pieces[1::2]], pieces[::2], strict=True):
            if heading:
                yield f"### {heading[0].upper()}{heading[1:]}"
            if code.strip():
                yield f"````python\n{code.strip()}\n````"


def slug(title: str) -> str:
    """What a heading is linked by."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def section(text: str, anchor: str) -> str:
    """A page's text from a heading to the next one of its level.

    Raises:
        ExtensionError: there is no such heading.
    """
    headings = list(re.finditer(r"^(#+) (.+)$", text, re.MULTILINE))
    for index, found in enumerate(headings):
        if slug(found[2]) == anchor:
            level = len(found[1])
            after = [h.start() for h in headings[index + 1 :] if len(h[1]) <= max(level, 2)]
            return text[found.end() : after[0] if after else len(text)]
    raise ExtensionError(f"example: no heading #{anchor} in that page")


def results(place: str) -> list[str]:
    """Markdown of the tables and pictures of a section, with a link to it."""
    page, _, anchor = place.partition("#")
    text = section((DOCS / page).read_text(), anchor)
    shown = [re.sub(r"\((?:\.\./)?images/", "(/images/", found) for found in SHOWN.findall(text)]
    link = f"Command, seeds, hardware and spread: [where they are told](/{place})."
    return [link, *(re.sub(r"\]\((?![/h])", "](/", each) for each in shown)]


class ExamplePage(SphinxDirective):
    """``{example} NAME``."""

    required_arguments = 1
    option_spec = {"results": directives.unchanged}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Title, words, results, code."""
        path = FOLDER / f"{self.arguments[0]}.py"
        self.env.note_dependency(str(path))
        source = path.read_text()
        parts = [first_cell(source)]
        places = self.options.get("results", "").split()
        if places:
            parts.append("## What a full run gave")
        for place in places:
            self.env.note_dependency(str(DOCS / place.partition("#")[0]))
            parts += results(place)
        parts += [f"## The code: `examples/{path.name}`", *code_cells(source)]
        return self.parse_text_to_nodes("\n\n".join(parts), allow_section_headings=True)


class ExampleList(SphinxDirective):
    """``{example-list}``: no arguments, no content."""

    def run(self) -> list[nodes.Node]:
        """A line for each example, with a link.

        Raises:
            ExtensionError: an example has no page.
        """
        lines = []
        for path in scripts():
            self.env.note_dependency(str(path))
            if not (DOCS / "examples" / f"{path.stem}.md").exists():
                raise ExtensionError(
                    f"examples/{path.name} has no page docs/examples/{path.stem}.md"
                )
            title, _, rest = first_cell(path.read_text()).partition("\n")
            learned = " ".join(rest.split()).removeprefix("What one learns: ")
            sentence = re.split(r"(?<=[.?:]) ", learned)[0].rstrip(":.") + "."
            link = f"[{title.removeprefix('# ')}](/examples/{path.stem}.md)"
            lines.append(f"- {link} – {sentence}")
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("example", ExamplePage)
    app.add_directive("example-list", ExampleList)
    return {"parallel_read_safe": True}
