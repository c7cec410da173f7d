"""The files of the page, which the service serves and `convoy demo` copies."""

from collections.abc import Mapping
from importlib import resources

HTML = "index.html"
BASE = "base.css"
"""Colours and text that every page and report of Convoy shares; the file is that of `convoy.pages`."""

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}


def read(names: tuple[str, ...]) -> Mapping[str, bytes]:
    """Read files of the page by name."""
    page, shared = resources.files("convoy.serving") / "page", resources.files("convoy.pages")
    return {name: (shared / "page.css.j2" if name == BASE else page / name).read_bytes() for name in names}
