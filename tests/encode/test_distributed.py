"""Where a process stands, as launchers tell it: torchrun, accelerate launch, srun, or nobody."""

from __future__ import annotations

import pytest

from dcae_cache.encode.distributed import ProcessRank, count_processes, find_rank, first_host
from dcae_cache.errors import UsageError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29400",
}
SRUN = {
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_STEP_NODELIST": "gpu[07-09],io3",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
}


def place(**changes: int) -> ProcessRank:
    values = {"rank": 0, "world_size": 1, "local_rank": 0, "local_world_size": 1, "host": "h", "port": 1}
    return ProcessRank(**(values | changes))  # type: ignore[arg-type]


def test_nobody() -> None:
    assert find_rank({}) is None


def test_torchrun_and_accelerate() -> None:
    expected = ProcessRank(rank=5, world_size=8, local_rank=1, local_world_size=4, host="node7", port=29400)
    assert find_rank(TORCHRUN) == expected
    assert not expected.leads


def test_srun() -> None:
    found = find_rank(SRUN)
    assert found is not None
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (9, 11, 1, 3)
    assert found.host == "gpu07"
    assert 1024 < found.port < 65536
    assert found.port == find_rank(SRUN | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}).port  # type: ignore[union-attr]
    named = find_rank(SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert named is not None
    assert (named.host, named.port) == ("10.0.0.1", 4000)


def test_a_batch_script_without_srun_is_alone() -> None:
    """There SLURM_PROCID is 0 and SLURM_NTASKS may be 8, but nobody has started the other 7."""
    assert find_rank({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1", "SLURM_NODEID": "0"}) is None


@pytest.mark.parametrize("broken", [{"RANK": "x"}, {"LOCAL_RANK": ""}, {"MASTER_PORT": "http"}])
def test_an_environment_that_makes_no_sense_is_said(broken: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="launcher's environment"):
        find_rank(TORCHRUN | broken)


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu[03-05,9],io1", "gpu03"), ("a,b", "a"), ("n[1,4]", "n1"), ("host-7", "host-7")]
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_cores_are_divided_fairly() -> None:
    shares = [place(local_rank=rank, local_world_size=3).share_of(8) for rank in range(3)]
    assert shares == [3, 3, 2]
    assert place(local_rank=5, local_world_size=6).share_of(2) == 1


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert count_processes("auto", None, None) == 8
    assert count_processes("cuda", None, None) == 8
    assert count_processes("cuda:3", None, None) == 1
    assert count_processes("cpu", None, None) == 1
    assert count_processes("cpu", 3, None) == 3
    assert count_processes("auto", 1, None) == 1
    assert count_processes("auto", None, place(world_size=16, local_world_size=4)) == 4
    with pytest.raises(UsageError, match="started by a launcher, with 4 processes"):
        count_processes("auto", 2, place(world_size=16, local_world_size=4))
    with pytest.raises(UsageError, match="`device` cuda:1 is one device"):
        count_processes("cuda:1", 2, None)
