"""How Sphinx renders what `build.py` lays in front of it."""

project = "cjm-worker-ext"
copyright = "2026 onwards, cjm-worker-ext maintainers"  # noqa: A001  - the name that Sphinx reads

extensions = ["myst_nb", "sphinx_copybutton"]
nb_execution_mode = "off"  # build.py has run every notebook, with the cells that readers do not see
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
exclude_patterns = ["_quarto.yml", "nbdev.yml", "**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_use_index = False  # no Sphinx domain is used, so it would be an empty page
pygments_style = "default"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"
