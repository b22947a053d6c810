"""The directive ``public-names``: what ``pyro_gebm`` exports, a line each, with a link."""

import inspect

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import pyro_gebm as pg


def _row(name: str) -> str:
    thing = getattr(pg, name)
    room = thing.__module__.split(".")[1]
    first = (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")
    first = first.replace("``", "`").replace("|", "\\|").replace("*", "\\*")
    return f"| {{py:obj}}`pg.{name} <pyro_gebm.{room}.{name}>` | {first} |"


class PublicNames(SphinxDirective):
    """``{public-names}``: no arguments, no content."""

    def run(self) -> list[nodes.Node]:
        """A table."""
        rows = [_row(name) for name in pg.__all__ if name != "__version__"]
        return self.parse_text_to_nodes("\n".join(["| name | what it is |", "|---|---|", *rows]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("public-names", PublicNames)
    return {"parallel_read_safe": True}
