"""An S3-compatible server on loopback, in this process."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from pipeline.data import remote
from tests.http_store import close_connections

BUCKET = "faces"


@contextmanager
def serve_s3(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put a folder into a bucket; gives its URL. The environment names the server, as a user's would."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        # what an earlier server of this process held would still be there
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        close_connections()
        filesystem = remote.open_filesystem("s3")
        filesystem.mkdir(f"s3://{BUCKET}")
        filesystem.put(str(folder), f"s3://{BUCKET}/data", recursive=True)
        yield f"s3://{BUCKET}/data"
    finally:
        close_connections()
        server.stop()
