"""Where this process stands among the others of its run, and how others are started: everything asked of Accelerate.

A launcher (accelerate launch, torchrun, srun) says so in the environment; without one, ``launch`` starts workers on
this machine. Knows nothing of parts, images or caches.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count

import torch
from torch.distributed import DistError, PrefixStore, Store, TCPStore

from ..compute.devices import pick_device
from ..errors import UsageError, WorkerError, one_line

START_TIMEOUT = timedelta(minutes=10)  # for all processes of a launcher to come up
LOOPBACK = "127.0.0.1"
_STARTED_HERE, _WORKERS_CORNER = "DCAE_CACHE_WORKER", "dcae-cache/workers"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRank:
    """One process among ``world_size``, ``local_world_size`` of them on its machine. Rank 0 leads, and its machine
    answers at ``host``:``port``."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    host: str
    port: int

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share_of(self, total: int) -> int:
        """This process's share of so many cores or threads of its machine; at least 1."""
        return max(1, total // self.local_world_size + (self.local_rank < total % self.local_world_size))


def find_rank(environ: Mapping[str, str] = os.environ) -> ProcessRank | None:
    """What a launcher says of this process: torchrun and accelerate launch, or srun. None where there is none.

    Raises UsageError for an environment that contradicts itself.
    """
    try:
        if "RANK" in environ and "WORLD_SIZE" in environ:
            return _of_torchrun(environ)
        # In a batch script without srun SLURM_PROCID is set too; SLURM_STEP_NUM_TASKS only within srun.
        if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environ:
            return _of_slurm(environ)
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"The launcher's environment can't be understood ({type(error).__name__}: {one_line(error)}). Expected "
            "RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, or those of srun."
        ) from error
    return None


def _of_torchrun(environ: Mapping[str, str]) -> ProcessRank:
    world_size = int(environ["WORLD_SIZE"])
    return ProcessRank(
        rank=int(environ["RANK"]),
        world_size=world_size,
        local_rank=int(environ.get("LOCAL_RANK", environ["RANK"])),
        local_world_size=int(environ.get("LOCAL_WORLD_SIZE", world_size)),
        host=environ.get("MASTER_ADDR", LOOPBACK),
        port=int(environ.get("MASTER_PORT", "29500")),
    )


def _of_slurm(environ: Mapping[str, str]) -> ProcessRank:
    node = int(environ["SLURM_NODEID"])
    step = int(environ.get("SLURM_JOB_ID", "0")) * 7 + int(environ.get("SLURM_STEP_ID", "0"))
    return ProcessRank(
        rank=int(environ["SLURM_PROCID"]),
        world_size=int(environ["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environ["SLURM_LOCALID"]),
        local_world_size=_tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])[node],
        host=environ.get("MASTER_ADDR") or first_host(environ["SLURM_STEP_NODELIST"]),
        port=int(environ.get("MASTER_PORT", 20000 + step % 20000)),
    )


def _tasks_per_node(text: str) -> list[int]:
    """SLURM's "4(x2),3" is [4, 4, 3]."""
    counts = []
    for item in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item)
        if found is None:
            raise ValueError(f"tasks per node {text!r}")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def first_host(nodes: str) -> str:
    """The first name of a SLURM list of hosts: "gpu[03-05,9],io1" begins with gpu03."""
    found = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    if found is None:
        raise ValueError(f"list of hosts {nodes!r}")
    return found[1] + (found[2] or "")


def count_processes(device: str, wanted: int | None, own: ProcessRank | None) -> int:
    """How many processes a run has on this machine: ``wanted``, else one for each visible GPU, else one.

    Raises UsageError where a launcher has decided already, or one named GPU is asked of several processes.
    """
    if own is not None:
        if wanted not in (None, 1, own.local_world_size):
            raise UsageError(
                f"`num_processes` {wanted}: this process was started by a launcher, with {own.local_world_size} "
                "processes on this machine. Leave `num_processes` out."
            )
        return own.local_world_size
    if ":" in device:
        if wanted not in (None, 1):
            raise UsageError(f"`device` {device} is one device; `num_processes` {wanted} wants `device` cuda or cpu.")
        return 1
    if wanted is None:
        wanted = torch.cuda.device_count() if device in ("auto", "cuda") and torch.cuda.is_available() else 1
    return max(1, wanted)


def join(own: ProcessRank, device: str) -> tuple[Store, torch.device]:
    """Join the other processes: the store all of them share, and this process's device.

    No collective is ever run, so a process that dies later stops nobody. Raises WorkerError when the leader can't be
    reached, UsageError for a device that isn't there, or for one of several by its number.
    """
    wanted = pick_device(device)
    on_gpu = wanted.type == "cuda"
    if ":" in device and own.world_size > 1:
        raise UsageError(
            f"`device` is {device}: under a launcher each process takes the GPU of its local rank. Use cuda, and "
            "choose the GPUs with CUDA_VISIBLE_DEVICES."
        )
    _set_environment(own, os.environ)
    from accelerate import PartialState

    try:
        with warnings.catch_warnings():  # of how many threads it has set: encoder.py decides that
            warnings.simplefilter("ignore")
            threads = torch.get_num_threads()
            # gloo on GPUs too: no collective is ever run, and NCCL takes memory and has demands of its own.
            backend = {"backend": "gloo"} if on_gpu else {}
            with _without_nccl(os.environ):
                state = PartialState(cpu=not on_gpu, timeout=START_TIMEOUT, **backend)
            torch.set_num_threads(threads)
        store = TCPStore(own.host, own.port, is_master=False, wait_for_workers=False, timeout=START_TIMEOUT)
    except (DistError, RuntimeError, ValueError) as error:
        raise WorkerError(
            f"rank {own.rank} can't join the run led from {own.host}:{own.port}: {one_line(error)}. Are all "
            f"{own.world_size} processes up, and can they reach that address?"
        ) from error
    return PrefixStore(_corner(os.environ), store), state.device if on_gpu else wanted


@contextmanager
def _without_nccl(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Answer Accelerate's question about pairs of RTX 40 cards with old drivers, whatever the backend: they can't
    reach each other, and need not."""
    added = {"NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"} - set(environ)
    environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del environ[name]


def was_started_here(environ: Mapping[str, str]) -> bool:
    """Whether this process is one that ``launch`` has started."""
    return _STARTED_HERE in environ


_joined = count()


def _corner(environ: Mapping[str, str]) -> str:
    """Where in the store this run's keys are. A launcher keeps its store when it restarts its workers, and a program
    may make several runs: each has its own corner."""
    if was_started_here(environ):
        return _WORKERS_CORNER
    attempt = environ.get("TORCHELASTIC_RUN_ID", ""), environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return f"dcae-cache/{'/'.join(attempt)}/{next(_joined)}"


def _set_environment(own: ProcessRank, environ: MutableMapping[str, str]) -> None:
    """Say of srun's processes what torch.distributed wants to hear; others say it already."""
    environ["RANK"], environ["WORLD_SIZE"] = str(own.rank), str(own.world_size)
    environ["LOCAL_RANK"], environ["LOCAL_WORLD_SIZE"] = str(own.local_rank), str(own.local_world_size)
    environ["MASTER_ADDR"], environ["MASTER_PORT"] = own.host, str(own.port)
    environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")  # no connections between workers until a collective: never


def host_store() -> tuple[TCPStore, Store]:
    """A store for workers on this machine: the server, whose ``port`` they want, and the corner they find in it."""
    server = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False, timeout=START_TIMEOUT)
    return server, PrefixStore(_WORKERS_CORNER, server)


def launch(module: str, number: int, port: int) -> list[subprocess.Popen[bytes]]:
    """Start ``number`` processes of ``python -m module`` with Accelerate's launcher settings, standard input a pipe.

    They are no process group of a shell's: Ctrl-C reaches this process alone, which tells them. Accelerate's own
    launchers end all workers when one dies; here the others go on.
    """
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // number))
    settings = [f"--num_processes={number}", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    arguments = launch_command_parser().parse_args(
        [*settings, f"--num_cpu_threads_per_process={threads}", "--module", module]
    )
    arguments.use_cpu = not torch.cuda.is_available()
    command, environ = prepare_simple_launcher_cmd_env(arguments)
    environ |= {
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": LOOPBACK,  # Accelerate leaves these two out for a single process
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here, not at rank 0
        "TORCHELASTIC_RESTART_COUNT": "0",
        _STARTED_HERE: "1",
        "TORCH_CPP_LOG_LEVEL": environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),  # of a store that ends before a worker
    }
    return [
        subprocess.Popen(
            command,
            env=environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else None,
            start_new_session=True,
        )
        for rank in range(number)
    ]


def _has_descriptor(stream: object) -> bool:
    try:
        stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
    return True
