"""The report's page: what a reader finds in it, and that it needs nothing from outside."""

import base64
from html.parser import HTMLParser

import pytest

from pyro_gebm.report import Page, Picture, Section, Table, render_page

NASTY = "<b>5 & 6</b> 'quoted' \"twice\""


class Reader(HTMLParser):
    """Cells by row, picture sources, text by the innermost element, and all addresses."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.pictures, self.text, self.open, self.addresses = [], [], {}, [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "img":
            self.pictures.append(attributes)
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes what it did not open"

    def handle_data(self, data):
        inner = self.open[-1] if self.open else ""
        self.text[inner] = self.text.get(inner, "") + data
        if inner in ("td", "th"):
            self.rows[-1][-1] += data


def page(*sections, verdict="It helps.", title="A title"):
    return Reader(render_page(Page(title, verdict, sections, [("seed", "3"), ("β", NASTY)])))


def test_text_comes_through_as_it_is():
    read = page(Section(NASTY, notes=[NASTY]), verdict=NASTY, title=NASTY)
    for element in ("title", "h1", "h2"):
        assert read.text[element] == NASTY
    assert read.text["p"] == NASTY + NASTY
    assert NASTY in read.text["div"]
    assert not read.open


def test_a_table_has_its_cells():
    table = Table(["kernel", "score"], [["NUTS", "0.5"], ["a < b", "1"]])
    assert page(Section("s", tables=[table])).rows == [list(table.header), *table.rows]


def test_a_failed_row_tells_why_across_the_table():
    table = Table(["kernel", "score", "ESS"], [["NUTS", "0.5", "7"], ["HMC", "failed: no draws"]])
    html = render_page(Page("t", "v", [Section("s", tables=[table])], []))
    assert "<td colspan='2'>failed: no draws</td>" in html
    assert Reader(html).rows[-1] == ["HMC", "failed: no draws"]


def test_pictures_are_inside_and_nothing_is_fetched(tmp_path):
    files = {"one.png": b"\x89PNG one", "two.gif": b"GIF89a two"}
    pictures = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        pictures.append(Picture(tmp_path / name, NASTY))
    read = page(Section("s", pictures=pictures))
    kinds = ("image/png", "image/gif")
    for found, kind, content in zip(read.pictures, kinds, files.values(), strict=True):
        head, data = found["src"].split(",")
        assert head == f"data:{kind};base64"
        assert base64.b64decode(data) == content
        assert found["alt"] == NASTY
    assert all(address.startswith("data:") for address in read.addresses)


def test_what_no_browser_shows_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"picture: expected one of \.png.*got figure\.tiff"):
        page(Section("s", pictures=[Picture(tmp_path / "figure.tiff", "")]))
