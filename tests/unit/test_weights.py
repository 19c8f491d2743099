"""Weights: downloads that are checked, go on, and are refused; and where a detector finds them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from preprocess.detect import load_detector
from preprocess.detect.weights import WEIGHTS, WeightFile, download, find_weights, kept_weights

CONTENT = bytes(range(256)) * 4000


@dataclass
class Server:
    url: str = ""
    content: bytes = CONTENT
    status: int = 200
    cut_at: int | None = None
    """Bytes after which the connection breaks."""
    ignores_ranges: bool = False
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            return

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            if state.status != 200:
                self.send_error(state.status)
                return
            start = 0 if asked is None or state.ignores_ranges else int(asked.removeprefix("bytes=").rstrip("-"))
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if state.cut_at is None else body[: state.cut_at])

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{web.server_address[1]}/model.onnx"
    yield state
    web.shutdown()
    web.server_close()
    thread.join()


def entry(server: Server) -> WeightFile:
    return WeightFile(server.url, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "MIT", "yunet")


def fetch(server: Server, folder: Path) -> Path:
    return download(entry(server), folder, lambda done: None)


def test_a_good_file_comes_once(server: Server, tmp_path: Path) -> None:
    path = fetch(server, tmp_path / "new")
    assert path.read_bytes() == CONTENT
    assert fetch(server, tmp_path / "new") == path
    assert server.ranges == [None]
    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]


def test_other_bytes_are_refused_and_kept_aside(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"!"
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(UserError) as refusal:
        fetch(server, tmp_path)
    assert found in str(refusal.value)
    assert entry(server).sha256 in str(refusal.value)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx.refused"]
    server.content = CONTENT
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_longer_file_is_not_read_to_its_end(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT * 4
    with pytest.raises(UserError, match="sha256"):
        fetch(server, tmp_path)
    assert (tmp_path / "model.onnx.refused").stat().st_size < 2 * len(CONTENT)


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_a_broken_download_goes_on(server: Server, tmp_path: Path, ignores_ranges: bool) -> None:
    server.cut_at, server.ignores_ranges = 300_000, ignores_ranges
    with pytest.raises(UserError, match="goes on where it stopped"):
        fetch(server, tmp_path)
    done = (tmp_path / "model.onnx.part").stat().st_size
    assert 0 < done <= 300_000
    assert not (tmp_path / "model.onnx").exists()
    server.cut_at = None
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={done}-"]


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusal_names_the_address(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(UserError, match=f"{server.url}.*{status}"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_changed_is_not_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(UserError, match="delete it"):
        fetch(server, tmp_path)
    assert (tmp_path / "model.onnx").read_text() == "mine"


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be fetched"):
        download(WeightFile("http://127.0.0.1:9/m.onnx", "0" * 64, 9, "MIT", "yunet"), tmp_path, lambda done: None)


def test_a_detector_looks_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEMILL_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match="preprocess weights yunet"):
        load_detector("yunet", None, 20)
    (tmp_path / WEIGHTS["yunet"].file_name).write_text("none")
    assert kept_weights("yunet") == tmp_path / WEIGHTS["yunet"].file_name
    assert kept_weights("mtcnn") is None
    with pytest.raises(UserError, match="OpenCV cannot run it"):  # so it was taken from there
        load_detector("yunet", None, 20)
    with pytest.raises(UserError, match="one of yunet"):
        find_weights("scrfd")
