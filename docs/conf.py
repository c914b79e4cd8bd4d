"""The documentation site: ``pip install ".[docs]" && sphinx-build -W docs docs/_build``."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library of this clone, installed or not

# MathJax as files of a package, so that formulas need no other host
package = find_spec("sphinx-mathjax-offline")
if package is None or package.origin is None:
    raise ModuleNotFoundError('the site needs sphinx-mathjax-offline; write pip install ".[docs]"')
MATHJAX = Path(package.origin).parent / "static"

project = "fnn"
author = "The fnn authors"
copyright = "2026, The fnn authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 88
exclude_patterns = ["_build", "mathjax/a11y", "mathjax/sre", "mathjax/*svg*", "mathjax/*full*", "mathjax/mml*"]
html_theme = "furo"
html_title = "fnn"
html_static_path = ["_static", str(MATHJAX)]
mathjax_path = "mathjax/tex-chtml.js"
html_css_files = ["site.css"]


def escape(app, what, name, obj, options, lines):
    """Docstrings write |x| and (out, in, *kernel) as mathematics does; reStructuredText reads those as markup."""
    if lines and lines[0].startswith("Alias for field number"):  # what Python says of each field of a NamedTuple
        lines.clear()
    for i, line in enumerate(lines):
        if not line.lstrip().startswith(">>>"):
            pieces = re.split(r"(``.*?``)", line)
            lines[i] = "".join(p if p.startswith("``") else re.sub(r"([|*])", r"\\\1", p) for p in pieces)


def back_links(app, pagename, templatename, context, doctree):
    """Pages of sources link back as if all names of a file had one room; those of the top level have none."""
    if pagename.startswith("_modules/"):
        context["body"] = re.sub(r'(top_level\.html#fnn\.)(?:\w+\.)+(\w+")', r"\1\2", context["body"])


def setup(app):
    app.connect("autodoc-process-docstring", escape, priority=900)
    app.connect("html-page-context", back_links)
