"""The documentation site: ``pip install ".[docs]" && sphinx-build -W docs docs/_build``."""

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library of this clone, installed or not

logger = logging.getLogger(__name__)

project = "fnn"
author = "The fnn authors"
copyright = "2026, The fnn authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 88
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "fnn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"


def escape(app, what, name, obj, options, lines):
    """Docstrings write |x| and (out, in, *kernel) as mathematics does; reStructuredText reads those as markup."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith(">>>"):
            pieces = re.split(r"(``.*?``)", line)
            lines[i] = "".join(p if p.startswith("``") else re.sub(r"([|*])", r"\\\1", p) for p in pieces)


# docutils puts what stands under a brace to the right of it
UNDER_BRACE = re.compile(
    r"^( *)<msub>\n(\1  <munder>\n(?:\1    .*\n)+?\1    <mo>⏟</mo>\n\1  </munder>\n(?:\1  .*\n)+?)\1</msub>",
    re.MULTILINE,
)

# commands that docutils does not know, and what it calls them
SAME = {"dots": r"\ldots", "big": r"\bigr", "Big": r"\Bigr", "bigg": r"\biggr", "Bigg": r"\Biggr"}


def mathml(node, **options):
    """Formulas as MathML, which browsers draw by themselves: no script, and no request to another host."""
    try:
        formula = re.sub(r"\\(dots|[Bb]igg?)(?![A-Za-z])", lambda name: SAME[name[1]], node.astext())
        return UNDER_BRACE.sub(r"\1<munder>\n\2\1</munder>", tex2mathml(formula, **options))
    except MathError as error:
        logger.warning("%s in the formula %s", error, node.astext(), location=node)
        return ""


def inline_math(writer, node):
    writer.body.append(mathml(node))
    raise nodes.SkipNode


def block_math(writer, node):
    writer.body.append(f'<div class="math">{mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def back_links(app, pagename, templatename, context, doctree):
    """Pages of sources link back as if all names of a file had one room; those of the top level have none."""
    if pagename.startswith("_modules/"):
        context["body"] = re.sub(r'(top_level\.html#fnn\.)(?:\w+\.)+(\w+")', r"\1\2", context["body"])


def setup(app):
    app.connect("autodoc-process-docstring", escape, priority=900)
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("html-page-context", back_links)
