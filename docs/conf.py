"""Sphinx configuration: `make docs` builds `docs/_build/html` and treats every warning as an error."""

from datastill._version import __version__

project = "datastill"
author = "The datastill developers"
copyright = "2026, The datastill developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"datastill {version}"
