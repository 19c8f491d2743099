"""Requests to remote stores: one object, whole or a range of it, asked for once.

HTTP is spoken here, because a range has to be checked before its body is read: fsspec takes whatever comes. All other
schemes go through their fsspec file system. What is worth another attempt is a `TransientError`; the caller repeats it.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from typing import Any

import fsspec
from fsspec.asyn import sync

from pipeline.config.errors import UserError
from pipeline.config.location import RemotePath
from pipeline.data.retry import FetchError, RetryPolicy, TransientError

_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_UNSATISFIED_RANGE = re.compile(r"bytes \*/(\d+)")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "fsspec[http]", "https": "fsspec[http]"}
# What is read whole: descriptions, commit records and manifests. A manifest has some hundred bytes a photo.
_WHOLE_BYTES = 64 << 20
_MAX_CONNECTIONS = 64
_lock = threading.Lock()
_filesystems: dict[tuple[int, str], Any] = {}


class ChangedObjectError(UserError):
    """An object is not the one that the data set describes: it was replaced, or cut."""


@dataclass(frozen=True)
class Version:
    """What tells an object from a later one of the same name."""

    size: int
    """Bytes."""
    etag: str
    """As the store gave it; empty where it gives none."""


def open_filesystem(scheme: str) -> Any:
    """The fsspec file system of a scheme, one for the process.

    Raises:
        UserError: the package that speaks to such a store is missing.
    """
    key = os.getpid(), scheme  # a forked child has no loop to run the parent's on
    with _lock:
        if key not in _filesystems:
            options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
            if scheme == "s3":
                # Attempts are counted by us: three layers of retries multiply.
                options["config_kwargs"] = {
                    "retries": {"total_max_attempts": 1},
                    "max_pool_connections": _MAX_CONNECTIONS,
                }
            try:
                filesystem = fsspec.filesystem(scheme, **options)
            except ImportError as error:
                raise UserError(
                    f"{scheme}://", f"cannot be opened ({error})", remedy=f"pip install {_PACKAGES.get(scheme, scheme)}"
                ) from None
            if scheme == "s3":
                filesystem.retries = 1
            _filesystems[key] = filesystem
        return _filesystems[key]


def fetch(place: RemotePath, policy: RetryPolicy) -> bytes:
    """Read a whole object, once.

    Raises:
        FileNotFoundError: there is none.
        TransientError: worth another attempt.
        FetchError: not worth one.
        UserError: access is denied, or a package is missing.
    """
    filesystem = open_filesystem(place.scheme)
    if place.scheme in ("http", "https"):
        content, _ = _sync(place, filesystem, policy.timeout_s(_WHOLE_BYTES), _http_get, policy, None, None)
        return bytes(content)
    return _cat(place, filesystem, policy.timeout_s(_WHOLE_BYTES), {})


def fetch_range(place: RemotePath, start: int, stop: int, known: Version, policy: RetryPolicy) -> tuple[bytes, Version]:
    """Read bytes start … stop - 1 of an object, once.

    Args:
        place: the object.
        start: first byte.
        stop: the byte after the last, at most `known.size`.
        known: what the object has to be; an empty tag is not compared.
        policy: its timeouts.

    Returns:
        Exactly stop - start bytes, and the version that they are of.

    Raises:
        ChangedObjectError: the object has another size or tag.
        FileNotFoundError, TransientError, FetchError, UserError: see `fetch`. A UserError too for a server that
            answers a range with the whole object.
    """
    filesystem = open_filesystem(place.scheme)
    timeout_s = policy.timeout_s(stop - start)
    if place.scheme in ("http", "https"):
        content, version = _sync(place, filesystem, timeout_s, _http_get, policy, (start, stop), known)
    else:
        version = known if known.etag else stat(place, policy)
        _require_same(place, known, version)
        content = _cat(place, filesystem, timeout_s, {"start": start, "end": stop})
    if len(content) != stop - start:
        raise TransientError(f"{len(content)} of {stop - start} bytes from {start} came")
    return content, version


def stat(place: RemotePath, policy: RetryPolicy) -> Version:
    """Size and tag of an object that is not behind HTTP, where each answer tells them.

    Raises:
        FileNotFoundError, TransientError, FetchError, UserError: see `fetch`.
    """
    filesystem = open_filesystem(place.scheme)
    if filesystem.async_impl:
        info = _sync(place, filesystem, policy.timeout_s(0), lambda _, url: filesystem._info(url))
    else:
        info = filesystem.info(str(place))
    return Version(int(info["size"]), str(info.get("ETag") or info.get("etag") or ""))


def _require_same(place: RemotePath, known: Version, found: Version) -> None:
    if found.size != known.size:
        raise ChangedObjectError(
            place,
            f"has {found.size:,} bytes",
            f"{known.size:,}, as its commit record says",
            "it was replaced or cut: copy the data set there again, with its dataset.json",
        )
    if known.etag and found.etag != known.etag:
        raise ChangedObjectError(
            place, f"was replaced while it was read (tag {found.etag}, was {known.etag})", remedy="start again"
        )


def _cat(place: RemotePath, filesystem: Any, timeout_s: float, limits: dict[str, int]) -> bytes:
    if not filesystem.async_impl:
        return bytes(filesystem.cat_file(str(place), **limits))
    return bytes(_sync(place, filesystem, timeout_s, lambda _, url: filesystem._cat_file(url, **limits)))


def _sync(place: RemotePath, filesystem: Any, timeout_s: float, request: Any, *arguments: Any) -> Any:
    """Run one request on fsspec's loop and sort its failures."""
    try:
        return sync(filesystem.loop, request, filesystem, str(place), *arguments, timeout=timeout_s)
    except (FileNotFoundError, TransientError, FetchError, UserError):
        raise
    except PermissionError as error:
        raise _denied(place, str(error)) from None
    except TimeoutError as error:
        # fsspec puts a timeout of its own in place of the library's, which says more
        raise TransientError(str(error.__cause__ or "") or f"no answer within {timeout_s:.0f} s") from error
    except Exception as error:
        # Each protocol's library has exceptions of its own, and most are of the network. Repeating a request that
        # will never succeed costs some attempts; giving up on one that would costs the run.
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            raise _denied(place, str(error)) from None
        text = str(error).splitlines()[0] if str(error) else "no details"
        raise TransientError(f"{type(error).__name__}: {text}") from error


def _denied(place: RemotePath, why: str) -> UserError:
    return UserError(place, f"access denied ({why})", remedy="check the credentials in the environment")


async def _http_get(
    filesystem: Any, url: str, policy: RetryPolicy, limits: tuple[int, int] | None, known: Version | None
) -> tuple[bytes, Version]:
    import aiohttp

    session = await filesystem.set_session()
    place = RemotePath(url)
    # a compressed answer has other offsets
    headers = {"Accept-Encoding": "identity"}
    if limits is not None:
        headers["Range"] = f"bytes={limits[0]}-{limits[1] - 1}"
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=policy.connect_timeout_s, sock_read=policy.stall_timeout_s)
    async with session.get(url, headers=headers, timeout=timeout) as answer:
        _check_status(place, answer, limits, known)
        etag = answer.headers.get("ETag", "")
        if limits is None:
            content = await answer.read()
            return content, Version(len(content), etag)
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if match is None or (int(match[1]), int(match[2]) + 1) != limits:
            raise TransientError(f"Content-Range {answer.headers.get('Content-Range')!r} for {headers['Range']}")
        version = Version(int(match[3]), etag)
        assert known is not None
        _require_same(place, known, version)
        if answer.content_length not in (None, limits[1] - limits[0]):
            raise TransientError(f"Content-Length {answer.content_length} for {headers['Range']}")
        # never more than was asked for, whatever the server sends
        pieces = []
        remaining = limits[1] - limits[0]
        while remaining and (piece := await answer.content.read(remaining)):
            pieces.append(piece)
            remaining -= len(piece)
        return b"".join(pieces), version


def _check_status(place: RemotePath, answer: Any, limits: tuple[int, int] | None, known: Version | None) -> None:
    status = answer.status
    if status in (404, 410):
        raise FileNotFoundError(f"{place}: not found (HTTP {status})")
    if status in (401, 403):
        raise _denied(place, f"HTTP {status}")
    if status in _TRANSIENT_STATUS:
        wait = answer.headers.get("Retry-After", "")
        raise TransientError(f"HTTP {status} {answer.reason}", float(wait) if wait.isdecimal() else 0.0)
    if status == 416 and known is not None:
        size = _UNSATISFIED_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if size is not None:
            _require_same(place, known, Version(int(size[1]), answer.headers.get("ETag", "")))
    if limits is not None and status == 200:
        raise UserError(
            place,
            "its server ignores ranges and answers with the whole file",
            "a server that honours Range requests",
            "serve the data set from another, or copy it to a local disk",
        )
    if status != (200 if limits is None else 206):
        raise FetchError(f"{place}: HTTP {status} {answer.reason}")
