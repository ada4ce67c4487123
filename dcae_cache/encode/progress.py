"""How far a run is, and what each of its processes has done. Knows nothing of sources, models or files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

NAMED = 20  # images that were encoded again are named, so many of them


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, in samples: ``done`` counts stored and skipped ones, those of earlier runs included. Where an
    image has several, those that it is too small for count as done, too.

    Where parts hold unknown numbers of samples ``total`` is an estimate from those done, and None before the first.
    """

    total: int | None
    done: int
    skipped: int


@dataclass(slots=True)
class Tally:
    """What one process has done in this run, or several have together."""

    encoded: int = 0  # latents stored, copied ones too
    copied: int = 0  # of these, latents that were stored already
    skipped: int = 0
    parts: int = 0
    waited_seconds: float = 0.0  # the device stood still between batches, for want of pixels
    busy_seconds: float = 0.0  # the device worked
    failures: list[str] = field(default_factory=list)  # parts the source could not give whole
    redone: int = 0  # images encoded again in fp32, having overflowed in half precision
    redone_keys: list[str] = field(default_factory=list)  # the first of them
    kernels: list[str] = field(default_factory=list)  # what computed the steps between convolutions: a name each
    not_made: int = 0  # samples that images lack: all but one of skipped ones, and sizes they are too small for

    @staticmethod
    def total(tallies: Iterable[Tally]) -> Tally:
        """All of them together."""
        listed = list(tallies)
        return Tally(
            sum(tally.encoded for tally in listed),
            sum(tally.copied for tally in listed),
            sum(tally.skipped for tally in listed),
            sum(tally.parts for tally in listed),
            sum(tally.waited_seconds for tally in listed),
            sum(tally.busy_seconds for tally in listed),
            [failure for tally in listed for failure in tally.failures],
            sum(tally.redone for tally in listed),
            [key for tally in listed for key in tally.redone_keys][:NAMED],
            sorted({name for tally in listed for name in tally.kernels}),
            sum(tally.not_made for tally in listed),
        )


@dataclass(frozen=True, slots=True)
class Listener:
    """Who hears of a run: ``progress`` after every batch, ``notify`` with what a person should know."""

    progress: Callable[[Progress], None] = lambda progress: None
    notify: Callable[[str], None] = lambda text: None


class Counter:
    """Counts what the processes of a run do, and tells the listener how far the run is.

    ``own`` is this process's tally, ``others`` that of all other processes together. ``refresh`` is called before
    each showing, to bring ``others`` up to date.
    """

    def __init__(self, listener: Listener) -> None:
        self.notify = listener.notify
        self.own = Tally()
        self.others = Tally()
        self.devices: set[str] = set()
        self.num_processes = 1
        self._told: set[str] = set()
        self.refresh: Callable[[], None] = lambda: None
        self._progress = listener.progress
        self._earlier = Tally()
        self._num_parts = 0
        self._num_samples: int | None = None

    def start(self, earlier: Tally, num_parts: int, num_samples: int | None) -> None:
        """Note what earlier runs committed, and how much is planned: parts, and samples where that is known."""
        self._earlier, self._num_parts, self._num_samples = earlier, num_parts, num_samples
        self.show()

    def tell_once(self, text: str) -> None:
        """Notify, unless the same was told before: by this process or another."""
        if text not in self._told:
            self._told.add(text)
            self.notify(text)

    def count(self, encoded: int, skipped: int) -> None:
        """Note that so many more samples are done."""
        self.own.encoded += encoded
        self.own.skipped += skipped
        self.show()

    def count_redone(self, keys: Sequence[str]) -> None:
        """Note that these images had to be encoded again in fp32."""
        self.own.redone += len(keys)
        self.own.redone_keys += keys[: NAMED - len(self.own.redone_keys)]

    def count_time(self, waited_seconds: float, busy_seconds: float) -> None:
        """Note how long this process's device has stood still and worked so far in this run."""
        self.own.waited_seconds, self.own.busy_seconds = waited_seconds, busy_seconds

    def count_part(self) -> None:
        """Note that one more part is done."""
        self.own.parts += 1
        self.show()

    def show(self) -> None:
        """Tell the listener how far the run is, earlier runs and other processes included."""
        self.refresh()
        sum_of_all = Tally.total([self._earlier, self.own, self.others])
        done = sum_of_all.encoded + sum_of_all.skipped + sum_of_all.not_made
        total = self._num_samples
        if total is None and sum_of_all.parts:
            total = done * self._num_parts // sum_of_all.parts
        self._progress(Progress(total, done, sum_of_all.skipped))

    def of_this_run(self) -> Tally:
        """What all processes have done in this run."""
        return Tally.total([self.own, self.others])
