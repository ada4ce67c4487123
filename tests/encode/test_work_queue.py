"""The queue in the store: every part is taken once, a lost leader is noticed, reports and notes arrive."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from itertools import chain

import pytest
from torch.distributed import PrefixStore, TCPStore

from dcae_cache.encode.progress import Tally
from dcae_cache.encode.work_queue import Assignment, StatusReporter, WorkerStatus, WorkQueue
from dcae_cache.errors import LeaderError, SourceError


def server() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))


def client(port: int, rank: int) -> WorkQueue:
    store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=20))
    return WorkQueue(PrefixStore("test", store), rank)


def test_every_part_is_taken_exactly_once() -> None:
    store = server()
    leader = WorkQueue(PrefixStore("test", store), 0)
    parts = list(range(500, 0, -1))
    leader.publish(Assignment(recipe={}, parts=parts))
    taken: list[list[int]] = [[] for _ in range(4)]

    def work(rank: int) -> None:
        queue = client(store.port, rank)
        taken[rank] += queue.claims(queue.assignment())

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(chain(*taken)) == sorted(parts)
    assert all(mine == sorted(mine, reverse=True) for mine in taken)  # in the order of the assignment


def test_a_large_job_goes_through() -> None:
    """More than the store takes in one value, even compressed."""
    store = server()
    leader = WorkQueue(PrefixStore("test", store), 0)
    keys = [f"{number * 2654435761 % 2**32:08x}{number:x}" for number in range(600_000)]
    assignment = Assignment(recipe={"name": "é"}, parts=[3, 1], gone=keys, found={"sidecars": {".txt": True}})
    leader.publish(assignment)
    assert client(store.port, 1).assignment() == assignment


def test_reports_and_notes_arrive() -> None:
    store = server()
    leader, worker = WorkQueue(PrefixStore("test", store), 0), client(store.port, 3)
    assert leader.status_of(3) is None
    report = WorkerStatus(tally=Tally(encoded=7, skipped=1, failures=["no tar"]), device="cuda:3")
    with StatusReporter(worker, report):
        assert leader.status_of(3) == report
        worker.note("is warm")
        assert leader.new_notes() == ["rank 3: is warm"]
        assert leader.new_notes() == []
        beat = report.beat
        time.sleep(2.5)
        seen = leader.status_of(3)
        assert seen is not None
        assert seen.beat > beat
        assert not seen.finished
    done = leader.status_of(3)
    assert done is not None
    assert (done.finished, done.error) == (True, None)


def test_what_went_wrong_is_reported() -> None:
    store = server()
    with pytest.raises(SourceError), StatusReporter(client(store.port, 1), WorkerStatus()):
        raise SourceError("The tar\nis gone.")
    report = WorkQueue(PrefixStore("test", store), 0).status_of(1)
    assert report is not None
    assert (report.finished, report.error) == (False, "The tar is gone.")


def test_a_leader_that_fails_or_is_gone_is_noticed() -> None:
    store = server()
    worker = client(store.port, 1)
    WorkQueue(PrefixStore("test", store), 0).announce({"error": "no such folder"})
    with pytest.raises(LeaderError, match="before there was work"):
        worker.assignment()
    del store
    with pytest.raises(LeaderError, match="is gone"):
        worker.outcome()
