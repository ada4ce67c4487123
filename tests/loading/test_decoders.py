"""Decoding in processes: the same rows and pixels as on threads, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from dcae_cache.encode.part_encoder import decode_in_processes
from dcae_cache.errors import WorkerError
from dcae_cache.images import memory
from dcae_cache.images.buckets import BucketRule
from dcae_cache.images.views import Fitting
from dcae_cache.loading import batches, decoder, decoders
from dcae_cache.loading.batches import Batch, load_batches
from dcae_cache.loading.rows import Known, LoadSettings, Made
from dcae_cache.records import ImageFile, Part, Row
from dcae_cache.sources import SourceOptions, open_source
from helpers.faults import hashes
from helpers.images import encode, encoded_image
from helpers.tars import make_tar, triples

RULE = BucketRule(kind="area", resolution=96, factor=32)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes for the first image, and wait for them."""
    monkeypatch.setattr(decoders, "_WORTH_STARTING", 0)
    wait = decoder.Decoder.wait_until_ready
    monkeypatch.setattr(decoder.Decoder, "wait_until_ready", lambda self, seconds=None: wait(self, None))


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    """Images of several sizes and kinds, good and bad, with notes good and bad."""
    root = tmp_path / "photos"
    (root / "a").mkdir(parents=True)
    for number in range(11):
        (root / "a" / f"{number:02}.jpg").write_bytes(encoded_image(100 + 20 * (number % 3), 120, number))
    (root / "a" / "00.txt").write_text("a caption")
    (root / "a" / "01.json").write_text("{broken")
    (root / "alpha.png").write_bytes(encoded_image(70, 90, 3, "PNG"))
    (root / "cut.jpg").write_bytes(encoded_image(100, 100, 1)[:500])
    (root / "empty.jpg").write_bytes(b"")
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (root / "large.jpg").write_bytes(encoded_image(300, 400, 2) + bytes(30_000))
    (root / "text.jpg").write_text("not an image")
    os.mkfifo(root / "pipe.jpg")
    return root


def settings(processes: bool, workers: int = 2, heard: list[str] | None = None) -> LoadSettings:
    notes = [] if heard is None else heard
    return LoadSettings(Fitting((RULE,)), 10**8, lambda bucket: 3, workers, processes=processes, notify=notes.append)


def loaded(source: str, how: LoadSettings, options: SourceOptions | None = None) -> tuple[list[object], list[Row]]:
    """What comes out, in order: slots and pixels of each batch, and the rows of the parts."""
    origin = open_source(source, options)
    entries = tuple(origin.entries())
    size = origin.entries_per_part or 9
    parts = [Part(number, entries[first : first + size]) for number, first in enumerate(range(0, len(entries), size))]
    out: list[object] = []
    rows: list[Row] = []
    for item in load_batches(origin, parts, how):
        if isinstance(item, Batch):
            images = [np.asarray(image) for image in item.images]
            assert all(image.flags.writeable and image.dtype == np.uint8 for image in images)
            out.append((str(item.bucket), item.slots, [(image.shape, image.tobytes()) for image in images]))
        else:
            rows += item.part.rows
    return out, rows


def test_processes_give_the_same_as_threads(odd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "decode_sample", lambda *_: pytest.fail("decoded on a thread"))
    options = SourceOptions(max_bytes=30_000)
    expected = loaded(str(odd_folder), settings(processes=False), options)
    assert loaded(str(odd_folder), settings(processes=True), options) == expected
    sizes = Fitting((RULE, BucketRule(kind="area", resolution=64, factor=32, max_upscale=1.0)), crops=2, seed=5)
    several = replace(settings(processes=False), fitting=sizes)
    views = loaded(str(odd_folder), several, options)
    assert loaded(str(odd_folder), replace(several, processes=True), options) == views
    assert sum(row.status == "ok" for row in views[1]) > 2 * sum(row.status == "ok" for row in expected[1])
    reasons = {row.reason for row in expected[1]}
    assert reasons == {None, "truncated", "empty", "missing", "too_large", "not_an_image", "unreadable", "bad_json"}


def test_bytes_that_a_source_has_read_go_through_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, count in enumerate((7, 4)):
        make_tar(tmp_path / f"{number}.tar", triples(10 * number, count))
    tars = f"{tmp_path}/{{0..1}}.tar"
    expected = loaded(tars, settings(processes=False))
    monkeypatch.setattr(decoders, "decode_sample", lambda *_: pytest.fail("decoded on a thread"))
    assert loaded(tars, settings(processes=True)) == expected
    assert sum(row.status == "ok" for row in expected[1]) == 11


def test_known_samples_are_looked_up_as_on_threads(photos: Path) -> None:
    """Of a part of which something is stored nothing is sent to a process."""
    source = open_source(str(photos))
    refs = list(source.read(Part(0, tuple(source.entries()))))[:2]
    gone = Row(key=refs[0].key, status="ok", source="elsewhere")
    with decoders.Decoders(settings(processes=True, workers=1)) as processes:
        made = processes.decode(refs, Known(gone={refs[0].key: [(gone, None)]}))  # type: ignore[dict-item]
    assert made[0][0][0] is gone
    assert made[1][0][0].key == refs[1].key


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "decoder_process" in " ".join(child.cmdline())]


def test_a_process_that_is_killed_is_replaced_and_nothing_is_lost(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = loaded(str(photos), settings(processes=False))
    killed: list[int] = []
    decode = decoder.Decoder.decode

    def kill_first(self: decoder.Decoder, images: list[tuple[str, ImageFile | bytes]]) -> object:
        if not killed and len(images) > 1:
            killed.append(self.pid)
            os.kill(self.pid, signal.SIGKILL)
        return decode(self, images)

    monkeypatch.setattr(decoder.Decoder, "decode", kill_first)
    assert loaded(str(photos), settings(processes=True)) == expected
    assert killed
    assert not children()


def test_an_image_that_ends_its_process_twice_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fatal = "img003.jpg"
    decode = decoder.Decoder.decode

    def kill_at(self: decoder.Decoder, images: list[tuple[str, ImageFile | bytes]]) -> object:
        if any(isinstance(image, ImageFile) and image.path.endswith(fatal) for _, image in images):
            os.kill(self.pid, signal.SIGKILL)
        return decode(self, images)

    monkeypatch.setattr(decoder.Decoder, "decode", kill_at)
    with pytest.raises(WorkerError, match=r"decodes class0/img003\.jpg ended twice \(killed by SIGKILL\).*`workers`"):
        loaded(str(photos), settings(processes=True))
    assert not children()


def test_what_the_decoder_itself_can_not_do_is_one_line(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the program in the process, not of an image."""
    program = "import dcae_cache.loading.decoder_process as p; p.load_fitted = None; p.main()"
    monkeypatch.setattr(decoder, "_PROGRAM", f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); {program}")
    with pytest.raises(WorkerError, match=r"ended twice \(TypeError: 'NoneType' object is not callable\)"):
        loaded(str(photos), settings(processes=True))


@pytest.mark.parametrize("program", ["raise SystemExit(3)", None])
def test_threads_take_over_where_no_process_can_be_had(
    photos: Path, monkeypatch: pytest.MonkeyPatch, program: str | None
) -> None:
    expected = loaded(str(photos), settings(processes=False))
    if program is None:
        monkeypatch.setattr(decoder.sys, "executable", "/nowhere/python")
    else:
        monkeypatch.setattr(decoder, "_PROGRAM", program)
    heard: list[str] = []
    assert loaded(str(photos), settings(processes=True, heard=heard)) == expected
    assert len(heard) == 1
    assert heard[0].endswith("threads decode instead.")
    assert ("exit code 3" if program else "No such file") in heard[0]


def test_a_cache_made_with_processes_is_the_same_bytes(
    photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    start = decoders.Decoders._start

    def counted(self: decoders.Decoders) -> decoder.Decoder:
        started.append(1)
        return start(self)

    monkeypatch.setattr("dcae_cache.encode.part_encoder.decode_in_processes", lambda *_: True)
    monkeypatch.setattr(decoders.Decoders, "_start", counted)
    encode(photos, tmp_path / "out")
    assert started
    assert hashes(tmp_path / "out") == hashes(cache)


def test_a_small_run_starts_no_process(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_WORTH_STARTING", 16)
    monkeypatch.setattr(decoders, "Decoder", lambda *_: pytest.fail("started"))
    assert len(loaded(str(photos), settings(processes=True))[1]) == 20


def test_nothing_is_left_when_this_process_is_killed(photos: Path) -> None:
    """Neither processes nor shared memory: it has no name, and is gone with the last process that sees it."""
    code = f"""
        import sys
        from dcae_cache.images.buckets import BucketRule
        from dcae_cache.images.views import Fitting
        from dcae_cache.loading.decoder import Decoder
        decoders = [Decoder(Fitting((BucketRule(kind="square", resolution=64),)), 10**8) for _ in range(2)]
        for decoder in decoders:
            decoder.wait_until_ready()
            decoder.decode([("a", open({str(photos / "class0" / "img000.jpg")!r}, "rb").read())])
        print(*(decoder.pid for decoder in decoders), flush=True)
        sys.stdin.read()
    """
    before = set(os.listdir("/dev/shm"))
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdin=pipe, stdout=pipe, text=True) as owner:
        assert owner.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
        assert len(processes) == 2
        owner.kill()
    gone, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    assert len(gone) == 2
    assert set(os.listdir("/dev/shm")) <= before


def test_decoders_end_with_the_loading(photos: Path) -> None:
    origin = open_source(str(photos))
    items = load_batches(origin, [Part(0, tuple(origin.entries()))], settings(processes=True))
    next(items)
    assert 1 <= len(children()) <= 2
    items.close()
    assert not children()


def test_huge_images_take_turns_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process asks this one for room, which all of them share."""
    asked: list[int] = []
    room_for = memory.room_for
    monkeypatch.setattr(decoder, "room_for", lambda count: asked.append(count) or room_for(count))
    monkeypatch.setattr(
        decoder,
        "_PROGRAM",
        "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        "import dcae_cache.loading.decoder_process as p; p.LARGE = 60 * 60; p.main()",
    )
    one = decoder.Decoder(Fitting((RULE,)), 10**8)
    try:
        answers = one.decode(
            [("", encoded_image(61, 60, 1)), ("", encoded_image(50, 50, 2)), ("", encoded_image(70, 60, 3))]
        )
    finally:
        one.close()
    assert asked == [61 * 60, 70 * 60]
    assert [fitted.original for fitted, _ in answers] == [(61, 60), (50, 50), (70, 60)]
    assert memory._taken == 0


def test_memory_that_a_large_image_took_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcae_cache.loading.shared_pixels._KEPT", 96 * 96 * 3 * 2)
    one = decoder.Decoder(Fitting((RULE,)), 10**8)
    try:
        sizes = []
        for count in (1, 6, 1):
            one.decode([("", encoded_image(96, 96, number)) for number in range(count)])
            sizes.append(os.fstat(one._memory.descriptor).st_size)
    finally:
        one.close()
    assert sizes[0] > 0
    assert sizes[1] == 0
    assert sizes[2] == sizes[0]


def test_images_in_flight_are_bounded_by_their_bytes(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several go together while they are small; never more than the pixels that may be in flight allow."""
    sizes: list[int] = []
    decode = decoders.Decoders.decode

    def counted(self: decoders.Decoders, refs: list[object], known: Known) -> object:
        sizes.append(len(refs))
        return decode(self, refs, known)

    monkeypatch.setattr(decoders.Decoders, "decode", counted)
    loaded(str(photos), settings(processes=True, workers=1))
    assert max(sizes) > 1
    sizes.clear()
    monkeypatch.setattr(batches, "MAX_FLYING_BYTES", 96 * 96 * 3)
    loaded(str(photos), settings(processes=True, workers=1))
    assert set(sizes) == {1}


@pytest.mark.parametrize("processes", [False, True])
def test_larger_images_than_before_don_t_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: bool
) -> None:
    """Small ones come first, so that many are under way when the large ones turn out to be large."""
    for number in range(48):
        side = 32 if number < 16 else 320
        (tmp_path / f"{number:02}.jpg").write_bytes(encoded_image(side, side, number))
    monkeypatch.setattr(batches, "MAX_FLYING_BYTES", 2 * 320 * 320 * 3)
    waiting: list[int] = []
    decoded = batches._Ahead._decoded

    def watched(self: batches._Ahead, group: batches._Group) -> list[Made]:
        if group is not self._next:
            waiting.append(self._held)
        return decoded(self, group)

    monkeypatch.setattr(batches._Ahead, "_decoded", watched)
    origin = open_source(str(tmp_path))
    how = replace(settings(processes, workers=2), fitting=Fitting((BucketRule(kind="native", factor=32),)))
    rows = 0
    for item in load_batches(origin, [Part(0, tuple(origin.entries()))], how):
        threading.Event().wait(0.005)  # whoever takes them is slow
        rows += len(item.slots) if isinstance(item, Batch) else 0
    assert rows == 48
    assert max(waiting) < batches.MAX_FLYING_BYTES, "nothing begins beyond the limit but what is next in turn"


@pytest.mark.parametrize(
    ("device", "workers", "cores", "expected"),
    [("cuda", 16, 16, True), ("cuda", 3, 16, False), ("cuda", 16, 2, False), ("cpu", 16, 16, False)],
)
def test_processes_are_for_many_decoders_beside_a_device(
    device: str, workers: int, cores: int, expected: bool
) -> None:
    assert decode_in_processes(torch.device(device), workers, cores) is expected


def test_a_part_stays_in_source_order(photos: Path) -> None:
    keys = [row.key for row in loaded(str(photos), settings(processes=True, workers=3))[1]]
    assert keys == sorted(keys)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert not children()
