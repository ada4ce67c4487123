"""Finished parts looked after: broken ones taken back, changed images found, unplanned ones removed.

No latent is written. Knows nothing of models, devices or other processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import pyarrow.compute as pc

from ..cache.commits import split_by_commit
from ..cache.finalize import index_of, write_index
from ..cache.index import load_index
from ..cache.integrity import check_integrity
from ..cache.parts import PARTS_FOLDER, PartInfo, read_rows, table_path
from ..cache.plan import Plan
from ..compute.cores import default_workers
from ..errors import CacheError, SampleSkipped
from ..files import sync_folder
from ..loading.rows import load_sample
from ..records import SampleRef, part_name, part_number
from ..text import counted
from .run import Run

_AT_ONCE = 64  # images compared


def discard_broken_parts(run: Run, plan: Plan, notify: Callable[[str], None]) -> None:
    """Take back the commit of parts whose files aren't, byte for byte, what was written: they are made anew."""
    notify("Checking every part's hashes.")
    try:
        load_index(run.cache)
    except CacheError:  # it is derived from the parts, and is needed to check them
        infos = split_by_commit(plan, run.cache, run.fingerprint)[0]
        write_index(run.cache, index_of(run.cache, plan, run.recipe, infos), infos)
    findings = check_integrity(run.cache)
    broken = sorted({finding.where for finding in findings} & {part_name(number) for number in plan.part_numbers})
    for name in broken:
        table_path(run.cache, name).unlink(missing_ok=True)
    if broken:
        notify(f"{len(broken)} parts are broken and are made anew, the first: {broken[0]}.")


def find_changed_parts(run: Run, plan: Plan, done: list[PartInfo], notify: Callable[[str], None]) -> set[int]:
    """The parts that hold images which are others in the source now, however alike their files look: every image is
    read and its hash compared."""
    notify("Comparing the hash of every source image.")
    changed: set[int] = set()
    num_changed = 0
    for info in done:
        rows = read_rows(run.cache, info.name)
        images = pc.coalesce(rows["image"], rows["key"])
        hashes = dict(zip(images.to_pylist(), rows["source_hash"].to_pylist(), strict=True))
        part = plan.part(part_number(info.name))
        with ThreadPoolExecutor(run.options.workers or default_workers(), thread_name_prefix="recheck") as pool:
            refs = run.source.read(part)  # which may hold their images: no more than a few at once
            found = 0
            while some := list(islice(refs, _AT_ONCE)):
                found += sum(pool.map(partial(_is_another, hashes), some))
        if found:
            changed.add(part.number)
            num_changed += found
    notify(f"{counted(num_changed, 'image')} changed without a sign of it, in {counted(len(changed), 'part')}.")
    return changed


def _is_another(hashes: Mapping[str, str | None], ref: SampleRef) -> bool:
    """Whether the sample's image isn't the one that was encoded. One that can't be read says nothing."""
    recorded = hashes.get(ref.key)
    try:
        return recorded is not None and hashlib.sha256(load_sample(ref).data).hexdigest() != recorded
    except (SampleSkipped, OSError):
        return False


def remove_unplanned(run: Run, plan: Plan) -> None:
    """Remove the parts that pruning has left without entries."""
    planned = {part_name(number) for number in plan.part_numbers}
    for path in sorted((run.cache / PARTS_FOLDER).glob("part-*")):  # the table, which commits a part, goes first
        if path.stem not in planned:
            path.unlink()
    sync_folder(run.cache / PARTS_FOLDER)
