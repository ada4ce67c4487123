"""The interpreter lock between a thread that launches a device's work and any number of decoders, every time stretched
so that sleeping stands in for work without the lock: what comes out doesn't depend on how many cores there are.
"""

from __future__ import annotations

import sys
import threading
import time

STRETCH = 20.0
OPERATIONS, OPERATION = 450, 8e-6  # of one launch: seconds each holds the lock, and as many it doesn't
_SLEEP_LATE = 55e-6  # seconds that a sleep takes longer than it was told
_SHARE = 10  # a launch is cut to a tenth, which is enough to measure


def simulate(decoders: int, held: float, free: float, cycles: float, seconds: float) -> tuple[float, float]:
    """Images a second, and seconds of a launch, beside decoders that each hold the lock ``held`` seconds of an image,
    in so many ``cycles``, and work ``free`` seconds without it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before * STRETCH)
    stop, done = threading.Event(), [0] * decoders

    def decode(number: int) -> None:
        while not stop.is_set():
            _hold(held / cycles * STRETCH)
            _free(free / cycles * STRETCH)
            done[number] += 1

    threads = [threading.Thread(target=decode, args=(number,)) for number in range(decoders)]
    try:
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        taken, counted, start = [], sum(done), time.perf_counter()
        while time.perf_counter() - start < seconds:
            taken.append(_launch())
        rate = (sum(done) - counted) / cycles / (time.perf_counter() - start) * STRETCH
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    return rate, sorted(taken)[len(taken) // 2]


def _launch() -> float:
    start = time.perf_counter()
    for _ in range(OPERATIONS // _SHARE):
        _hold(OPERATION * STRETCH)
        _free(OPERATION * STRETCH)
    return (time.perf_counter() - start) * _SHARE / STRETCH


def _hold(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _free(seconds: float) -> None:
    time.sleep(max(seconds - _SLEEP_LATE, 1e-6))
