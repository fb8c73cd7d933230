"""Settings of the generator of the pages; `make docs` runs it."""

import pathlib
import sys

from docutils import nodes

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import api
import equations

import steppo_jax

project = "steppo_jax"
release = steppo_jax.__version__
author = ""
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "index"
default_role = "code"
html_theme = "furo"
html_title = "steppo_jax"
html_static_path = [str(pathlib.Path(__file__).parent / "_static")]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
# Pages are read from a disk without a network: no font or script is fetched.
html_theme_options = {"navigation_with_keys": True}
highlight_language = "text"
myst_heading_anchors = 4
# Docstrings give shapes, which types do not.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 72
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries = False
# Two modules of one folder may use one name for records of their own.
suppress_warnings = ["ref.python"]


def _docstring(app, what, name, member, options, lines):
  lines[:] = api.docstring(list(lines))


def _equations(app, tree):
  """Sets blocks that are equations; all others stay as they are."""
  for block in list(tree.findall(nodes.literal_block)):
    plain = block.get("language", "text") in ("text", "default", "none")
    if plain and equations.is_equation(block.astext()):
      made = equations.mathml(block.astext())
      block.replace_self(nodes.raw("", made, format="html"))


def setup(app):
  app.connect("autodoc-process-docstring", _docstring)
  app.connect("doctree-read", _equations)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
