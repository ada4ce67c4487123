"""The trace of a run: valid, with a lane for each thread, spans that nest, and all batches in it."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dcae_cache import encode_dataset
from dcae_cache.compute.idle import IdleClock
from dcae_cache.config import RunOptions
from dcae_cache.encode.distributed import ProcessRank
from dcae_cache.encode.profile import file_of, trace_device
from dcae_cache.errors import DCAECacheError, UsageError
from dcae_cache.trace import NO_TRACE, Trace
from helpers.images import tiny_config

SQUARE = tiny_config(bucket="square")
OPTIONS = RunOptions(device="cpu", workers=2, batch_size=4, part_size=8)


def spans_by_lane(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The lane's name -> its spans, in order."""
    events = json.loads(file.read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert [event["args"]["name"] for event in events if event["name"] == "process_name"]
    lanes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            lanes[names[event["tid"]]].append(event)
    return lanes


def assert_nested(spans: list[dict[str, Any]]) -> None:
    """Each span ends inside the one it begins in."""
    open_ends: list[float] = []
    for span in sorted(spans, key=lambda span: (span["ts"], -span["dur"])):
        while open_ends and span["ts"] >= open_ends[-1] - 0.01:
            open_ends.pop()
        end = span["ts"] + span["dur"]
        assert not open_ends or end <= open_ends[-1] + 0.01
        open_ends.append(end)


def test_a_trace_has_every_thread_and_all_batches(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    options = RunOptions(device="cpu", workers=2, batch_size=4, part_size=8, profile=str(file))
    encode_dataset(photos, tmp_path / "out", SQUARE, options)
    lanes = spans_by_lane(file)
    kinds = {name.rstrip("0123456789_") for name in lanes}
    assert kinds == {"reader and loader", "decode", "encoder", "encode", "writer"}
    for spans in lanes.values():
        assert_nested(spans)
    batches = 2 + 2 + 1  # 20 images of one bucket in parts of 8
    streams = [span for name, spans in lanes.items() if name.startswith("encode_") for span in spans]
    assert [span["name"] for span in streams] == ["encode a batch"] * batches
    assert sum(span["name"] == "launch" for span in lanes["encoder"]) == batches
    assert sum(span["name"] == "wait for latents" for span in lanes["encoder"]) == batches
    assert sum(len(spans) for name, spans in lanes.items() if name.startswith("decode_")) == 20
    parts = [f"part-{number:06d}" for number in range(3)]
    assert [span["name"] for span in lanes["writer"]] == parts
    assert [span["name"] for span in lanes["reader and loader"] if span["name"].startswith("part")] == parts
    first_launch = min(span["ts"] for span in lanes["encoder"] if span["name"] == "launch")
    assert all(span["ts"] >= first_launch for span in streams), "one clock for all lanes"


def test_without_the_option_nothing_is_kept_or_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trace, "add", lambda *_: pytest.fail("a span was kept"))
    encode_dataset(photos, tmp_path / "out", SQUARE, OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not NO_TRACE.is_on
    with NO_TRACE.span("nothing"):
        NO_TRACE.name_lane("nobody")
    assert not NO_TRACE._spans


def test_a_run_that_fails_leaves_its_trace(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dcae_cache.cache.parts.write_safetensors", fail)
    file = tmp_path / "trace.json"
    with pytest.raises(DCAECacheError, match="No space left"):
        encode_dataset(photos, tmp_path / "out", SQUARE, RunOptions(device="cpu", profile=str(file)))
    lanes = spans_by_lane(file)
    assert any(name.startswith("decode_") for name in lanes)
    assert [span["name"] for span in lanes["writer"]] == ["part-000000"]


def test_each_rank_has_a_file_of_its_own(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ProcessRank(rank=3, world_size=4, local_rank=3, local_world_size=4, host="h", port=1)
    monkeypatch.setattr("dcae_cache.encode.part_encoder.find_rank", lambda: own)
    encode_dataset(photos, tmp_path / "out", SQUARE, replace(OPTIONS, profile=str(tmp_path / "trace.json")))
    assert not (tmp_path / "trace.json").exists()
    assert "writer" in spans_by_lane(tmp_path / "trace-rank3.json")


def test_the_names_of_files() -> None:
    rank = {"local_rank": 0, "local_world_size": 1, "host": "h", "port": 1}
    assert file_of("/a/trace.json", None) == Path("/a/trace.json")
    assert file_of("/a/trace.json", ProcessRank(rank=0, world_size=1, **rank)) == Path("/a/trace.json")  # type: ignore[arg-type]
    assert file_of("/a/trace.json", ProcessRank(rank=3, world_size=4, **rank)) == Path("/a/trace-rank3.json")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "nowhere/trace.json"])
def test_a_place_that_can_not_be_written_is_refused_first(photos: Path, tmp_path: Path, name: str) -> None:
    options = RunOptions(device="cpu", profile=str(tmp_path / name))
    with pytest.raises(UsageError, match=r"`profile` .*expected a file"):
        encode_dataset(photos, tmp_path / "out", SQUARE, options)
    assert not (tmp_path / "out").exists()


class _Moment:
    """A mark of a device whose clock is an hour ahead."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: _Moment) -> float:
        return self.seconds - earlier.seconds


def test_a_device_has_a_lane_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Transfers:
        def mark(self) -> _Moment:
            return _Moment(3600.0)

    monkeypatch.setattr("dcae_cache.encode.profile.transfers_of", lambda device: Transfers())
    monkeypatch.setattr("dcae_cache.encode.profile.time.perf_counter", lambda: 5.0)
    idle, trace = IdleClock(), Trace()
    trace_device(idle, torch.device("cuda:1"), trace)
    idle.add(_Moment(3601.0), _Moment(3601.5), lane=1)
    idle.add(_Moment(3602.0), _Moment(3602.25), lane=1)
    events = json.loads(trace.to_json("rank 1"))["traceEvents"]
    assert {"name": "thread_name", "ph": "M", "pid": events[0]["pid"], "tid": 1, "args": {"name": "cuda:1"}} in events
    spans = [(event["ts"], event["dur"]) for event in events if event["ph"] == "X"]
    assert spans == [(6e6, 0.5e6), (7e6, 0.25e6)]


def test_threads_that_follow_one_another_have_lanes_of_their_own() -> None:
    """The system gives a new thread the number of one that has ended."""
    trace = Trace()
    for name in ("first", "second"):
        thread = threading.Thread(target=lambda: trace.add("work", 0.0, 1.0), name=name)
        thread.start()
        thread.join()
    events = json.loads(trace.to_json("one"))["traceEvents"]
    assert {event["args"]["name"] for event in events if event["name"] == "thread_name"} == {"first", "second"}


def test_a_long_run_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcae_cache.trace.MAX_SPANS", 2)
    trace = Trace()
    for _ in range(5):
        with trace.span("work"):
            pass
    written = json.loads(trace.to_json("one"))
    assert sum(event["ph"] == "X" for event in written["traceEvents"]) == 2
    assert written["otherData"]["spans_dropped"] == 3
