"""Read one half of an autoencoder out of safetensors files, checked, hashed and cast.

Only the tensors of the half asked for are read; the files are memory-mapped. Knows nothing of hubs or model names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..text import parse_json
from .layouts import Half, Layout, TensorPlan, tensor_plans
from .network import DCAENetwork
from .spec import DCAESpec

_FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
_UNUSED = "num_batches_tracked"  # batch norm's counter: in the files, of no effect outside training
_NAMED = 3  # so many bad tensors are named in an error; the rest are counted
_LFS_POINTER = b"version https://git-lfs"


class LoadedHalf(NamedTuple):
    """A network holding one half, ready for inference, and the digest of the weights it was given."""

    network: DCAENetwork
    sha256: str


def load_half(weights: Path, spec: DCAESpec, layout: Layout, half: Half, dtype: torch.dtype) -> LoadedHalf:
    """Build one half on the CPU from ``weights``, a ``.safetensors`` file or a ``.safetensors.index.json`` of shards.

    The digest covers the half's native tensors as stored (before the cast to ``dtype``), so both layouts of the same
    weights give the same: sha256 over, by sorted name, the line "name dtype shape" and the little-endian bytes.
    Raises CheckpointError when a file is damaged, or when tensors are missing, unexpected or wrongly shaped.
    """
    plans = tensor_plans(spec, half, layout)
    digest = hashlib.sha256()
    state: dict[str, Tensor] = {name: torch.zeros((), dtype=torch.int64) for name in plans if name.endswith(_UNUSED)}
    for name, tensor in _native_tensors(weights, plans, half):
        _hash(digest, name, tensor)
        state[name] = tensor.to(dtype, copy=True)  # a copy, so that nothing depends on the file any more
    with torch.device("meta"):
        network = DCAENetwork(spec, with_encoder=half == "encoder", with_decoder=half == "decoder")
    network.load_state_dict(state, assign=True)
    return LoadedHalf(network.eval().requires_grad_(False), digest.hexdigest())


def digest_of_half(weights: Path, spec: DCAESpec, layout: Layout, half: Half) -> str:
    """The digest that ``load_half`` gives, read from the files alone: no network is built. Raises like it."""
    digest = hashlib.sha256()
    for name, tensor in _native_tensors(weights, tensor_plans(spec, half, layout), half):
        _hash(digest, name, tensor)
    return digest.hexdigest()


def _native_tensors(weights: Path, plans: Mapping[str, TensorPlan], half: Half) -> Iterator[tuple[str, Tensor]]:
    """A half's tensors as stored, by sorted native name. They are views of the mapped file while this is iterated."""
    with _open(weights) as stored:
        _check(stored, plans, half, weights)
        for name, plan in sorted(plans.items()):
            if not name.endswith(_UNUSED):
                yield name, plan.join([stored[source.name].get_tensor(source.name) for source in plan.sources])


@contextmanager
def _open(weights: Path) -> Iterator[dict[str, Any]]:
    """Every stored tensor's name with the open file that holds it."""
    with ExitStack() as stack:
        files = shard_paths(weights) if weights.suffix == ".json" else [weights]
        stored = {}
        for path in files:
            try:
                handle = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from error
            stored.update(dict.fromkeys(handle.keys(), handle))
        yield stored


def shard_paths(index: Path) -> list[Path]:
    """The shard files an index names, beside it. Raises CheckpointError when it can't be read as one."""
    try:
        names = sorted(set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is not an index of safetensors shards ({type(error).__name__}: {error}); download it again"
        ) from error
    if not names or any(not isinstance(name, str) or name != Path(name).name for name in names):
        raise CheckpointError(f"{index} names shards outside its own folder or none at all: {names[:_NAMED]}")
    return [index.parent / name for name in names]


def _damaged(path: Path, error: Exception) -> CheckpointError:
    if not path.is_file():
        return CheckpointError(f"{path} is missing; download the checkpoint again")
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    size = path.stat().st_size
    if start == _LFS_POINTER:
        return CheckpointError(
            f"{path} is a git-lfs pointer of {size} bytes, not the weights; run `git lfs pull` there"
        )
    return CheckpointError(
        f"{path} ({size} bytes) is not a whole safetensors file: {error}; "
        "it may be half downloaded or damaged, download it again"
    )


def _check(stored: dict[str, Any], plans: Mapping[str, TensorPlan], half: Half, weights: Path) -> None:
    """One error for everything that doesn't fit, or none."""
    expected = {source.name: source.shape for plan in plans.values() for source in plan.sources}
    problems = []
    for name, shape in expected.items():
        if name.endswith(_UNUSED):
            continue
        if name not in stored:
            problems.append(f"{name} is missing (expected {list(shape)})")
            continue
        entry = stored[name].get_slice(name)
        if tuple(entry.get_shape()) != shape:
            problems.append(f"{name} is {list(entry.get_shape())}, expected {list(shape)}")
        elif entry.get_dtype() not in _FLOAT_DTYPES:
            problems.append(f"{name} is of dtype {entry.get_dtype()}, expected one of {', '.join(_FLOAT_DTYPES)}")
    unexpected = [name for name in stored if name.startswith(f"{half}.") and name not in expected]
    problems += [f"{name} {stored[name].get_slice(name).get_shape()} is unexpected" for name in sorted(unexpected)]
    if problems:
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise CheckpointError(
            f"{weights}: {len(problems)} tensors of the {half} don't fit the model its config.json names: "
            f"{'; '.join(problems[:_NAMED])}{more}. Are config.json and weights of the same model?"
        )


def _hash(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    digest.update(f"{name} {dtype} {list(tensor.shape)}\n".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
