"""When another attempt may help, for whoever asks a store: one rule for reading and for writing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dcae_cache import remote
from dcae_cache.errors import CacheError, MissingFileError, SourceError
from dcae_cache.object_store import ObjectStore
from dcae_cache.remote import ask, is_final, is_missing, open_file, persistently, read_range


class DriverError(Exception):
    """What drivers raise: with whatever attributes."""

    def __init__(self, **told: Any) -> None:
        super().__init__("the store says no")
        self.__dict__ |= told


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def botocore(status: int, code: str = "") -> Exception:
    return DriverError(response={"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}})


FINAL = {
    "403": DriverError(status=403),
    "401 of httpx": DriverError(response=SimpleNamespace(status_code=401)),
    "400 of azure": DriverError(status_code=400),
    "501 of botocore": botocore(501, "NotImplemented"),
    "403 that another error came from": caused(OSError("no"), botocore(403, "InvalidAccessKeyId")),
    "no permission": PermissionError("no"),
    "no driver": ImportError("Install s3fs"),
}
MISSING = {
    "no file": FileNotFoundError("a"),
    "404 of azure": caused(FileNotFoundError("a"), DriverError(status_code=404)),
    "404 of botocore": caused(FileNotFoundError("a"), botocore(404, "NoSuchKey")),
    "a name that memory lacks": caused(FileNotFoundError("a"), KeyError("a")),
}
PASSING = {
    "503": DriverError(status=503),
    "429 of httpx": DriverError(response=SimpleNamespace(status_code=429)),
    "slow down": caused(OSError("slow down"), botocore(503, "SlowDown")),
    "a body that came too slowly": caused(OSError("timeout"), botocore(400, "RequestTimeout")),
    "two at once": caused(OSError("busy"), botocore(409, "OperationAborted")),
    "broken": ConnectionError("the line is down"),
    "a server out of reach": caused(FileNotFoundError("a"), ConnectionError("the line is down")),
}

# What is asked of a store, and the driver's method that it comes down to.
ASKED: dict[str, tuple[str, Callable[[ObjectStore, Path], Any]]] = {
    "files": ("find", lambda store, path: store.files()),
    "read": ("cat_file", lambda store, path: store.read("a")),
    "fetch": ("open", lambda store, path: store.fetch("a", path / "copy")),
    "put": ("put_file", lambda store, path: store.put(path / "file", "a")),
    "create": ("pipe_file", lambda store, path: store.create("new", b"x")),
    "replace": ("pipe_file", lambda store, path: store.replace("a", b"x")),
    "delete": ("rm_file", lambda store, path: store.delete(["a"])),
}


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    asked: list[float] = []
    monkeypatch.setattr("dcae_cache.remote.time.sleep", asked.append)
    return asked


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    (tmp_path / "file").write_bytes(b"content")
    MemoryFileSystem().pipe_file(f"{tmp_path}/a", b"content")
    return ObjectStore(f"memory:/{tmp_path}")


def fail(monkeypatch: pytest.MonkeyPatch, method: str, errors: list[Exception]) -> list[Exception]:
    """Have a method of the driver raise these, one a call, and then do its work; gives those raised so far."""
    real, raised = getattr(MemoryFileSystem, method), list[Exception]()

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        if len(raised) < len(errors):
            raised.append(errors[len(raised)])
            raise raised[-1]
        return real(self, *arguments, **named)

    monkeypatch.setattr(MemoryFileSystem, method, call)
    return raised


@dataclass(frozen=True)
class Asked:
    """A question to the store, and how to have the driver fail at it."""

    method: str
    ask: Callable[[], Any]
    fail: Callable[[list[Exception]], list[Exception]]


@pytest.fixture(params=ASKED.values(), ids=ASKED)
def asked(
    request: pytest.FixtureRequest, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Asked:
    method, question = request.param
    return Asked(method, partial(question, store, tmp_path), partial(fail, monkeypatch, method))


@pytest.mark.parametrize("error", FINAL.values(), ids=FINAL)
def test_a_final_answer_is_not_asked_for_again(asked: Asked, pauses: list[float], error: Exception) -> None:
    raised = asked.fail([error] * 9)
    with pytest.raises(CacheError, match=r"^Can't (list|read|write|remove) memory://.*: .* Check the address"):
        asked.ask()
    assert (len(raised), pauses) == (1, [])


@pytest.mark.parametrize("error", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_asked_for_again(asked: Asked, pauses: list[float], error: Exception) -> None:
    expected = asked.ask() if asked.method not in ("pipe_file", "rm_file") else None
    raised = asked.fail([error] * 4)
    found = asked.ask()
    assert expected is None or found == expected
    assert len(raised) == 4
    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_what_is_not_there_is_no_failure_where_that_is_an_answer(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    for error in MISSING.values():
        with monkeypatch.context() as patch:
            for method in ("cat_file", "find", "open", "rm_file"):
                fail(patch, method, [error])
            assert store.read("a") is None
            assert store.files() == {}
            assert not store.fetch_if_there("a", tmp_path / "copy")
            store.delete(["a"])
    assert pauses == []


def test_reading_goes_by_the_same_rule(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, pauses: list[float], tmp_path: Path
) -> None:
    url = f"memory:/{tmp_path}/a"
    for error in (*FINAL.values(), *MISSING.values(), *PASSING.values()):
        with monkeypatch.context() as patch:
            raised = fail(patch, "cat_file", [error] * 9)
            with pytest.raises(SourceError) as caught:
                read_range(url, 0, 4)
            passes = any(error is other for other in PASSING.values())
            assert len(raised) == (5 if passes else 1), error
            assert isinstance(caught.value, MissingFileError) == any(error is other for other in MISSING.values())
            assert is_final(error) != passes
            assert is_missing(error) == any(error is other for other in MISSING.values())
    assert read_range(url, 2, 5) == b"nte"
    pauses.clear()
    fail(monkeypatch, "open", [DriverError(status=503)] * 3)
    with open_file(url) as file:
        assert file.read() == b"content"
    assert pauses == [0.5, 1.0, 2.0]


def test_as_long_a_pause_as_the_store_asks_for(pauses: list[float]) -> None:
    errors = [
        DriverError(status=429, headers={"Retry-After": "7"}),
        DriverError(status=503, headers={"Retry-After": "9999"}),
    ]

    def attempt() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    assert persistently(attempt) == "done"
    assert pauses == [7.0, 300.0]


def test_an_answer_that_is_too_short_is_asked_for_again_and_a_file_that_is_too_short_is_not(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    url = f"memory:/{tmp_path}/a"
    with pytest.raises(SourceError, match=r"/a ends before byte 9: it has changed since it was listed"):
        read_range(url, 2, 9)
    assert pauses == []
    real, cuts = MemoryFileSystem.cat_file, [1, 0, 3]

    def cat_file(self: Any, path: str, **limits: Any) -> bytes:
        data = bytes(real(self, path, **limits))
        return data[: cuts.pop()] if cuts else data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    assert read_range(url, 0, 7) == b"content"
    assert pauses == [0.5, 1.0, 2.0]
    assert ask(url, lambda fs, path: fs.info(path)["size"]) == 7
    assert remote.file_size_and_version(url)[0] == 7
