"""The documentation site: ``pip install ".[docs]" && sphinx-build -W docs docs/_build``."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library of this clone, installed or not

project = "fnn"
author = "The fnn authors"
copyright = "2026, The fnn authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "fnn"


def escape(app, what, name, obj, options, lines):
    """Docstrings write |x| and (out, in, *kernel) as mathematics does; reStructuredText reads those as markup."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith(">>>"):
            pieces = re.split(r"(``.*?``)", line)
            lines[i] = "".join(p if p.startswith("``") else re.sub(r"([|*])", r"\\\1", p) for p in pieces)


def setup(app):
    app.connect("autodoc-process-docstring", escape, priority=900)
