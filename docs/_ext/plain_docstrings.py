"""Docstrings hold formulas such as |p|²/2 and z': here they are kept from being read as markup."""

import re

from sphinx.application import Sphinx

LITERAL = re.compile(r"(``.+?``)")
# What reStructuredText takes for a reference, emphasis or a substitution, and we mean literally.
MARKUP = re.compile(r"\\|\||\*(?=\S)|(?<=\S)\*|(?<=\w)_(?=\W|$)|`")


def _escape(line: str) -> str:
    pieces = LITERAL.split(line)
    return "".join(
        piece if place % 2 else MARKUP.sub(lambda found: "\\" + found.group(), piece)
        for place, piece in enumerate(pieces)
    )


def plain_lines(lines: list[str]) -> list[str]:
    """The lines of a docstring, with every character that is not in a literal meant as it is."""
    kept, in_example, in_block = [], False, False
    for line in lines:
        text = line.strip()
        in_example = text.startswith(">>>") or (in_example and bool(text))
        # A block after "::" or of a table ends where the indentation does.
        starts_item = text.startswith(("* ", "*args", "**"))
        if in_example or in_block or not text:
            kept.append(line)
        elif starts_item:
            indent = line[: len(line) - len(line.lstrip())]
            marks, _, rest = text.partition(" ")
            kept.append(f"{indent}{marks} {_escape(rest)}")
        else:
            kept.append(_escape(line))
    return kept


def _process(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    lines[:] = plain_lines(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    # Before napoleon, which turns sections into fields.
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True}
