"""``python -m dcae_cache.encode.worker_process``: one of the processes that ``encode`` starts, one for each GPU.

Not for a person: the request comes on standard input, what happens is told to the process that started it.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from dcae_cache.encode.distributed import find_place, join
from dcae_cache.encode.run import Request
from dcae_cache.encode.work_queue import WorkQueue
from dcae_cache.encode.worker import follow
from dcae_cache.errors import DCAECacheError, WorkerError


def main() -> NoReturn:
    """Work until no part is left; the exit code is 0, 1 for a failure, 130 when told to stop."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        request = Request.from_json(sys.stdin.readline())
        place = find_place()
        assert place is not None, "the starting process says so in the environment"
        store, device = join(place, request.options.device)
        follow(request, place, WorkQueue(store, place.rank), device)
    except WorkerError as error:
        sys.exit(f"error: {error}")
    except DCAECacheError:
        sys.exit(1)  # the leader was told
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _interrupt(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
