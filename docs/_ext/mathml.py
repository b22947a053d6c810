"""Formulas as MathML, made while the site is built: browsers draw it without scripts."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# What the converter leaves out: the thin space after a named function, and space around "~".
FUNCTION = re.compile(r"(<mi>(?:log|exp|min|cos|sin|sup)</mi>)(?=<m(?:i|sub|sup|row|frac|n)\b)")
SIMILAR = re.compile(r"<mi>&#x0007E;</mi>")


def _mathml(node: nodes.Element, display: str) -> str:
    latex = node.astext()
    try:
        made = convert(latex, display=display)
    except Exception as error:
        # A formula that cannot be read must not become a hole in the page.
        raise ExtensionError(f"formula {latex!r}: {error}") from error
    spaced = FUNCTION.sub(r'\1<mspace width="0.17em"/>', made)
    return SIMILAR.sub("<mo>&#x0223C;</mo>", spaced)


def _visit_inline(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node, "inline"))
    raise nodes.SkipNode


def _visit_block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{_mathml(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True}
