"""Questions to a file system: one after the other where it answers at once, several at a time where it doesn't."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from dcae_cache import asking
from dcae_cache.asking import answers
from dcae_cache.sources import SourceOptions, open_source


class Slow:
    """Answers after a network's time, and knows how many ask at the same time."""

    def __init__(self) -> None:
        self.most, self._now, self._lock = 0, 0, threading.Lock()

    def __call__(self, item: int) -> int:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.005)
        with self._lock:
            self._now -= 1
        return item * item


def test_slow_answers_come_several_at_a_time_and_in_order() -> None:
    ask = Slow()
    assert list(answers(ask, range(100))) == [number * number for number in range(100)]
    assert ask.most > 4


def test_quick_answers_start_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_FAR_SECONDS", 60.0)  # as if every answer were quick, however busy this machine is
    threads = set(answers(lambda _: threading.get_ident(), range(2000)))
    assert threads == {threading.get_ident()}


def test_no_more_is_asked_than_is_taken_by_chunks() -> None:
    def items() -> Iterator[int]:
        for number in range(10_000):
            taken.append(number)
            yield number

    taken: list[int] = []
    assert list(islice(answers(str, items()), 3)) == ["0", "1", "2"]
    assert len(taken) < 1000


@pytest.mark.parametrize("wait", [0, 0.005])
def test_what_is_raised_ends_it(wait: float) -> None:
    def ask(item: int) -> int:
        time.sleep(wait)
        if item == 5:
            raise ValueError("no answer")
        return item

    with pytest.raises(ValueError, match="no answer"):
        list(answers(ask, range(10)))


def test_a_far_folder_is_listed_as_a_near_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        folder = tmp_path / f"{number % 3}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(b"j" * number)
        (folder / f"{number}.txt").write_text("a caption")
        (folder / f"{number}.bin").write_bytes(b"\xff\xd8\xff" if number % 2 else b"no image")
    (tmp_path / "0" / "broken.png").symlink_to("nowhere")
    seen = []
    for far in (60.0, -1.0):
        monkeypatch.setattr(asking, "_FAR_SECONDS", far)
        source = open_source(str(tmp_path), SourceOptions(any_suffix=True))
        entries = list(source.entries())
        seen.append((entries, source.counts(), source.notes_stamp(entries)))
    assert seen[0] == seen[1]
    assert len(seen[0][0]) == 40 + 20 + 1
