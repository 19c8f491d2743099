"""Where a data set stands: a folder, or a URL of an allowed scheme.

    parse_location("build/data")            a pathlib.Path
    parse_location("s3://bucket/faces")     a RemotePath

This module only names places; `pipeline.data.mirror` and `pipeline.data.store` read them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, PlainSerializer

from pipeline.config.errors import UserError

SCHEMES = ("http", "https", "s3", "gs", "gcs", "memory")
"""URLs that are opened; `memory` is fsspec's store inside one process, for tests."""

# One letter would be a drive; "::" chains file systems in fsspec, and a path that pathlib has seen has one slash only.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)(?:::|:/)")
_FORBIDDEN = re.compile(r"[\s\x00-\x1f\x7f\\]")


@dataclass(frozen=True)
class RemotePath:
    """A URL that is put together as a `PurePosixPath` is; it does nothing by itself."""

    url: str
    """Without a slash at the end."""

    def __truediv__(self, name: str) -> RemotePath:
        """The place below this one.

        Raises:
            UserError: a name that would leave this place, which a description from elsewhere might hold.
        """
        parts = name.split("/")
        if _FORBIDDEN.search(name) or any(part in ("", ".", "..") for part in parts) or set("?#%:") & set(name):
            raise UserError(self.url, f"names a file {name!r}", "letters, digits, _ and -")
        return RemotePath(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def scheme(self) -> str:
        return self.url.partition(":")[0]

    @property
    def name(self) -> str:
        """The last part, `train-000000.tar`."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its suffix, `train-000000`."""
        return self.name.rpartition(".")[0] or self.name

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.url.rpartition("/")[0])


Location = Path | RemotePath


def nearest_existing(path: Path) -> Path:
    """The path itself where it is there, else the nearest of its parents that is."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def user_cache() -> Path:
    """Where this project keeps what can be fetched again: `facemill` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "facemill"


def parse_location(place: str | os.PathLike[str] | RemotePath) -> Location:
    """Tell a folder from a URL; a URL that went through `pathlib`, as command lines do to it, is mended.

    Raises:
        UserError: a scheme that is not allowed (`pipe:` and chained file systems among them), or a URL with a
            password, a query, a fragment or `..` in it.
    """
    if isinstance(place, RemotePath):
        return place
    text = os.fspath(place)
    match = _URL.match(text)
    if match is None and not text.lower().startswith("pipe:"):
        return Path(place)
    scheme = text.partition(":")[0].lower()
    if scheme not in SCHEMES or "::" in text:
        remedy = "write the path itself" if scheme in ("file", "local") else ""
        shown = text.partition("://")[0] if "@" in text else text
        raise UserError(shown, f"{scheme}: is not opened", f"a folder or a URL of {', '.join(SCHEMES)}", remedy)
    rest = text[len(scheme) + 1 :].lstrip("/").rstrip("/")
    parts = urlsplit(f"{scheme}://{rest}")
    if "@" in parts.netloc:
        raise UserError(
            f"{scheme}://…@{parts.netloc.rpartition('@')[2]}",
            "a password in a URL would be written into configurations and messages",
            "a URL without one",
            "S3 and GCS take theirs from the environment",
        )
    if parts.query or parts.fragment or not parts.netloc or _FORBIDDEN.search(rest):
        raise UserError(f"{scheme}://{parts.netloc}", "not the URL of a folder", "no query, fragment or blank in it")
    if any(unquote(part) in (".", "..") for part in parts.path.split("/")):
        raise UserError(text, "leaves its own folder", "a URL without . and .. in it")
    return RemotePath(f"{scheme}://{rest}")


def _validate(value: Any) -> Any:
    if not isinstance(value, str | os.PathLike | RemotePath):
        raise ValueError("a path or a URL is expected")
    # A UserError passes through pydantic as it is: an error of a field would show the value, with its password.
    return parse_location(value)


DataLocation = Annotated[Path | RemotePath, BeforeValidator(_validate), PlainSerializer(str)]
"""A field of a configuration that holds a `Location`."""
