"""The newest metrics on an HTTP port, for Prometheus to collect."""

from __future__ import annotations

import re
from typing import Any

from pipeline.config.errors import UserError
from pipeline.monitor.sink import Record

PREFIX = "facemill_"


class ToPrometheus:
    """One gauge a metric, `facemill_NAME`, on `/metrics` at all addresses of the machine.

    Raises:
        UserError: the port is in use.
    """

    is_remote = False

    def __init__(self, port: int) -> None:
        from prometheus_client import CollectorRegistry, Gauge, start_http_server

        self._make_gauge, self._registry = Gauge, CollectorRegistry()
        self._gauges: dict[str, Any] = {}
        try:
            self._server, self._thread = start_http_server(port, registry=self._registry)
        except OSError as error:
            where = "monitor.prometheus_port"
            raise UserError(where, f"{port}: {error.strerror}", "a free port", f"set another {where}") from None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_port)

    @property
    def opening_line(self) -> str:
        return f"metrics for Prometheus on port {self.port}"

    def write(self, values: Record) -> None:
        for name, value in values.items():
            if name not in self._gauges:
                label = PREFIX + re.sub(r"\W", "_", name, flags=re.ASCII)
                self._gauges[name] = self._make_gauge(label, f"{name} of metrics.jsonl", registry=self._registry)
            self._gauges[name].set(value)

    def close(self, is_failed: bool) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
