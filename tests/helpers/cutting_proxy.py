"""A relay on loopback that closes connections after so many bytes of answer, for servers that can't be told to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Proxy:
    """``cuts``: one per coming answer longer than that: it is cut after so many bytes. ``made`` counts them."""

    url: str = ""
    cuts: list[int] = field(default_factory=list)
    made: int = 0


@contextmanager
def cutting_proxy(host: str, port: int) -> Iterator[Proxy]:
    """Relay to ``host:port`` until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    state = Proxy(f"http://127.0.0.1:{listener.getsockname()[1]}")

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection((host, port))
            threading.Thread(target=_relay, args=(client, server), daemon=True).start()
            threading.Thread(target=_answer, args=(state, server, client), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield state
    finally:
        listener.close()


def _relay(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _close(source, target)


def _answer(state: Proxy, server: socket.socket, client: socket.socket) -> None:
    with suppress(OSError):
        while data := server.recv(65536):
            if state.cuts and len(data) > state.cuts[0]:
                client.sendall(data[: state.cuts.pop(0)])
                state.made += 1
                break
            client.sendall(data)
    _close(server, client)


def _close(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
