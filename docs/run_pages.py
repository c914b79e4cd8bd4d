"""Run the Python blocks of the pages, and write what they print and draw into the pages.

A block of kind ``text`` straight after a Python block holds what that block prints. A picture that a page shows is
saved by one of its blocks in the current folder, and lies in ``docs/pictures``. ``python docs/run_pages.py [PAGE ...]``
writes both anew; a test compares what is printed, and that each picture is drawn.
"""

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("**/*.md"))]
_BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[re.Match]:
    return list(_BLOCK.finditer(page.read_text()))


def run(page: Path) -> list[tuple[re.Match, str]]:
    """Run the blocks of a page in the current folder; return each with what it printed."""
    names: dict = {"__name__": "page"}
    found = []
    for block in blocks(page):
        printed = io.StringIO()
        line = page.read_text()[: block.start("code")].count("\n")
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + block["code"], str(page), "exec"), names)
        found.append((block, printed.getvalue()))
    return found


def rewritten(page: Path) -> str:
    """The text of a page with what its blocks print now."""
    text, end = "", 0
    for block, printed in run(page):
        if block["output"] is not None:
            text += page.read_text()[end : block.start("output")] + printed
            end = block.end("output")
    return text + page.read_text()[end:]


def pictures(page: Path) -> list[str]:
    """The names of the pictures that the blocks of a page draw."""
    shown = re.findall(r"!\[[^]]*\]\([./]*pictures/([\w.]+)\)", page.read_text())
    return [name for name in shown if any(name in block["code"] for block in blocks(page))]


def main() -> None:
    chosen = [Path(name).resolve() for name in sys.argv[1:]] or PAGES
    sys.path.insert(0, str(DOCS.parent))
    for page in chosen:
        if blocks(page):
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
                page.write_text(rewritten(page))
                for name in pictures(page):
                    shutil.copyfile(name, DOCS / "pictures" / name)
                os.chdir(DOCS)


if __name__ == "__main__":
    main()
