"""The built site: no warning, no dead link, no request to another host, everything public in the reference."""

import html.parser
import importlib
import re
import subprocess
import sys
import typing
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import fnn
from tests.test_names import PUBLIC

DOCS = Path(__file__).parents[1] / "docs"
# elements and attributes for which a browser fetches something while it shows a page
FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("img", "srcset"),
    ("source", "src"),
    ("source", "srcset"),
    ("video", "src"),
    ("video", "poster"),
    ("audio", "src"),
    ("iframe", "src"),
    ("embed", "src"),
    ("object", "data"),
    ("image", "href"),
    ("image", "xlink:href"),
    ("use", "href"),
    ("use", "xlink:href"),
}


class Page(html.parser.HTMLParser):
    """The anchors of a page, its links, and what a browser fetches for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        # the relations of a link that only name another page fetch nothing
        if tag == "link" and not {"next", "prev", "index", "search", "author"} & set(given.get("rel", "").split()):
            self.fetched.append(given.get("href", ""))
        self.fetched += [value for name, value in given.items() if (tag, name) in FETCHED]
        self.fetched += re.findall(r"url\(([^)]*)\)", given.get("style", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for extra in ("sphinx", "myst_parser", "furo", "sphinx-mathjax-offline"):
        pytest.importorskip(extra, reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file.resolve(): Page(file.read_text()) for file in site.rglob("*.html")}


def test_a_page_is_read_as_a_browser_does() -> None:
    page = Page(
        '<p id="here" style="background: url(https://a.example/x.png)"><a href="#here">x</a>'
        '<script src="https://b.example/x.js"></script>'
        '<link rel="stylesheet" href="x.css"><link rel="next" href="y.html">'
    )
    assert page.anchors == {"here"}
    assert page.links == ["#here"]
    assert page.fetched == ["https://a.example/x.png", "https://b.example/x.js", "x.css"]


def test_no_internal_link_is_dead(site: Path, pages: dict[Path, Page]) -> None:
    dead = defaultdict(set)
    for file, page in pages.items():
        for link in page.links + page.fetched:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            known = pages.get(target)
            if not target.is_file() or (parts.fragment and known and unquote(parts.fragment) not in known.anchors):
                dead[str(file.relative_to(site.resolve()))].add(link)
    assert not dead


def test_nothing_is_fetched_from_another_host(site: Path, pages: dict[Path, Page]) -> None:
    elsewhere = {
        f"{file.name}: {address}"
        for file, page in pages.items()
        for address in page.fetched
        if re.match(r"\s*['\"]?(https?:)?//", address)
    }
    for sheet in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import\s+)\s*['\"]?((?:https?:)?//[^'\")\s]+)", sheet.read_text())
        elsewhere |= {f"{sheet.name}: {address}" for address in found}
    for drawing in site.rglob("*.svg"):
        found = re.findall(r"<(?:image|use|script)[^>]*href=['\"](https?://[^'\"]+)", drawing.read_text())
        elsewhere |= {f"{drawing.name}: {address}" for address in found}
    assert not elsewhere


def test_the_search_finds_every_page(site: Path) -> None:
    index = (site / "searchindex.js").read_text()
    for page in DOCS.rglob("*.md"):
        assert f'"{page.relative_to(DOCS).with_suffix("").as_posix()}"' in index


def test_everything_public_is_in_the_reference_with_its_source(site: Path) -> None:
    entries: dict[str, str] = {}
    for file in (site / "api").glob("*.html"):
        for name, heading in re.findall(
            r'<dt class="[^"]*sig-object py" id="(fnn[\w.]*)">(.*?)</dt>', file.read_text(), re.S
        ):
            entries[name] = heading
    missing, sourceless = set(), set()
    for room, names in PUBLIC.items():
        module = fnn if room == "fnn" else importlib.import_module(f"fnn.{room}")
        for name in names:
            value = getattr(module, name)
            if not callable(value) or typing.get_origin(value) is not None:  # a constant, a room, an alias of a type
                continue
            path = f"fnn.{name}" if room == "fnn" else f"fnn.{room}.{name}"
            if path not in entries:
                missing.add(path)
            elif value.__name__ == name and "viewcode-link" not in entries[path]:  # not of a second name
                sourceless.add(path)
    assert not missing
    assert not sourceless
