"""Configure Sphinx for the book. `make book` builds it; nothing in a page comes from the network."""

from pathlib import Path

import ziamath
from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.application import Sphinx

FONTS = Path(ziamath.__file__).parent / "fonts"

project = "fedexit"
author = "the fedexit authors"
html_title = "fedexit"
extensions = ["myst_nb"]
root_doc = "index"
exclude_patterns = ["docs/*.ipynb"]  # to download, not to read
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]  # docs/api.md shows signatures with their arguments explained
html_theme = "sphinx_book_theme"
html_static_path = [str(Path(__file__).parent / "static"), str(FONTS)]
html_css_files = ["book.css"]
html_copy_source = True
html_show_copyright = False
html_context = {"default_mode": "auto"}  # light or dark as the reader's system has it
html_theme_options = {
    "navbar_persistent": [],
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "use_download_button": True,
    "use_fullscreen_button": False,
}


def mathml(translator, node) -> None:
    """Write a formula as MathML, which browsers draw by themselves."""
    block = node.tagname == "math_block"
    text = convert(node.astext(), display="block" if block else "inline")
    translator.body.append(f'<div class="formula">{text}</div>' if block else text)
    raise SkipNode


def setup(app: Sphinx) -> None:
    """Draw formulas with MathML."""
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))


html_math_renderer = "mathml"
