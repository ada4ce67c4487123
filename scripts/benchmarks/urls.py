"""A table of a thousand addresses on loopback, every tenth dead: how long until each has an answer, and over how many
connections.

Dead ones are 404, 503 and a host that has no name, in turn. Each image takes ``--delay`` to be answered, as it would
from afar.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dcae_cache.errors import SampleSkipped
from dcae_cache.records import Part, SampleRef
from dcae_cache.sources import open_source


class _Server(ThreadingHTTPServer):
    """Counts its connections and requests."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, body: bytes, delay: float) -> None:
        self.body, self.delay = body, delay
        self.seen: Counter[str] = Counter()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        self.server.seen["connections"] += 1
        super().setup()

    def do_GET(self) -> None:
        self.server.seen["requests"] += 1
        time.sleep(self.server.delay)
        status = 404 if "gone" in self.path else 503 if "busy" in self.path else 200
        self.send_response(status)
        body = self.server.body if status == 200 else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _addresses(url: str, count: int) -> list[str]:
    dead = [f"{url}/gone", f"{url}/busy", "http://no.such.host.invalid"]
    return [
        f"{dead[number // 10 % 3]}/{number}.jpg" if number % 10 == 0 else f"{url}/{number}.jpg"
        for number in range(count)
    ]


def _outcome(ref: SampleRef) -> str:
    try:
        return f"{len(ref.load().data)} bytes"
    except SampleSkipped as skip:
        return skip.reason


def main(arguments: list[str]) -> None:
    """Print one line for each outcome, then the time and what it took."""
    parser = argparse.ArgumentParser(prog="scripts/bench urls", description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--kilobytes", type=int, default=100)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds before each answer")
    options = parser.parse_args(arguments)
    server = _Server(bytes(1024 * options.kilobytes), options.delay)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "urls.jsonl"
        places = _addresses(f"http://127.0.0.1:{server.server_address[1]}", options.count)
        table.write_text("\n".join(json.dumps({"url": place}) for place in places))
        source = open_source(str(table))
        refs = list(source.read(Part(0, tuple(source.entries()))))
        started = time.perf_counter()
        with ThreadPoolExecutor(options.workers) as pool:
            outcomes = Counter(pool.map(_outcome, refs))
        seconds = time.perf_counter() - started
    server.shutdown()
    for outcome, count in outcomes.most_common():
        print(f"{count:6} {outcome}")
    least = options.count * options.delay / options.workers
    print(
        f"{seconds:.2f} s for {options.count} addresses by {options.workers} threads (the delays alone: {least:.2f} s)"
    )
    print(f"{server.seen['requests']} requests over {server.seen['connections']} connections")
