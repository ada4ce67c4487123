"""What the sections share: the settings, a budget of time, the list of checks and figures. Knows nothing of what is
checked.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass(slots=True)
class Bench:
    """Collects checks (right, wrong or left out) and figures, and prints each as it comes."""

    device: torch.device
    quick: bool
    photos: Sequence[Path]
    work: Path  # a folder for caches, removed at the end
    seconds: float
    checks: list[tuple[str, bool | None, str]] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    _started: float = field(default_factory=time.perf_counter)

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def check(self, name: str, good: bool | None, detail: object = "") -> None:
        """Note a claim that holds, doesn't, or (None) could not be tried here."""
        self.checks.append((name, good, str(detail)))
        print(f"{_word(good)}  {name}: {detail}", flush=True)

    def measure(self, name: str, value: object) -> None:
        """Note a figure."""
        self.figures[name] = str(value)
        print(f"      {name}: {value}", flush=True)

    def left(self) -> float:
        """Seconds that are left of the budget."""
        return self.seconds - (time.perf_counter() - self._started)

    def run(self, section: Callable[[Bench], None], needs: float) -> None:
        """Run a section that takes about ``needs`` seconds on a GPU; one that raises is a failed check."""
        name = section.__name__.replace("_", " ")
        print(f"\n-- {name} ({self.left():.0f} s left)", flush=True)
        if self.left() < needs:
            self.check(name, None, f"left out: it needs about {needs:.0f} s")
            return
        try:
            section(self)
        except Exception as error:
            traceback.print_exc(limit=6)
            self.check(name, False, f"raised {type(error).__name__}: {' '.join(str(error).split())[:160]}")
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()

    def sync(self) -> None:
        """Wait for the device."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)

    def time(self, work: Callable[[], object], repeats: int = 5, warm_up: int = 2) -> float:
        """Median seconds of ``work``, both ends waited for."""
        for _ in range(warm_up):
            work()
        taken = []
        for _ in range(repeats):
            self.sync()
            start = time.perf_counter()
            work()
            self.sync()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def summary(self) -> bool:
        """Print all checks once more; True when none failed."""
        print()
        for name, good, detail in self.checks:
            print(f"{_word(good)}  {name}: {detail[:140]}")
        wrong = sum(good is False for _, good, _ in self.checks)
        taken = time.perf_counter() - self._started
        print(f"{len(self.checks)} checks, {wrong} failed, {taken:.0f} s on {self.device}")
        return not wrong

    def save(self, folder: Path) -> None:
        """Write checks and figures as JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gpu.json").write_text(json.dumps({"checks": self.checks, "figures": self.figures}, indent=1) + "\n")


def _word(good: bool | None) -> str:
    return {True: "PASS", False: "FAIL", None: "skip"}[good]
