"""Sphinx extension: a public name of the package without a docstring is a warning, and so fails the build.

It also turns the name of a chapter in a docstring, "chapter ``the-equivalence``", into a link to it.

A function, class, method or property needs a docstring; a module's constant a `#:` comment or a string below
it; a class's annotated field one of these, or a line or its name in code in the class's docstring.
"""

import ast
import inspect
import re
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

logger = logging.getLogger(__name__)


def undocumented(module):
    """Yield the module's public names that nothing describes."""
    analyzer = ModuleAnalyzer.for_module(module.__name__)
    comments = analyzer.find_attr_docs()

    def search(body, owner, about):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                name = f"{owner}.{node.name}".lstrip(".")
                if not (ast.get_docstring(node) or documented_elsewhere(node)):
                    yield name
                if isinstance(node, ast.ClassDef):
                    yield from search(node.body, name, ast.get_docstring(node) or "")
            elif isinstance(node, ast.AnnAssign) or (isinstance(node, ast.Assign) and not owner):
                for target in getattr(node, "targets", None) or [node.target]:
                    if isinstance(target, ast.Name) and not target.id.startswith("_"):
                        described = re.search(rf"^\s*{target.id}\b.*:|``{target.id}``", about, flags=re.MULTILINE)
                        if not described and (owner, target.id) not in comments:
                            yield f"{owner}.{target.id}".lstrip(".")

    return search(ast.parse(analyzer.code).body, "", "")


def documented_elsewhere(node):
    """Whether it is a property's setter or one of several signatures: the docstring is with the other."""
    return any(ast.unparse(d).split(".")[-1] in ("setter", "overload") for d in node.decorator_list)


def check(app, what, name, obj, options, lines):
    if what != "module" or name.split(".")[0] != "companion":
        return
    if not inspect.getdoc(obj):
        logger.warning("undocumented module: %s", name)
    for missing in undocumented(obj):
        logger.warning("undocumented public name: %s.%s", name, missing)


def link_chapters(app, what, name, obj, options, lines):
    pages = {path.stem[3:]: path.stem for path in Path(app.srcdir, "notebooks").glob("??-*.ipynb")}

    def link(match):
        page = pages.get(match[1])
        return f"chapter :doc:`/notebooks/{page}`" if page else match[0]

    lines[:] = re.sub(r"chapter\s+``([a-z0-9-]+)``", link, "\n".join(lines)).split("\n")


def setup(app):
    # Napoleon (at the usual 500) would read the words before a colon in a constant's or a property's
    # description as its type, and look for their page: those descriptions go round it.
    kept = {}

    def before(app, what, name, obj, options, lines):
        if what in ("attribute", "data", "property"):
            kept[name] = list(lines)
            lines.clear()

    def after(app, what, name, obj, options, lines):
        if name in kept:
            lines[:] = kept.pop(name)

    app.connect("autodoc-process-docstring", check, priority=300)
    app.connect("autodoc-process-docstring", link_chapters, priority=350)
    app.connect("autodoc-process-docstring", before, priority=400)
    app.connect("autodoc-process-docstring", after, priority=600)
    return {"parallel_read_safe": True}
