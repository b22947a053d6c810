"""The directive ``command-line``: every command with its options, out of the parser itself."""

import argparse

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pyro_gebm.cli.parser import build_parser


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of a parser by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def describe(parser: argparse.ArgumentParser) -> list[str]:
    """A table of options as Markdown: how each is written, what it is, its default."""
    rows = ["| option | meaning | default |", "|---|---|---|"]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        rows.append(f"| {_written(action)} | {_meaning(action)} | {_default(action)} |")
    return rows


def _written(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.dest.upper()}`"
    takes_value = action.nargs != 0
    value = f" {action.metavar or action.dest.upper()}" if takes_value else ""
    return ", ".join(f"`{name}{value}`" for name in action.option_strings)


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "").replace("|", "\\|")
    if action.choices is not None:
        text += " (" + ", ".join(f"`{choice}`" for choice in action.choices) + ")"
    return text


def _default(action: argparse.Action) -> str:
    plain = action.default is not None and action.default is not argparse.SUPPRESS
    shown = plain and action.default is not False and action.default != []
    return f"`{action.default}`" if shown else ""


def page() -> list[str]:
    """The whole reference, as Markdown."""
    parser = build_parser()
    lines = ["## pyro-gebm", "", parser.description or "", "", "Before the command:", ""]
    lines += [*describe(parser), ""]
    for name, command in subcommands(parser).items():
        said = command.description or ""
        lines += [f"## pyro-gebm {name}", "", said[:1].upper() + said[1:] + ".", ""]
        lines += ["```text", *command.format_usage().strip().splitlines(), "```", ""]
        lines += [*describe(command), ""]
    return lines


class CommandLine(SphinxDirective):
    """``{command-line}``: no arguments, no content."""

    def run(self) -> list[nodes.Node]:
        """Sections for all commands, read as Markdown."""
        return self.parse_text_to_nodes("\n".join(page()), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True}
