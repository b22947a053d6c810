"""A report as one HTML page: pictures inline, no script, nothing fetched; reads well on a phone."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

MEDIA_TYPES = {".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg"}

STYLE = """
:root { color-scheme: light; --ink: #1b1b1b; --soft: #595959; --line: #d5d5d5; --mark: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 56rem; padding: 1rem; color: var(--ink); background: #fff;
  font: 1rem/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.verdict { border-left: .3rem solid var(--mark); padding: .4rem .8rem; font-size: 1.1rem;
  background: #f2f7fb; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
tr.failed td { color: #a33; white-space: normal; text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: var(--soft); font-size: .9rem; }
footer { margin-top: 2rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .8rem; overflow-wrap: anywhere; }
@media print { body { max-width: none; } figure, table { break-inside: avoid; } }
"""


class Table(NamedTuple):
    """Words and numbers in rows, the first column names them."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A file, told in words below it."""

    path: Path
    caption: str


class Section(NamedTuple):
    """A heading and what stands under it, in this order."""

    title: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()


class Page(NamedTuple):
    """A report.

    Attributes:
        title: what was measured.
        verdict: what came of it, in a sentence.
        sections: tables, pictures and notes.
        protocol: how it was measured, by name; told at the foot.
    """

    title: str
    verdict: str
    sections: Sequence[Section]
    protocol: Sequence[tuple[str, str]]


def render_page(page: Page) -> str:
    """The page as one self-contained HTML document.

    Args:
        page: what it says; all text is escaped.

    Returns:
        HTML 5; pictures are inside it as data URIs.

    Raises:
        ValueError: a picture is not PNG, GIF or JPEG.
        OSError: a picture cannot be read.

    Example:
        >>> html = render_page(Page("Kernels", "NUTS < HMC.", [Section("Scores")], [("seed", "0")]))
        >>> "<p class='verdict'>NUTS &lt; HMC.</p>" in html
        True
    """
    title = escape(page.title)
    terms = "".join(f"<div>{escape(a)}: {escape(b)}</div>" for a, b in page.protocol)
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{title}</h1>\n<p class='verdict'>{escape(page.verdict)}</p>\n"
        f"{_joined(_section(section) for section in page.sections)}\n"
        f"<footer>{terms}</footer>\n</body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [_table(table) for table in section.tables]
    parts += [_figure(picture) for picture in section.pictures]
    parts += [f"<p class='note'>{escape(note)}</p>" for note in section.notes]
    return _joined(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in table.header)
    body = _joined(_row(row, len(table.header)) for row in table.rows)
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f"<div class='wide'><table>{inside}</table></div>"


def _row(row: Sequence[str], width: int) -> str:
    """A row; one that is short tells in its last cell why, across the columns that are left."""
    if len(row) == width:
        return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    *first, last = row
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in first)
    return f"<tr class='failed'>{cells}<td colspan='{width - len(first)}'>{escape(last)}</td></tr>"


def _figure(picture: Picture) -> str:
    kind = MEDIA_TYPES.get(picture.path.suffix.lower())
    if kind is None:
        raise ValueError(
            f"picture: expected one of {', '.join(MEDIA_TYPES)}; got {picture.path.name}"
        )
    data = base64.b64encode(picture.path.read_bytes()).decode()
    caption = escape(picture.caption)
    return (
        f"<figure><img src='data:{kind};base64,{data}' alt='{caption}'>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _joined(parts: Iterable[str]) -> str:
    return "\n".join(parts)
