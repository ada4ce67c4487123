"""Several processes, one cache: the same bytes however many there are, whoever starts them and whoever dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from dcae_cache.cache.index import load_index
from helpers import command as command_line
from helpers.command import TINY
from helpers.faults import hashes
from helpers.images import make_folder
from helpers.tars import make_tar, triples

RUN = [*TINY, "--batch-size", "2", "--part-size", "3", "--workers", "2"]
MODULE = ["-m", "dcae_cache.cli.main"]
ALONE = [sys.executable, *MODULE]
NO_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environ(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in NO_LAUNCHER}
    return kept | {"OMP_NUM_THREADS": "1"} | more


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def encode(
    command: list[str], source: str | Path, out: Path, *more: str
) -> subprocess.CompletedProcess[str] | command_line.Done:
    """What came of it. The processes of a launcher, and workers, start as they do for users; one that is alone, or
    starts the workers, is forked off a warm one."""
    if command is ALONE:
        return command_line.carry_out("encode", source, "--out", out, *RUN, *more)
    return subprocess.run(
        [*command, "encode", str(source), "--out", str(out), *RUN, *more],
        env=environ(),
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("sources")
    make_folder(root / "photos", 20)
    (root / "photos" / "class0" / "img000.txt").write_text("a caption")  # found by listing alone
    for number, count in enumerate((2, 7, 4)):  # uneven
        make_tar(root / "tars" / f"{number}.tar", triples(10 * number, count))
    return {"folder": str(root / "photos"), "tars": f"{root}/tars/{{0..2}}.tar"}


@pytest.fixture(scope="module")
def expected(sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Of each source, what one process makes of it."""
    root = tmp_path_factory.mktemp("alone")
    for name, source in sources.items():
        assert encode(ALONE, source, root / name).returncode == 0
    return {name: hashes(root / name) for name in sources}


LAUNCHED = {
    "2 processes": (ALONE, ["--num-processes", "2"]),
    "3 processes": (ALONE, ["--num-processes", "3"]),
    "torchrun": ([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", *MODULE], []),
    "accelerate": (
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
            *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", *MODULE),
        ],
        [],
    ),
}


@pytest.mark.parametrize(
    ("launched", "kind"),
    [
        *(("2 processes", "folder"), ("2 processes", "tars")),
        pytest.param("3 processes", "tars", marks=pytest.mark.slow),
        pytest.param("torchrun", "tars", marks=pytest.mark.slow),
        pytest.param("accelerate", "folder", marks=pytest.mark.slow),
    ],
)
def test_the_same_bytes_however_many_processes(
    launched: str, kind: str, sources: dict[str, str], expected: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    command, options = LAUNCHED[launched]
    if command is not ALONE:
        command = [
            *command[:3],
            f"--{'main_process' if 'accel' in launched else 'master'}_port={free_port()}",
            *command[3:],
        ]
    done = encode(command, sources[kind], tmp_path / "out", *options, "--json")
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "out") == expected[kind]
    summary = json.loads(done.stdout)  # one process speaks for all
    assert summary["complete"]
    assert summary["num_processes"] in (2, 3)
    assert summary["encoded"] == {"folder": 20, "tars": 13}[kind]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_nodes_meet_by_rendezvous(
    sources: dict[str, str], expected: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Two agents on two addresses of this machine; the folder is all they share."""
    port = free_port()
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node)),
                *("--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)),
                *("--local-addr", f"127.0.0.{node + 1}", *MODULE),
                *("encode", sources["folder"], "--out", str(tmp_path / "out"), *RUN),
            ],
            env=environ(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    for agent in agents:
        _, said = agent.communicate(timeout=180)
        assert agent.returncode == 0, said
    assert hashes(tmp_path / "out") == expected["folder"]


@pytest.mark.slow
def test_a_single_part_that_is_left_is_made_by_a_single_worker(
    sources: dict[str, str], expected: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert encode(ALONE, sources["folder"], out).returncode == 0
    (out / "parts" / "part-000001.parquet").unlink()
    again = encode(ALONE, sources["folder"], out, "--num-processes", "2")
    assert again.returncode == 0, again.stderr
    assert hashes(out) == expected["folder"]


class Crew:
    """``dcae-cache encode`` in three processes over plenty of images, to be disturbed once work is going on."""

    def __init__(self, source: Path, out: Path, **env: str) -> None:
        self.out = out
        self.process = subprocess.Popen(
            [*ALONE, "encode", str(source), "--out", str(out), *RUN, "--num-processes", "3"],
            env=environ(**env),
            stderr=subprocess.PIPE,
            text=True,
        )

    def workers(self) -> list[psutil.Process]:
        """The workers, once there are three and the first part is committed."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = psutil.Process(self.process.pid).children()
            if len(found) == 3 and any((self.out / "parts").glob("part-*.parquet")):
                return sorted(found, key=lambda child: child.environ()["RANK"])
            time.sleep(0.02)
        raise AssertionError("no worker came up")

    def worker_that_starts(self, rank: int) -> psutil.Process:
        """That worker, before it has so much as imported torch."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for child in psutil.Process(self.process.pid).children():
                with suppress(psutil.Error):  # between fork and exec it is still the leader
                    if child.environ().get("RANK") == str(rank):
                        return child
        raise AssertionError(f"rank {rank} did not start")

    def worker_that_writes(self, rank: int) -> psutil.Process:
        """That worker, while it writes a part: before, it may have taken none."""
        worker = self.workers()[rank]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if any(file.path.startswith(f"{self.out}/parts/") for file in worker.open_files()):
                return worker
        raise AssertionError(f"rank {rank} wrote nothing")

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=120)
        assert "Traceback" not in said
        return self.process.returncode, said


def run_first(folder: Path, code: str) -> dict[str, str]:
    """The environment of processes that run this before anything else."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(folder / "site")}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """240 images, and the files that one process makes of them."""
    root = tmp_path_factory.mktemp("many")
    make_folder(root / "photos", 240)
    assert encode(ALONE, root / "photos", root / "out").returncode == 0
    return root / "photos", hashes(root / "out")


@pytest.mark.slow
def test_a_worker_that_is_killed_stops_nobody(many: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    source, expected = many
    crew = Crew(source, tmp_path / "out")
    crew.worker_that_writes(1).send_signal(signal.SIGKILL)
    code, said = crew.end()
    left = 80 - load_index(tmp_path / "out")["totals"]["num_parts"]
    assert 0 < left <= 6  # of 3 images each: some 10 are being decoded, encoded or wait, and two parts are written
    assert code == 1
    assert "rank 1 was killed by SIGKILL" in said
    assert "run the same command again" in said
    again = encode(ALONE, source, tmp_path / "out", "--num-processes", "2")
    assert again.returncode == 0, again.stderr
    assert hashes(tmp_path / "out") == expected


@pytest.mark.slow
def test_a_worker_that_is_killed_before_it_took_a_part_leaves_none(
    many: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    source, expected = many
    crew = Crew(source, tmp_path / "out")
    crew.worker_that_starts(1).send_signal(signal.SIGSTOP)
    crew.workers()[1].send_signal(signal.SIGKILL)
    code, said = crew.end()
    assert code == 0
    assert "rank 1 was killed by SIGKILL; the others went on" in said
    assert hashes(tmp_path / "out") == expected


@pytest.mark.slow
def test_a_worker_that_fails_is_named_and_stops_nobody(many: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """Rank 2 may write no file larger than 1 KiB."""
    source, expected = many
    first = run_first(
        tmp_path,
        "import os, resource\n"
        "if os.environ.get('RANK') == '2':\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n",
    )
    code, said = Crew(source, tmp_path / "out", **first).end()
    assert code == 1
    assert "rank 2: Can't write" in said
    assert load_index(tmp_path / "out")["totals"]["num_parts"] >= 68  # all but what rank 2 had in hand
    assert encode(ALONE, source, tmp_path / "out").returncode == 0
    assert hashes(tmp_path / "out") == expected


@pytest.mark.slow
def test_interrupted_with_its_workers(many: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    source, expected = many
    crew = Crew(source, tmp_path / "out")
    workers = crew.workers()
    crew.process.send_signal(signal.SIGTERM)
    code, said = crew.end()
    assert code == 130
    assert "run the same command again" in said
    assert not any(worker.is_running() for worker in workers)
    assert load_index(tmp_path / "out")["complete"] is False
    assert encode(ALONE, source, tmp_path / "out", "--num-processes", "3").returncode == 0
    assert hashes(tmp_path / "out") == expected


@pytest.mark.slow
def test_workers_end_when_their_leader_is_killed(many: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """Until the last one has noticed, the folder stays locked."""
    source, expected = many
    crew = Crew(source, tmp_path / "out")
    workers = crew.workers()
    crew.process.send_signal(signal.SIGKILL)
    crew.process.wait()
    early = encode(ALONE, source, tmp_path / "out")
    if early.returncode != 0:
        assert early.returncode == 1
        assert "Another run is writing" in early.stderr
    _, alive = psutil.wait_procs(workers, 30)
    assert not alive
    assert crew.end()[0] == -signal.SIGKILL
    assert encode(ALONE, source, tmp_path / "out").returncode == 0
    assert hashes(tmp_path / "out") == expected


@pytest.mark.slow
def test_a_worker_that_is_interrupted_while_pyarrow_imports_pandas(
    many: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """pyarrow drops what the signal raised there: the worker hears of it all the same."""
    source, expected = many
    first = run_first(
        tmp_path,
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pandas.plotting' and os.environ.get('RANK') == '1':\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n",
    )
    code, said = Crew(source, tmp_path / "out", **first).end()
    assert (code, "rank 1: was interrupted; the others went on" in said) == (1, True)
    assert encode(ALONE, source, tmp_path / "out").returncode == 0
    assert hashes(tmp_path / "out") == expected
