"""An empty cache folder for each test of data, and a file server that misbehaves on demand."""

import os
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import attrs
import pytest

REAL = os.environ.get("KLDM_DATA")


@pytest.fixture
def real_data() -> Path:
    """The folder of the published data sets."""
    if not REAL:
        pytest.skip("KLDM_DATA is not set")
    return Path(REAL)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no shared data."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("KLDM_CACHE", str(folder))
    monkeypatch.delenv("KLDM_DATA", raising=False)
    return folder


@attrs.define
class Server:
    """A file server on this machine.

    Attributes:
        url: its address.
        files: what it serves, by path.
        ranges: whether it honours Range, as it may not.
        cuts: for the next requests, the number of bytes after which it hangs up.
        asked: path and Range header of every request so far.
    """

    url: str = ""
    files: dict[str, bytes] = attrs.field(factory=dict)
    ranges: bool = True
    cuts: list[int] = attrs.field(factory=list)
    asked: list[tuple[str, str | None]] = attrs.field(factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append((self.path, wanted))
            body = state.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            match = re.fullmatch(r"bytes=(\d+)-", wanted or "") if state.ranges else None
            first = int(match.group(1)) if match else 0
            if match and first >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if match else 200)
            if match:
                self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - first))
            self.end_headers()
            cut = state.cuts.pop(0) if state.cuts else len(body)
            self.wfile.write(body[first:][:cut])

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}"
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()
