"""The story of a run: list the source, plan its parts, have those made that aren't committed yet, write the index.

Who makes the parts is the crew's affair (crew.py); how a part is made stands in part_encoder.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..cache.commits import count_tables, delete_cache, split_by_commit
from ..cache.finalize import index_of, write_index
from ..cache.growth import Changes
from ..cache.keys import refuse_duplicate_keys
from ..cache.ledger_file import build_ledger, note_listing
from ..cache.listing import Listing, list_entries
from ..cache.locks import locked, locked_with_others, planning
from ..cache.parts import PARTS_FOLDER, PartInfo
from ..cache.plan import Plan
from ..config import EncodeConfig, RunOptions
from ..files import make_folder, remove_temporary_files
from ..records import part_number
from ..sources import SourceOptions
from ..urls import is_url
from .crew import Crew, gather_crew
from .distributed import find_rank
from .maintenance import discard_broken_parts, find_changed_parts, remove_unplanned
from .notes import refresh_notes
from .part_encoder import OpenEncoder
from .planning import plan_parts, refuse_too_small_a_disk
from .profile import refuse_unfit_file
from .progress import Counter, Listener, Progress, Tally
from .run import Request, Run, open_encoder, start_run
from .store_out import StoreOut, refuse_unfit_options, scratch_folder
from .summary import Summary, check_ledger, check_skip_rate, check_sources, summarise, tell_redone
from .worker import work_until_the_end

__all__ = ["Summary", "encode_dataset"]


def encode_dataset(
    source: str | Path,
    out: str | Path,
    config: EncodeConfig | None = None,
    options: RunOptions | None = None,
    *,
    source_options: SourceOptions | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
    notify: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Encode every image of ``source`` into the cache ``out``; run it again to resume, or to add what is new.

    ``source``: a folder, tars, a table or a dataset (docs/sources.md). ``out``: a folder, or the URL of one in an
    object store (docs/sharing.md). ``config``: what is stored; ``options``: how it is made; ``source_options``: how
    the source is read; None: the defaults. ``progress`` is called on this thread after every batch, ``notify`` with
    what a person should hear. Every visible GPU is used. Under a launcher (torchrun, accelerate launch, srun) all
    processes call this alike and get the same summary.

    The summary says what this run did and what the cache holds now: samples, bytes, seconds.

    Raises UsageError for settings that can't be honoured, ModelError and SourceError where model or source can't be
    had, RecipeMismatchError, CacheLockedError and CacheError where ``out`` can't be written or goes on from something
    else, WorkerError where a process was lost; at the end, when the cache is usable, DamagedSourceError and
    TooManySkippedError. Whatever was committed before stays valid. On KeyboardInterrupt finished parts are kept and
    indexed, then it is raised again.
    """
    options = options or RunOptions()
    away = str(out) if is_url(str(out)) else None
    request = Request(
        source=str(source),
        out=Path(out) if away is None else scratch_folder(away, options.scratch),
        away=away,
        config=config or EncodeConfig(),
        options=options,
        source_options=source_options or SourceOptions(),
    )
    return carry_out(request, Listener(progress, notify))


def carry_out(request: Request, listener: Listener, open_encoder: OpenEncoder = open_encoder) -> Summary:
    """``encode_dataset`` for a request that is put together. ``open_encoder`` makes what encodes in this process."""
    own = find_rank()
    if own is not None and not own.leads:
        return Summary(**work_until_the_end(request, own, open_encoder))
    if request.away is not None:
        refuse_unfit_options(request.options, own)
    if request.options.profile is not None:
        refuse_unfit_file(request.options.profile)
    home = StoreOut(request.away, request.out)
    with gather_crew(request, own, open_encoder) as crew, home.opened(listener.notify):
        started = time.perf_counter()
        run = start_run(request, crew.device)
        summary = _lead(run, crew, home, Counter(listener), started)
        crew.announce({"summary": asdict(summary)})
    return summary


def _lead(run: Run, crew: Crew, home: StoreOut, counter: Counter, started: float) -> Summary:
    """Everything but the making of parts is done here, by one process."""
    listing = list_entries(run.source.entries(run.options.limit))
    make_folder(run.cache / PARTS_FOLDER)
    with _writing(run):
        plan, changes = _plan(run, home, listing)
        del listing
        done, todo = _what_is_there(run, plan, counter.notify)
        _start_counting(run, counter, plan, done)
        refuse_too_small_a_disk(run, plan, todo)
        done, refreshed = refresh_notes(run, plan, done, todo)
        if run.options.refresh_metadata:
            again = f"Read the captions, labels and attributes of {len(done)} parts again"
            counter.notify(f"{again}: {refreshed} rows changed.")
        with _indexed_if_interrupted(run, plan, home):
            new = crew.make(run, plan, todo, changes.gone, counter) if todo else []
        index, infos = _index(run, plan, [*done, *new])
        home.finish()
        if new and run.source.entries_per_part is not None:
            refuse_duplicate_keys(run.cache, [info.name for info in infos])
        tell_redone(counter)
        ledger = build_ledger(run.cache, infos)
        summary = summarise(run, counter, index, changes, time.perf_counter() - started)
        summary = replace(summary, parts_reused=len(done), refreshed=refreshed, ledger=ledger.to_json())
    crew.check(all_made=len(new) == len(todo))
    check_sources(run, counter.of_this_run().failures, summary, infos)
    check_skip_rate(run, summary, infos)
    if run.options.strict:
        check_ledger(ledger)
    return summary


def _plan(run: Run, home: StoreOut, listing: Listing) -> tuple[Plan, Changes]:
    """Plan what is listed, in the place of whatever is to be replaced, and clear away what a killed run left."""
    if run.replaces:
        delete_cache(run.cache)
        home.clear()
    with planning(run.cache):
        remove_temporary_files(run.cache)
        plan, changes = plan_parts(run, listing)
        note_listing(run.cache, run.source.counts().listed)
    home.send_plan()
    remove_temporary_files(run.cache / PARTS_FOLDER, _concerns(run))
    return plan, changes


def _what_is_there(run: Run, plan: Plan, notify: Callable[[str], None]) -> tuple[list[PartInfo], list[int]]:
    """Of this run's parts those that are committed and right, as far as it was asked to look; and those to be made."""
    if run.options.repair:
        discard_broken_parts(run, plan, notify)
    numbers = _numbers(run, plan)
    done, todo = split_by_commit(plan, run.cache, run.fingerprint, numbers, retry_skipped=run.options.retry_skipped)
    if run.options.recheck or run.options.repair:
        done, todo = _without_changed(run, plan, done, todo, notify)
    return done, todo


@contextmanager
def _indexed_if_interrupted(run: Run, plan: Plan, home: StoreOut) -> Iterator[None]:
    """Leave an index over the finished parts where a person stops the run, unless other jobs write there too."""
    try:
        yield
    except KeyboardInterrupt:
        if run.options.part_range is None:
            infos = split_by_commit(plan, run.cache, run.fingerprint)[0]
            write_index(run.cache, index_of(run.cache, plan, run.recipe, infos), infos)
            home.finish()
        raise


def _without_changed(
    run: Run, plan: Plan, done: list[PartInfo], todo: list[int], notify: Callable[[str], None]
) -> tuple[list[PartInfo], list[int]]:
    """Move the parts whose images have changed without a sign from those that are done to those to be made."""
    changed = find_changed_parts(run, plan, done, notify)
    done = [info for info in done if part_number(info.name) not in changed]
    return done, sorted({*todo, *changed})


def _start_counting(run: Run, counter: Counter, plan: Plan, done: list[PartInfo]) -> None:
    """Begin with what earlier runs committed. How many samples a plan holds is known where each entry is one."""
    skipped = sum(info.num_skipped for info in done)
    views = run.fitting.num_views
    not_made = sum(info.num_images * views - info.num_samples - info.num_skipped for info in done)
    earlier = Tally(sum(info.num_samples for info in done), 0, skipped, len(done), not_made=not_made)
    num_samples = plan.num_entries * views if run.source.entries_per_part is None else None
    counter.start(earlier, plan.num_parts, num_samples)


def _index(run: Run, plan: Plan, made: list[PartInfo]) -> tuple[dict[str, Any], list[PartInfo]]:
    """Write the index, from committed parts alone. Of jobs beside each other the last one does it, for all."""
    infos = sorted(made, key=lambda info: info.name)
    is_job = run.options.part_range is not None
    with planning(run.cache):
        if is_job and count_tables(run.cache) >= plan.num_parts:
            infos = split_by_commit(plan, run.cache, run.fingerprint)[0]
        index = index_of(run.cache, plan, run.recipe, infos)
        if index["complete"] or not is_job:
            write_index(run.cache, index, infos)
    if run.options.prune:
        remove_unplanned(run, plan)
    return index, infos


@contextmanager
def _writing(run: Run) -> Iterator[None]:
    """Hold the cache: alone, or as one of several jobs that know nothing of each other."""
    with locked_with_others(run.cache, *run.options.part_range) if run.options.part_range else locked(run.cache):
        yield


def _numbers(run: Run, plan: Plan) -> list[int]:
    """The parts that are this run's to make."""
    number, count = run.options.part_range or (0, 1)
    return [part for part in plan.part_numbers if part % count == number]


def _concerns(run: Run) -> Callable[[str], bool]:
    """Whether a file of a part, by its name, is this run's to write."""
    number, count = run.options.part_range or (0, 1)
    return lambda name: part_number(name) % count == number
