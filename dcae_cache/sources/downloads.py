"""The bytes of one web address: bounded in size and time, tried again where that may help, over kept connections.

    data = download("https://host/a.jpg", options)      # on any thread; raises SampleSkipped

One event loop on a thread of its own serves every caller. What is known of a host is shared: a name that doesn't
resolve is not asked for again, a host that asks for patience gets it from all. Knows nothing of tables or images.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import socket
import time
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from ..errors import SampleSkipped, one_line
from ..remote import AGAIN, status_pause
from .base import SourceOptions, too_large

_TRIES = 5
_FIRST_PAUSE = 0.5  # seconds, doubled each time
_CONNECT_SECONDS, _READ_SECONDS = 20.0, 60.0  # for one step; the whole has its own limit
_CONNECTIONS, _OF_ONE_HOST = 128, 32
_BLOCK = 2**18
_DEAD_AFTER = 3  # connections refused in a row; then a host gets one try for each address
_REMEMBERED = 300.0  # seconds that a name counts as unknown
_STARTING = Lock()


@dataclass(slots=True)
class _Host:
    """What the callers have learnt of a host, in seconds of the monotonic clock."""

    unknown_until: float = 0.0  # its name doesn't resolve
    wait_until: float = 0.0  # it has asked for patience
    refused: int = 0  # connections in a row


class _AgainError(Exception):
    """This attempt failed; another may not. ``pause``: how long the server asked to wait."""

    def __init__(self, what: str, pause: float | None = None) -> None:
        super().__init__(what)
        self.pause = pause


def download(url: str, options: SourceOptions) -> bytes:
    """What the http or https address gives. Raises SampleSkipped: "too_large", "timed_out", "no_host" where its
    host's name is unknown, "unreadable" for whatever else stands against it."""
    with _STARTING:
        client = _client(os.getpid())
    return client.fetch(url, options)


@lru_cache(1)
def _client(pid: int) -> _Client:
    """The client of this process: a fork must not share its parent's connections."""
    return _Client()


class _Client:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="downloads", daemon=True)
        self._hosts: dict[str, _Host] = {}
        self._session: aiohttp.ClientSession | None = None
        self._lock = Lock()
        self._thread.start()
        atexit.register(self.close)

    def fetch(self, url: str, options: SourceOptions) -> bytes:
        return asyncio.run_coroutine_threadsafe(self._fetch(url, options), self._loop).result()

    def close(self) -> None:
        """Close every connection, so that nothing is left to be warned of."""
        with self._lock:
            if self._loop.is_closed() or not self._thread.is_alive():
                return
            if self._session is not None:
                asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result(5)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            self._loop.close()

    async def _fetch(self, url: str, options: SourceOptions) -> bytes:
        host = self._hosts.setdefault(_host_of(url), _Host())
        deadline = time.monotonic() + options.url_timeout
        try:
            async with asyncio.timeout(options.url_timeout):
                return await self._tried(url, host, options, deadline)
        except TimeoutError:
            raise SampleSkipped(
                "timed_out", f"{url} took longer than the {options.url_timeout:g} s that it may take"
            ) from None

    async def _tried(self, url: str, host: _Host, options: SourceOptions, deadline: float) -> bytes:
        for attempt in range(1, _TRIES + 1):
            if time.monotonic() < host.unknown_until:
                raise SampleSkipped("no_host", f"{url}: there is no host {_host_of(url)}")
            await _sleep_until(host.wait_until, url, deadline)
            try:
                data = await self._once(url, host, options)
            except _AgainError as error:
                if attempt == _TRIES or host.refused > _DEAD_AFTER:
                    raise SampleSkipped("unreadable", f"Can't read {url}: {error}") from error
                pause = _FIRST_PAUSE * 2 ** (attempt - 1) if error.pause is None else error.pause
                await _sleep_until(time.monotonic() + pause, url, deadline)
            else:
                host.refused = 0
                return data
        raise AssertionError("unreachable")

    async def _once(self, url: str, host: _Host, options: SourceOptions) -> bytes:
        try:
            async with self._opened().get(url, headers={"User-Agent": options.user_agent}) as answer:
                if answer.status != HTTPStatus.OK:
                    _refuse(url, answer, host)
                if (answer.content_length or 0) > options.max_bytes:
                    raise too_large(url, answer.content_length, options.max_bytes)
                data = bytearray()
                async for block in answer.content.iter_chunked(_BLOCK):
                    data += block
                    if len(data) > options.max_bytes:
                        raise too_large(url, None, options.max_bytes)
                return bytes(data)
        except aiohttp.ClientError as error:
            raise _meaning(url, error, host) from error
        except (OSError, ValueError) as error:
            if isinstance(error, TimeoutError):  # of the whole
                raise
            raise SampleSkipped("unreadable", f"Can't read {url}: {one_line(error)}") from error

    def _opened(self) -> aiohttp.ClientSession:
        """The session, made on the loop's own thread. It keeps no cookies: what one host says stays there."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS, limit_per_host=_OF_ONE_HOST, ttl_dns_cache=300),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=True,  # HTTP_PROXY and its like
            )
        return self._session


async def _sleep_until(when: float, url: str, deadline: float) -> None:
    """Sleep, unless that would outlast the time that the address may take: then nothing is gained by waiting."""
    seconds = when - time.monotonic()
    if when > deadline:
        raise SampleSkipped("timed_out", f"{url}: its host asks to wait {seconds:.0f} s, longer than it may take")
    if seconds > 0:
        await asyncio.sleep(seconds)


def _host_of(url: str) -> str:
    """Name and port, without the user."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


def _refuse(url: str, answer: aiohttp.ClientResponse, host: _Host) -> None:
    """Raise what a status other than 200 means."""
    said = f"HTTP {answer.status}" + (f" ({answer.reason})" if answer.reason else "")
    if answer.status in (404, 410):
        raise SampleSkipped("unreadable", f"There is no file {url}: {said}")
    if answer.status not in AGAIN:
        raise SampleSkipped("unreadable", f"Can't read {url}: {said}")
    pause = status_pause(answer.headers)
    if pause is not None:
        host.wait_until = max(host.wait_until, time.monotonic() + pause)
    raise _AgainError(said, pause)


def _meaning(url: str, error: aiohttp.ClientError, host: _Host) -> Exception:
    """What an error of the client says of the address, or of this attempt alone."""
    cause: Any = getattr(error, "os_error", None)
    if isinstance(cause, socket.gaierror) and cause.errno not in (socket.EAI_AGAIN,):
        host.unknown_until = time.monotonic() + _REMEMBERED
        return SampleSkipped("no_host", f"{url}: there is no host {_host_of(url)}")
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.InvalidURL | aiohttp.TooManyRedirects):
        return SampleSkipped("unreadable", f"Can't read {url}: {one_line(error)}")
    if isinstance(error, aiohttp.ClientConnectorError):
        host.refused += 1
    return _AgainError(one_line(error))
