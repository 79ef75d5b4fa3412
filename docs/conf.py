"""How Sphinx makes the site of these pages: ``make docs``. Nothing is fetched, and a warning is an error."""

import os
import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))

os.environ["SRUP_BACKEND"] = "python"  # whose docstrings are the contract of both

import srup

project = "srup"
author = "the srup contributors"
copyright = "the srup contributors"
version = release = srup.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "site_links",
    "site_diagrams",
    "site_reference",
]
exclude_patterns: Final = ["build"]
suppress_warnings = [
    "myst.xref_missing",  # anchors in tables, which Sphinx does not know; check_site.py does
    "ref.python",  # several classes have an attribute named like a built-in type
]

myst_enable_extensions = ["attrs_inline", "deflist", "fieldlist"]
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

autodoc_default_options = {
    "members": True,
    "inherited-members": "object, BaseException, Exception, int, tuple",  # but for what these have
}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # as they are written: of a function, its name
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"

html_theme = "furo"
html_title = f"srup {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"source_repository": "", "navigation_with_keys": True}
