"""The directive ``example-scripts``: what each example teaches, in its own words, and its code."""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FOLDER = Path(__file__).parents[2] / "examples"


def first_cell(source: str) -> str:
    """The Markdown of a percent-script's first cell, its headings a level lower."""
    lines = source.split("\n")
    taken = []
    for line in lines[1:]:
        if not line.startswith("#") or line.startswith("# %%"):
            break
        taken.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join("#" + line if line.startswith("#") else line for line in taken)


def section(path: Path) -> list[str]:
    """Markdown of a script: what it teaches, and its code, folded away."""
    source = path.read_text()
    title = f"<details><summary><code>examples/{path.name}</code></summary>"
    code = ["````python", source.rstrip(), "````"]
    return [first_cell(source), "", title, "", *code, "", "</details>", ""]


class ExampleScripts(SphinxDirective):
    """``{example-scripts}``: no arguments, no content."""

    def run(self) -> list[nodes.Node]:
        """A section for each percent-script."""
        lines = []
        for path in sorted(FOLDER.glob("[!_]*.py")):
            self.env.note_dependency(str(path))
            if path.read_text().startswith("# %% [markdown]"):
                lines += section(path)
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("example-scripts", ExampleScripts)
    return {"parallel_read_safe": True}
