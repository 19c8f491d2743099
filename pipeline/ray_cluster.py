"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pipeline.config.errors import UserError

_CONNECT_S = 5.0
_REMEDY = "start one: ray start --head"


def connect(address: str | None, runtime_env: Mapping[str, Any] | None = None, **local: Any) -> str:
    """Join the cluster at an address; gives the dashboard's HOST:PORT, empty where there is none.

    Args:
        address: `auto`, HOST:PORT or ray://HOST:PORT; None starts a cluster here.
        runtime_env: of all processes of ours on the cluster, see Ray's documentation.
        local: what `ray.init` is told of a cluster that is started here.

    Raises:
        UserError: there is no such cluster, or none can be started.
    """
    if address is not None:
        check_address(address)
    import ray

    # without "local" Ray would join whatever cluster it finds on this machine
    options = {"address": address} if address is not None else {"address": "local", **local}
    try:
        context = ray.init(log_to_driver=False, logging_level="ERROR", runtime_env=runtime_env, **options)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if address is None:
            raise UserError("Ray", f"does not start here ({reason})") from None
        raise UserError("--address", f"{address}: {reason}", "a running Ray cluster", _REMEDY) from None
    url: str = context.dashboard_url
    return url or ""


def check_address(address: str) -> None:
    """Knock at the cluster's port: Ray itself tries for a minute before it gives up.

    Raises:
        UserError: it is no address, or nobody answers there.
    """
    if address == "auto":
        return
    expected = "auto, or HOST:PORT of a running Ray cluster"
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise UserError("--address", repr(address), expected)
    try:
        socket.create_connection((host, port), _CONNECT_S).close()
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise UserError("--address", f"{address}: {reason}", expected, _REMEDY) from None
