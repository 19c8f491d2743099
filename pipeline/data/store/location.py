"""Addresses of data sets, and the mirror of what is small: description, manifests, index, tombstones.

A data set of an object store is opened through a local folder that holds everything but its tars, by digest; so all
that reads manifests works as it does on a local one. Only the reader of photos goes to the store.
"""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.data.store.cache import CacheOptions

# what fsspec opens, and the package that it needs for it
SCHEMES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
TIMEOUT_S = 30.0
_SMALL = ("index.arrow", "tombstones.parquet")


@dataclass(frozen=True)
class RemoteData:
    """A data set that is not on this machine."""

    url: str
    cache: CacheOptions | None


def default_cache_folder() -> Path:
    """Where mirrors stand unless a configuration says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "facemill"


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a data set's path is an address of another machine.

    Raises:
        UserError: an address of a kind that is not opened, `pipe:` for instance.
    """
    text = os.fspath(path)
    scheme, separator, _ = text.partition("://")
    if not separator:
        # `pipe:cat x` runs a command where webdataset opens it
        scheme, separator, _ = text.partition(":")
        if separator and scheme == "pipe":
            raise UserError(text, "a pipe: address would run a command", f"a folder, or {_schemes()}")
        return False
    if scheme not in SCHEMES:
        raise UserError(text, f"addresses of the kind {scheme}:// are not opened", f"a folder, or {_schemes()}")
    return True


def open_store(url: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Raises:
        UserError: its package is not installed.
    """
    scheme = url.partition("://")[0]
    package = SCHEMES[scheme]
    if importlib.util.find_spec(package) is None:
        raise UserError(url, f"{scheme}:// needs the package {package}", remedy=f"pip install {package}")
    import fsspec

    options: dict[str, Any] = {}
    if package == "aiohttp":
        import aiohttp

        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=TIMEOUT_S)}
    elif package == "s3fs":
        # retries are ours: those of the client would multiply with them
        options["config_kwargs"] = {
            "connect_timeout": TIMEOUT_S,
            "read_timeout": TIMEOUT_S,
            "retries": {"max_attempts": 0},
        }
    fs, root = fsspec.core.url_to_fs(url.rstrip("/"), **options)
    return fs, root


def mirror(url: str, folder: Path) -> Path:
    """Bring what is small of a data set into a local folder; gives the folder to open.

    Description and tombstones are fetched anew each time: a withdrawal must be heard. Manifests are fetched once.

    Raises:
        UserError: it cannot be reached, or is no finished data set.
    """
    fs, root = open_store(url)
    description = _fetch(fs, f"{root}/dataset.json", f"{url}/dataset.json", "a finished data set")
    try:
        info = json.loads(description)
        digest, splits = str(info["digest"]), info["splits"]
        names = [shard for split in splits.values() for shard in split["shards"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{url}/dataset.json", "not a data set description") from None
    if not digest.isalnum() or not all(name.replace("-", "").isalnum() for name in names):
        raise UserError(f"{url}/dataset.json", "names that are none", "a digest and shards of letters and digits")
    place = folder / "mirrors" / digest[:24]
    (place / "manifest").mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not (place / "manifest" / f"{name}.parquet").is_file()]
    for name in missing:
        path = f"manifest/{name}.parquet"
        _write(place / path, _fetch(fs, f"{root}/{path}", f"{url}/{path}", "the manifest of a shard"))
    for name in _SMALL:
        if name == "index.arrow" and (place / name).is_file():
            continue
        found = _fetch_if_there(fs, f"{root}/{name}", f"{url}/{name}")
        if found is not None:
            _write(place / name, found)
        else:
            (place / name).unlink(missing_ok=True)
    _write(place / "dataset.json", description)
    return place


def _fetch(fs: Any, path: str, address: str, what: str) -> bytes:
    found = _fetch_if_there(fs, path, address)
    if found is None:
        raise UserError(address, "no such file", what)
    return found


def _fetch_if_there(fs: Any, path: str, address: str) -> bytes | None:
    last = ""
    for _ in range(3):
        try:
            content: bytes = fs.cat_file(path)
            return content
        except FileNotFoundError:
            return None
        except Exception as error:  # each store has errors of its own
            lines = str(error).strip().splitlines()
            last = lines[0] if lines else type(error).__name__
    raise UserError(address, f"cannot be reached ({last})", remedy="check the address, the network and the credentials")


def _write(path: Path, content: bytes) -> None:
    """Several ranks may mirror at once: each writes aside, the last rename wins with the same bytes."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _schemes() -> str:
    return ", ".join(f"{scheme}://" for scheme in SCHEMES)
