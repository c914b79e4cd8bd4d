"""The documentation site: ``pip install ".[docs]" && sphinx-build -W docs docs/_build``."""

project = "fnn"
author = "The fnn authors"
copyright = "2026, The fnn authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "fnn"
