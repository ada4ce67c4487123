"""URLs: bounded in bytes and time, tried again only where that can help, over kept connections."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from dcae_cache.errors import SampleSkipped
from dcae_cache.remote import status_pause
from dcae_cache.sources import downloads
from dcae_cache.sources.base import SourceOptions
from dcae_cache.sources.downloads import download

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def server(*answers: Answer) -> Iterator[tuple[str, list[SimpleNamespace]]]:
    """A server that gives each request the next answer, the last one for ever. Yields its URL and what was asked."""
    asked: list[SimpleNamespace] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(SimpleNamespace(client_address=self.client_address, headers=self.headers))
            answers[min(len(asked), len(answers)) - 1](self)

        def log_message(self, *_: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def gives(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def never_ends(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(2**16))
    except OSError:
        pass
    handler.close_connection = True


def drips(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then: each arrives in time, the whole never does."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.02)
    except OSError:
        pass
    handler.close_connection = True


def breaks_off(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"half")
    handler.close_connection = True


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_FIRST_PAUSE", 0.001)


def skip_of(url: str, **options: object) -> SampleSkipped:
    with pytest.raises(SampleSkipped) as caught:
        download(url, SourceOptions(**options))
    return caught.value


def test_one_connection_serves_many_requests_and_says_who_asks() -> None:
    with server(gives(b"data")) as (url, asked):
        assert [download(f"{url}/{number}", SourceOptions()) for number in range(5)] == [b"data"] * 5
        assert download(url, SourceOptions(user_agent="me@lab")) == b"data"
    assert len({handler.client_address for handler in asked}) == 1
    assert [handler.headers["User-Agent"].split()[0] for handler in asked] == ["dcae-cache"] * 5 + ["me@lab"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_what_is_final_is_asked_once(status: int) -> None:
    with server(gives(b"", status)) as (url, asked):
        skip = skip_of(url)
    assert (skip.reason, len(asked)) == ("unreadable", 1)
    assert f"HTTP {status}" in skip.detail


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(status: int) -> None:
    with server(gives(b"", status), gives(b"", status), gives(b"data")) as (url, asked):
        assert download(url, SourceOptions()) == b"data"
    assert len(asked) == 3
    with server(gives(b"", status)) as (url, asked):
        assert skip_of(url).reason == "unreadable"
    assert len(asked) == 5


def test_a_body_that_breaks_off_is_asked_for_again() -> None:
    with server(breaks_off, gives(b"data")) as (url, asked):
        assert download(url, SourceOptions()) == b"data"
    assert len(asked) == 2


def test_retry_after_is_obeyed_by_all_and_never_beyond_the_limit() -> None:
    with server(gives(b"", 429, Retry_After="1"), gives(b"data")) as (url, asked):
        started = time.monotonic()
        assert download(url, SourceOptions()) == b"data"
        assert time.monotonic() - started >= 1
    assert len(asked) == 2
    with server(gives(b"", 503, Retry_After="3600")) as (url, asked):
        started = time.monotonic()
        assert [skip_of(f"{url}/{number}").reason for number in range(3)] == ["timed_out"] * 3
        assert time.monotonic() - started < 60
    assert len(asked) == 1, "the others of that host waited for nothing"


def test_retry_after_in_both_its_forms() -> None:
    assert status_pause({"Retry-After": "7"}) == 7
    assert status_pause({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert status_pause({"Retry-After": "soon"}) is None
    assert status_pause({}) is None
    assert status_pause(None) is None


def test_bytes_and_time_are_limited() -> None:
    with server(gives(bytes(2000))) as (url, _):
        assert skip_of(url, max_bytes=1999).reason == "too_large"
        assert len(download(url, SourceOptions(max_bytes=2000))) == 2000
    with server(never_ends) as (url, _):
        assert str(skip_of(url, max_bytes=10**6)).startswith("too_large: http://127.0.0.1:")
    with server(drips) as (url, asked):
        skip = skip_of(url, url_timeout=0.5)
    assert (skip.reason, len(asked)) == ("timed_out", 1)
    assert "0.5 s" in skip.detail


def test_a_host_without_an_address_is_asked_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    resolve = socket.getaddrinfo

    def refuse(host: str, *rest: object, **options: object) -> object:
        if host != "no.such.host.invalid":
            return resolve(host, *rest, **options)  # type: ignore[arg-type]
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for number in range(5):
        skip = skip_of(f"http://no.such.host.invalid/{number}.jpg")
        assert (skip.reason, "there is no host no.such.host.invalid" in skip.detail) == ("no_host", True)
    assert len(asked) == 1


def test_a_dead_port_costs_less_and_less() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        skips = [skip_of(f"{url}/{number}") for number in range(4)]
    assert {skip.reason for skip in skips} == {"unreadable"}


def test_a_redirect_leads_to_no_file() -> None:
    with server(gives(b"", 302, Location="file:///etc/passwd")) as (url, _):
        assert skip_of(url).reason == "unreadable"
