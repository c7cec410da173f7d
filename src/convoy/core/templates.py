"""The one Jinja environment: reports, pages and the model card are rendered from `*.j2` beside the code that fills them."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2

from convoy.core import escaping

Filter = Callable[..., Any]

STYLE_PACKAGE = "convoy.pages"
"""Holds `page.css.j2`, the style of every page; no stage that makes a model depends on it."""


def render(
    package: str, template: str, context: Mapping[str, Any], filters: Mapping[str, Filter] | None = None
) -> str:
    """Render a template of a package; HTML is escaped, a missing value is an error.

    Args:
        package: the package whose folder holds the template, such as `convoy.gate`.
        template: its name, such as `verdict.html.j2`; may include `page.css.j2`, the style of every page.
        context: values of the template's variables.
        filters: further Jinja filters.

    Raises:
        jinja2.UndefinedError: the context lacks a value.
    """
    html = ".html." in template
    packages = (package, STYLE_PACKAGE) if html else (package,)
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, ".") for name in packages]),
        autoescape=html,  # noqa: S701 (Markdown is no HTML)
        undefined=jinja2.StrictUndefined,
        # Names cannot turn the direction of a page's text; a plain str only: Markup is the templates' own.
        finalize=lambda value: escaping.lines(value) if html and type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= dict(filters or {})
    return environment.get_template(template).render(context)
