"""Sphinx configuration: `make docs` builds `docs/_build/html` and treats every warning as an error."""

from pathlib import Path

from datastill._version import __version__
from datastill.core.registry import methods
from datastill.experiments.leaderboard import write_leaderboard
from datastill.experiments.ledger import read_ledger

project = "datastill"
author = "The datastill developers"
copyright = "2026, The datastill developers"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
smartquotes = False  # `--ipc` in a message is two dashes

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 3
# The notebooks of the gallery run when the pages are built; an error in one ends the build.
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_merge_streams = True
# The list of methods on methods/index.md, from the registry: a new method's page appears by existing.
myst_substitutions = {
    "methods_table": "\n".join(
        ["| method | family | what it does |", "|---|---|---|"]
        + [f"| [{i.name}]({i.name.replace('-', '_')}.md) | {i.family} | {i.summary} |" for i in methods().values()]
    )
}

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["notebooks.css"]
html_title = f"datastill {version}"


def setup(app):
    """The page of results, from the files in the repository."""

    def build(app, exception):
        if exception is None and app.builder.format == "html":
            results = Path(__file__).parents[1] / "results"
            write_leaderboard(Path(app.outdir) / "leaderboard.html", read_ledger(results))

    app.connect("build-finished", build)
