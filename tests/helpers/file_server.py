"""A web server on loopback that serves a folder with range requests and can cut connections, for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class FileServer:
    """``cuts``: file name -> how many bytes of each answer are sent before the connection is closed; ``times``: for
    how many answers (None: for ever). ``ranges`` lists every range asked for; ``damaged`` the files whose next answer
    arrives with its first byte changed."""

    root: Path
    url: str = ""
    cuts: dict[str, int] = field(default_factory=dict)
    times: int | None = None
    with_ranges: bool = True
    ranges: list[tuple[str, str | None]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


@contextmanager
def serve(root: Path) -> Iterator[FileServer]:
    """Run a server for the files of ``root`` until the block ends."""
    state = FileServer(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = state.root / self.path.partition("?")[0].lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            asked = self.headers.get("Range")
            if body:
                state.ranges.append((path.name, asked))
            if asked and state.with_ranges:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last or len(data)), len(data) - 1) + 1
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
                data = data[start:stop]
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{len(data)}"')
            if state.with_ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if body:
                self._send(path.name, data)

        def _send(self, name: str, data: bytes) -> None:
            if name in state.damaged:
                state.damaged.remove(name)
                data = bytes([data[0] ^ 1]) + data[1:]
            cut = state.cuts.get(name)
            if cut is not None and len(data) > cut and state.times != 0:
                if state.times is not None:
                    state.times -= 1
                data = data[:cut]
                self.close_connection = True
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
