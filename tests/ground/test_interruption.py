"""An interruption reaches the work, also where a library swallows it, and disturbs nothing that puts work down."""

import subprocess
import sys
from pathlib import Path

START = """
import os, signal, sys, time
from dcae_cache.interruption import Interruption

def signal_self():
    os.kill(os.getpid(), signal.SIGTERM)
"""


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START + code], capture_output=True, text=True, timeout=60, check=False, env=env
    )


def test_it_comes_again_where_a_library_drops_it(tmp_path: Path) -> None:
    """pyarrow drops whatever a signal raises while it imports pandas for ``to_numpy``."""
    (tmp_path / "pandas.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    done = run(
        "import numpy as np, pyarrow as pa\n"
        "numbers = pa.Array.from_buffers(pa.int64(), 1, [None, pa.py_buffer(np.ones(1, np.int64))])\n"
        "with Interruption([signal.SIGTERM]):\n"
        "    try:\n"
        "        numbers.to_numpy()\n"
        "        print('went on', flush=True)\n"
        "        time.sleep(50)\n"
        "    except KeyboardInterrupt:\n"
        "        print('stopped')\n",
        PYTHONPATH=str(tmp_path),
    )
    assert done.stdout == "went on\nstopped\n", done.stderr


def test_it_comes_again_where_a_destructor_drops_it_without_a_word() -> None:
    done = run(
        "class Odd:\n"
        "    def __del__(self):\n"
        "        signal_self()\n"
        "with Interruption([signal.SIGTERM]):\n"
        "    try:\n"
        "        odd = Odd()\n"
        "        del odd\n"
        "        time.sleep(50)\n"
        "    except KeyboardInterrupt:\n"
        "        print('stopped')\n"
    )
    assert (done.stdout, done.stderr) == ("stopped\n", "")


def test_what_puts_work_down_has_its_time() -> None:
    """Once seen it isn't raised again, however long cleaning up takes, and not after the block either."""
    done = run(
        "with Interruption([signal.SIGTERM]):\n"
        "    try:\n"
        "        try:\n"
        "            signal_self()\n"
        "        finally:\n"
        "            time.sleep(2.5)\n"
        "            print('put down')\n"
        "    except KeyboardInterrupt:\n"
        "        time.sleep(2.5)\n"
        "        print('stopped')\n"
        "time.sleep(2.5)\n"
        "print('went on')\n"
    )
    assert (done.stdout, done.stderr) == ("put down\nstopped\nwent on\n", "")


def test_a_second_signal_does_what_was_asked_for() -> None:
    done = run(
        "with Interruption([signal.SIGTERM], then=lambda: print('again')):\n"
        "    try:\n"
        "        signal_self()\n"
        "    except KeyboardInterrupt:\n"
        "        signal_self()\n"
    )
    assert (done.stdout, done.stderr) == ("again\n", "")


def test_a_signal_that_is_ignored_stays_so() -> None:
    done = run(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "with Interruption([signal.SIGTERM]):\n"
        "    signal_self()\n"
        "    print('went on')\n"
    )
    assert (done.stdout, done.stderr) == ("went on\n", "")


def test_an_error_of_work_cut_short_is_no_error() -> None:
    """Half an import that was interrupted leaves modules that fail when they are used, as pandas does."""
    done = run(
        "import dcae_cache.cli.main as cli\n"
        "def work(**_):\n"
        "    try:\n"
        "        signal_self()\n"
        "    except BaseException:\n"
        "        raise AttributeError('half a module') from None\n"
        "cli.app = work\n"
        "cli.main()\n"
    )
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")
