"""What the HTML reports share: templates that escape, one look (`page.html.jinja`), commands laid out to be read."""

from __future__ import annotations

import base64
import hashlib
import shlex
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.evaluate.charts import number


def render_page(package: str, template: str, script: str = "", **values: Any) -> str:
    """Fill a template that extends `page.html.jinja`; every text is escaped.

    Args:
        package: where the template's file lies.
        template: its name.
        script: JavaScript for the end of the page. The page lets this script run, by its digest, and no other.
        values: what the template refers to.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("pipeline.evaluate", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = number
    environment.filters["cost"] = multiply_adds
    environment.filters["one_option_a_line"] = one_option_a_line
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii") if script else ""
    return environment.get_template(template).render(script=Markup(script), script_digest=digest, **values)


def multiply_adds(count: int) -> str:
    """Multiply-adds in billions, or in millions below a tenth of one."""
    return f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.1f} million"


def one_option_a_line(command: str) -> str:
    """A shell command with its options on lines of their own, to be read and copied."""
    lines: list[list[str]] = [[]]
    for word in shlex.split(command):
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n    ".join(shlex.join(line) for line in lines)
