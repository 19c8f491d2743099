"""What every HTML page of ours must be: closed, and complete in itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Tags(HTMLParser):
    """Collects start tags with their attributes, and checks that elements close."""

    VOID = frozenset({"meta", "img", "link", "br", "wbr"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_self_contained(page: str, num_scripts: int = 0) -> Tags:
    """No address leads out of the file, nothing is a script but the page's own, and every element is closed."""
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert [tag for tag, _ in tags.tags].count("script") == num_scripts
    for tag, attributes in tags.tags:
        assert tag not in {"link", "iframe", "object"}
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "url(" not in page
    assert "http" not in re.sub(r"http-equiv", "", page)
    return tags
