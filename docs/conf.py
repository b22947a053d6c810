"""How Sphinx builds this site: ``sphinx-build -W -b html docs docs/build/html``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import pyro_gebm

project = "pyro_gebm"
author = "The pyro_gebm developers"
project_copyright = author
release = version = pyro_gebm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",  # formulas, rendered here and now: no script, no network
    "plain_docstrings",
    "commands",  # the command line, from its parser
    "public_names",
    "fields",
    "example_scripts",
]
exclude_patterns = ["build", "_ext", "figures"]

smartquotes = False  # "--out" is no dash

html_theme = "furo"
html_title = f"pyro_gebm {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "show-inheritance": True, "no-value": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # fields have their place in the class
napoleon_custom_sections = [("Warns", "params_style")]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
nitpicky = False
