"""The same job on our engines and on Flower's stock simulation runtime (`flwr run`).

python benchmarks/peers.py [--clients N] [--batch N] [--rounds N] [--json FILE] [--tiny]

Digits, IID, ViT d=64 with 2+4 blocks, 65 tokens, `parallel`, two steps per round. Same apps, same
bits. CPU is of every process that takes part; the first round warms up and does not count.
The tiny size leaves Ray and Flower's runtime out: they take too long to start.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from strategies.server.threads import available_cores

ROOT = Path(__file__).parents[1]
STEPS = 2
FLOWER = "flwr run"


def settings(clients: int, batch: int, rounds: int, out: Path) -> str:
    """Return the experiment as TOML."""
    return f"""
clients = {clients}
partition = "iid"
model = "vit(num_hidden_layers=6, image_size=32, patch_size=4)"
batch_size = {batch}
local_steps = {STEPS}
rounds = {rounds + 1}
head_optimizer = "sgd(lr=0.01)"
tail_optimizer = "sgd(lr=0.01)"
checkpoint_every = 0
out = "{out}"
"""


def measure(command: list[str], environment: dict[str, str], out: Path, rounds: int) -> list[float]:
    """Run `command`; return CPU and wall seconds per round after the first."""
    marks: list[tuple[float, float]] = []
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 900
    try:
        while len(marks) <= rounds and time.monotonic() < deadline:
            has_ended = process.poll() is not None
            path = out / "rounds.csv"
            done = len(path.read_text().splitlines()) - 1 if path.exists() else 0
            if done > len(marks):
                marks += [(cpu_seconds(environment["FLWR_HOME"]), time.monotonic())] * (
                    done - len(marks)
                )
            if has_ended:
                break
            time.sleep(0.05)
        process.wait(timeout=60)
    finally:
        stop(environment["FLWR_HOME"])
    if len(marks) <= rounds:
        reached = f"{len(marks)} of {rounds + 1} rounds, exit code {process.returncode}"
        raise RuntimeError(f"{' '.join(command)}: {reached}")
    (cpu, wall), (last_cpu, last_wall) = marks[0], marks[-1]
    return [(last_cpu - cpu) / rounds, (last_wall - wall) / rounds]


def ours(home: str) -> list[psutil.Process]:
    """Every process started with FLWR_HOME = `home`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME") == home and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def cpu_seconds(home: str) -> float:
    """CPU time of all of them so far."""
    times = [process.cpu_times() for process in ours(home)]
    return sum(t.user + t.system for t in times)


def stop(home: str) -> None:
    """`flwr run` leaves its SuperLink running."""
    for process in ours(home):
        process.send_signal(signal.SIGTERM)


def free_port() -> str:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def job(name: str, folder: Path, toml: Path, clients: int) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs a job on an engine, or by Flower, and its environment."""
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "FLWR_HOME": f"{folder}/home",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_CONTROL_API_PORT": free_port(),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": free_port(),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
    }
    if name == FLOWER:
        command = [str(scripts / "flwr"), "run", ".", "--run-config", str(toml)]
        command += ["--federation-config", f"num-supernodes={clients}", "--stream"]
    else:
        command = [sys.executable, "-m", "simulations.cli.main", "run", str(toml)]
        command += ["--engine", name]
    return command, environment


def row(name: str, clients: int, batch: int, rounds: int) -> dict[str, Any]:
    """Measure one runtime: CPU and wall milliseconds per client and step."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        out, toml = folder / "out", folder / "job.toml"
        toml.write_text(settings(clients, batch, rounds, out))
        found = measure(*job(name, folder, toml, clients), out, rounds)
    cpu, wall = (1000 * seconds / (clients * STEPS) for seconds in found)
    return {"name": name, "cpu_ms": cpu, "wall_ms": wall}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--tiny", action="store_true", help="see whether it runs; inline")
    options = parser.parse_args()
    if options.tiny:
        options.clients, options.batch, options.rounds = 2, 4, 1
    print(
        f"{platform.platform()}, {available_cores()} cores, torch {torch.__version__}, "
        f"{options.clients} clients, batches of {options.batch}, {options.rounds} rounds"
    )
    names = ["inline"] if options.tiny else ["inline", "ray", FLOWER]
    rows = [row(name, options.clients, options.batch, options.rounds) for name in names]
    table = Table("runtime", "CPU ms per client-step", "wall ms per client-step")
    for found in rows:
        table.add_row(found["name"], f"{found['cpu_ms']:.1f}", f"{found['wall_ms']:.1f}")
    Console().print(table)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
