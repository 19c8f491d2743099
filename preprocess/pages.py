"""What the HTML pages share: one style for light and dark, thumbnails inside the page, and templates that escape."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.data.dataset_format import shard_paths

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --page: #f6f7f9; --card: #fff; --line: #d9dee5;
  --accent: #2a6fdb; --warn: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7ebf0; --soft: #9aa6b5; --page: #12161c; --card: #1b212a;
  --line: #313a46; --accent: #6ea8ff; --warn: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; font: 15px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--page); }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0 .75rem; } .soft, figcaption { color: var(--soft); } .warn { color: var(--warn); }
code { font-size: .9em; overflow-wrap: anywhere; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(15.5rem, 1fr)); gap: .8rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem; margin: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; } .pair img { width: 100%; }
img { display: block; border-radius: 4px; image-rendering: auto; background: var(--line); }
figcaption { font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere; } figcaption b { color: var(--ink); }
.sheet { display: flex; flex-wrap: wrap; gap: 4px; } .sheet img { width: 72px; height: 72px; }
svg { width: 100%; height: auto; display: block; } svg .bar { fill: var(--accent); }
svg line { stroke: var(--line); }
a { color: var(--accent); } svg text { fill: var(--soft); font: 13px system-ui, sans-serif; }
@media print { body { background: none; } .card { break-inside: avoid; } }
"""

_BASE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
{% block body %}{% endblock %}
</body>
</html>
"""


def render(template: str, title: str, **values: Any) -> bytes:
    """Fill a template, the markup of a page's body; all text is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    base = environment.from_string(_BASE)
    page = "{% extends base %}{% block body %}" + template + "{% endblock %}"
    return environment.from_string(page).render(base=base, style=Markup(_STYLE), title=title, **values).encode()


def crop_bytes(data: Path, photo: Mapping[str, Any]) -> bytes | None:
    """A crop's JPEG, from the manifest's row; None where it cannot be read or is damaged."""
    try:
        with open(shard_paths(data, photo["split"], photo["shard"])["tar"], "rb") as tar:
            tar.seek(photo["jpg_offset"])
            content = tar.read(photo["jpg_size"])
    except OSError:
        return None
    return content if zlib.crc32(content) == photo["jpg_crc32"] else None


def crop_address(data: Path, photo: Mapping[str, Any]) -> str:
    """A crop as a `data:` address; empty where there is none."""
    content = crop_bytes(data, photo)
    return "" if content is None else "data:image/jpeg;base64," + base64.b64encode(content).decode("ascii")
