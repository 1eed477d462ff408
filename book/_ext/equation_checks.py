"""Sphinx extension of this book: each numbered equation has a link to the cell that checks it.

A cell checks an equation if it calls ``check(..., eq="eq-name")``. Such a cell of the equation's own chapter is taken
before one of another.
"""

import re

from docutils import nodes


def labels_in(code: str) -> set[str]:
    """The equations that the code of a cell names, which it does to check them.

    >>> sorted(labels_in('check("a", 0, below=1, eq=("eq-a", "eq-b")); check("c", 0, 1, eq="eq-c")'))
    ['eq-a', 'eq-b', 'eq-c']
    """
    return set(re.findall(r"[\"'](eq-[\w-]+)[\"']", code))


def checks(env) -> dict[str, dict[str, str]]:
    """Label of an equation -> page -> place of the first cell there that checks it."""
    if not hasattr(env, "equation_checks"):
        env.equation_checks = {}
    return env.equation_checks


def forget(app, env, docname) -> None:
    for places in checks(env).values():
        places.pop(docname, None)


def merge(app, env, docnames, other) -> None:
    for label, places in checks(other).items():
        checks(env).setdefault(label, {}).update(places)


def find_checks(app, doctree) -> None:
    """Give each cell that checks an equation a place of its own, and remember it."""
    docname = app.env.docname
    for cell in doctree.findall(lambda n: isinstance(n, nodes.container) and "cell" in n.get("classes", ())):
        code = "\n".join(block.astext() for block in cell.findall(nodes.literal_block))
        for label in sorted(labels_in(code)):
            place = f"check-{label}"
            if docname not in checks(app.env).setdefault(label, {}):
                checks(app.env)[label][docname] = place
                cell["ids"].append(place)


def link_checks(app, doctree, docname) -> None:
    """Below each equation with a label, a link to its check."""
    if app.builder.format != "html":
        return
    for block in list(doctree.findall(nodes.math_block)):
        places = checks(app.env).get(block.get("label"), {})
        if places:
            page = docname if docname in places else min(places)
            address = app.builder.get_relative_uri(docname, page) if page != docname else ""
            link = nodes.reference("", "its check", internal=True, refuri=f"{address}#{places[page]}")
            link["reftitle"] = f"the cell that checks {block['label']}"
            paragraph = nodes.paragraph("", "", link, classes=["equation-check"])
            block.parent.insert(block.parent.index(block) + 1, paragraph)


def setup(app):
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    app.connect("doctree-read", find_checks)
    app.connect("doctree-resolved", link_checks)
    return {"version": "0.1", "parallel_read_safe": True, "parallel_write_safe": True}
