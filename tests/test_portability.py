"""Batch jobs, bare containers, and systems that lack what Linux has."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from simulations.engines import ray_start
from simulations.engines.local_grid import EngineError, deadline
from simulations.engines.memory import keep_freed_memory
from simulations.runs.files import OutputError
from simulations.runs.lock import alone
from simulations.runs.run import Stop
from simulations.runs.signals import HungUp, Terminated, terminable, undisturbed

ROOT = Path(__file__).parents[1]
SOCKET = "ray/session_2026-11-28_21-19-37_123456_4194304/sockets/plasma_store"


def test_without_alarms_a_block_runs_to_its_end(monkeypatch):
    with pytest.raises(TimeoutError), deadline(0.05):
        time.sleep(1)
    monkeypatch.delattr(signal, "SIGALRM")
    with deadline(0.05):
        time.sleep(0.1)


@pytest.mark.parametrize("error", [TypeError, OSError])
def test_without_a_c_library_memory_is_kept_as_usual(monkeypatch, error):
    def missing(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", missing)
    keep_freed_memory()


def test_one_process_at_a_time_holds_a_folder_and_its_end_frees_it(tmp_path):
    program = "import sys; from simulations.runs.lock import alone\n"
    program += f"with alone({tmp_path!r}): print(flush=True); sys.stdin.read()"
    program = "from pathlib import PosixPath, WindowsPath\n" + program
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        other.stdout.readline()
        with pytest.raises(OutputError, match="another process is writing into"), alone(tmp_path):
            pass
        other.kill()
    with alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


ENDS = [(signal.SIGTERM, Terminated), (signal.SIGHUP, HungUp)]


@pytest.mark.parametrize(("blow", "kind"), ENDS)
def test_signals_end_a_block_only_inside_it_and_wait_for_what_is_written(blow, kind):
    before = signal.getsignal(blow)
    written = []
    with pytest.raises(kind) as caught, terminable():
        try:
            os.kill(os.getpid(), blow)
            time.sleep(5)
        finally:
            with undisturbed(forgets=True):
                for again in (signal.SIGTERM, signal.SIGHUP):
                    os.kill(os.getpid(), again)
                written.append("summary")
    assert written == ["summary"]
    assert signal.getsignal(blow) == before
    assert isinstance(caught.value, KeyboardInterrupt)
    assert Stop.because(caught.value, Path("runs"), []).code == 128 + blow
    assert Stop.because(KeyboardInterrupt(), Path("runs"), []).code == 128 + signal.SIGINT


def test_a_signal_while_something_is_written_counts_when_it_is_done():
    done = []
    with pytest.raises(Terminated), terminable():
        with undisturbed():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("row")
        done.append("next round")
    assert done == ["row"]


def test_a_run_that_nohup_protects_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("spare", [-1, 0, 1])
def test_sockets_of_ray_always_fit_in_their_107_bytes(monkeypatch, spare):
    """The longest name of a session, as long as process numbers have seven digits."""
    room = 107 - len(f"/{SOCKET}.1")
    usual = "/" + "x" * (room - 1 - spare)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", usual)
    folder = ray_start.temporary_folder()
    assert (folder is None) == (spare >= 0)
    if folder:
        assert len(f"{folder}/{SOCKET.partition('/')[2]}.1") <= 107
    monkeypatch.setenv("RAY_TMPDIR", "/short")
    assert ray_start.temporary_folder() is None


def test_where_nothing_short_can_be_written_ray_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 90)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(EngineError, match=r"too long for Ray.*set RAY_TMPDIR to a folder of at"):
        ray_start.temporary_folder()


@pytest.mark.slow
def test_a_run_needs_no_home(tmp_path):
    command = [sys.executable, "-m", "fl_split", "run", "quickstart", "rounds=1", "clients=2"]
    done = subprocess.run(
        [*command, "engine=inline()", "--out", str(tmp_path / "out")],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": "/dev/null"},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "summary.json").exists()
    assert "Traceback" not in done.stderr
