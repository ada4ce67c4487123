"""Every error this package raises on purpose. The command line turns them into one line and an exit code.

    DCAECacheError                    something a user, a file or a network can cause
    ├── UsageError                    an argument or setting that can't be honoured (exit code 2)
    ├── TensorError                   a tensor handed to the API has the wrong shape or dtype (also a ValueError)
    ├── ModelError                    the autoencoder can't be had
    │   ├── UnknownModelError         no model, repo or folder of that name
    │   ├── CheckpointError           the files are there, but aren't a checkpoint of that model
    │   ├── HubError                  the hub refuses, lacks or can't deliver the files
    │   ├── NoMemoryError             the device has no memory for it, however little is asked of it at once
    │   └── MissingExtraError         it needs a library of an extra that isn't installed
    ├── SourceError                   the images can't be listed or read as a whole
    │   ├── MissingFileError          a store says that there is no such file
    │   └── DamagedSourceError        the run ended, but an input file broke off in the middle
    ├── CacheError                    the output folder isn't a cache, or is damaged
    │   ├── RecipeMismatchError       it was made with another recipe
    │   ├── DamagedIndexError         its index.json isn't what was written; encode rebuilds it
    │   └── CacheLockedError          another run is writing to it
    ├── WorkerError                   a process of the run was lost, or failed; what it had finished is kept
    │   └── LeaderError               seen by the others: the process that leads failed and says itself why
    ├── VerificationError             a check of a cache could not be carried out
    ├── TooManySkippedError           the run ended, but more samples were skipped than allowed
    ├── StrictError                   the run ended, but something was left out or unmatched, which ``strict`` forbids
    └── SampleSkipped                 one sample can't be used: counted and recorded, never fatal

A message says what is wrong, where, what was expected and found, and what to do next. It holds no password and no
signature of a URL, wherever it came from: the root of the tree leaves them out.
"""

from __future__ import annotations

import errno

from .urls import without_secrets

# What a network file system says while it is unwell: worth another try.
TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET, errno.EINTR})


class DCAECacheError(Exception):
    """The root of every error that this package raises on purpose; ``except DCAECacheError`` catches them all.

    The message is one line for a person: what is wrong, where, what was expected and found, and what to do next.
    ``help("dcae_cache.errors")`` shows the whole tree.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(without_secrets(item) if isinstance(item, str) else item for item in arguments))


class UsageError(DCAECacheError):
    """An argument or setting that can't be honoured."""


class TensorError(DCAECacheError, ValueError):
    """A tensor of the wrong rank, size, channel count or dtype."""


class ModelError(DCAECacheError):
    """The autoencoder can't be had."""


class UnknownModelError(ModelError):
    """No model, hub repo or folder of that name."""


class CheckpointError(ModelError):
    """The files found aren't a usable checkpoint of the model."""


class HubError(ModelError):
    """The model hub refused, lacks or could not deliver the files."""


class NoMemoryError(ModelError):
    """The device has no memory for the weights, or not even for one image."""


class MissingExtraError(ModelError):
    """A library of one of the package's extras isn't installed; the message says what to install."""


class SourceError(DCAECacheError):
    """The images can't be listed or read as a whole."""


class MissingFileError(SourceError):
    """A store or server says that there is no such file or folder."""


class DamagedSourceError(SourceError):
    """The run is over and its cache usable, but input files broke off: samples behind the damage are missing."""


class CacheError(DCAECacheError):
    """The folder isn't a cache of a known format, or is damaged."""


class RecipeMismatchError(CacheError):
    """The cache was made with another recipe."""


class DamagedIndexError(CacheError):
    """index.json is not, byte for byte, what was written. It is derived from the parts: encode writes it anew."""


class CacheLockedError(CacheError):
    """Another run is writing to the cache."""


class WorkerError(DCAECacheError):
    """A process of the run was lost or failed. The other parts are in the cache."""


class LeaderError(WorkerError):
    """The process that leads the run failed, or is gone. It says itself what was wrong."""


class VerificationError(DCAECacheError):
    """A check of a cache could not be carried out."""


class TooManySkippedError(DCAECacheError):
    """The run is over and its cache usable, but more samples were skipped than ``max_skip_rate`` allows."""


class StrictError(DCAECacheError):
    """The run is over and its cache usable, but something of the source was left out or matched nothing."""


class SampleSkipped(DCAECacheError):  # noqa: N818 - an event to count, not a failure
    """One sample can't be used. ``reason`` is a short stable word for counting, ``detail`` a sentence for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = without_secrets(detail)


def one_line(error: BaseException, limit: int = 300) -> str:
    """What a library's error says, on one line of at most ``limit`` characters; its type where it says nothing."""
    text = " ".join(without_secrets(str(error)).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
