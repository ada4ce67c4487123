"""``python -m dcae_cache.encode.worker_process``: one of the processes that ``encode`` starts, one for each GPU.

Not for a person: the request comes on standard input, what happens is told to the process that started it.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from ..errors import DCAECacheError, WorkerError
from ..interruption import Interruption
from ..text import printable
from .core_shares import decoding_threads
from .distributed import find_rank, join
from .run import Request, open_encoder
from .work_queue import WorkQueue
from .worker import work_for_leader


def main() -> NoReturn:
    """Work until no part is left; the exit code is 0, 1 for a failure, 130 when told to stop."""
    try:
        with Interruption([signal.SIGTERM]):
            _work()
    except WorkerError as error:
        sys.exit(f"error: {printable(str(error))}")
    except DCAECacheError:
        sys.exit(1)  # the leader was told
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _work() -> None:
    request = Request.from_json(sys.stdin.readline())
    own = find_rank()
    assert own is not None, "the starting process says so in the environment"
    store, device = join(own, request.options.device)
    workers = decoding_threads(request.options.workers, own, store)
    work_for_leader(request, WorkQueue(store, own.rank), device, workers, open_encoder)


if __name__ == "__main__":
    main()
