"""Prove that a change of the code moved no result: record the results before and after, compare.

python benchmarks/equal_results.py record FOLDER [--only TEXT] [--tiny]
python benchmarks/equal_results.py compare FOLDER_A FOLDER_B [--only TEXT]

`record` runs the tiny experiments of `equal_runs.py` with the code of the checkout that this
file lies in, and writes FOLDER/results.json: a digest of every tensor, and all columns of all
tables but times and bytes of whole messages. It knows no module of the project: it calls the
command that pyproject.toml declares and reads the files that runs leave. `compare` says for
every run what differs first. Exit code 1: a run failed, differs, or is in one folder only.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from equal_runs import BASE, RUNS, TINY

ROOT = Path(__file__).resolve().parents[1]

TABLES = "rounds.csv", "classes.csv", "shards.csv", "partition.csv", "clients.parquet"
TENSORS = "model.safetensors", "codec.safetensors", "private_exits.safetensors"
STOPPED = ", stopped and resumed"

CHILD = """
import importlib, json, signal, sys, traceback
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
module, _, function = sys.argv[1].partition(":")
app = getattr(importlib.import_module(module), function)
codes = {}
print()
for name, words in json.load(open(sys.argv[2])).items():
    sys.argv[1:] = words
    print("==", name, *words, flush=True)
    try:
        app()
        codes[name] = 0
    except SystemExit as end:
        codes[name] = end.code or 0
    except Exception:
        traceback.print_exc()
        codes[name] = 1
print()
print(json.dumps(codes))
"""
"""One process for many runs: what it imports costs as much as ten of them."""


def record(folder: Path, chosen: dict[str, str]) -> int:
    """Run what is chosen and write its results; return the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    if file.exists():
        raise SystemExit(f"{file} is there already; give another folder")
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        (work / "base.toml").write_text("".join(f"{k} = {json.dumps(BASE[k])}\n" for k in BASE))
        plans = {n: words(text, work / n, work) for n, text in chosen.items()}
        batch = {n: plan for n, plan in plans.items() if "ray" not in n}
        failed = run(batch, work) | run({n: plans[n] for n in plans.keys() - batch.keys()}, work)
        long = {n: plan for n, plan in plans.items() if n.startswith("long")}
        for name, plan in long.items():
            failed |= stopped_and_resumed(name + STOPPED, plan, work)
        names = [*plans, *(name + STOPPED for name in long)]
        runs = {name: read(work / name) for name in names if name not in failed}
    for name in long:
        if runs.get(name) != runs.get(name + STOPPED) and name not in failed:
            failed[name + STOPPED] = "is not what the run never stopped is"
    file.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")
    for name, reason in failed.items():
        print(f"FAILED {name}: {reason}")
    print(f"{len(runs)} runs recorded, {len(failed)} failed: {file}")
    return 1 if failed else 0


def words(text: str, out: Path, work: Path) -> list[str]:
    """Return the command line of a run."""
    settings = [part.replace("{checkpoint}", str(work / "checkpoint")) for part in text.split("; ")]
    return ["run", str(work / "base.toml"), *filter(None, settings), "--out", str(out)]


def start(plans: dict[str, list[str]], work: Path) -> subprocess.Popen[str]:
    """Start a process that executes command lines one after the other."""
    (work / "plans.json").write_text(json.dumps(plans))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entry = next(iter(project["scripts"].values()))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, entry, str(work / "plans.json")]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def run(plans: dict[str, list[str]], work: Path) -> dict[str, str]:
    """Execute command lines in one process; return what failed, and why."""
    if not plans:
        return {}
    if any("checkpoint" in word for plan in plans.values() for word in plan):
        save_checkpoint(work / "checkpoint")
    log, _ = (process := start(plans, work)).communicate()
    try:
        codes = json.loads(log.rstrip().rpartition("\n")[2])
    except ValueError:
        codes = {}
    failed = {n: f"exit code {codes.get(n, process.returncode)}" for n in plans if codes.get(n, 1)}
    for part in log.split("\n== ")[1:] if failed else ():
        if any(part.startswith((f"{name} run ", f"{name} resume ")) for name in failed):
            print(part, file=sys.stderr)
    return failed


def stopped_and_resumed(name: str, plan: list[str], work: Path) -> dict[str, str]:
    """Stop a run with Ctrl-C after its second round, go on with it; return what failed."""
    out, rounds = work / name, work / name / "rounds.csv"
    process = start({name: [*plan[:-1], str(out)]}, work)
    while process.poll() is None:
        if rounds.exists() and rounds.read_text().count("\n") > 2:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.005)
    log, _ = process.communicate()
    done = rounds.read_text().count("\n") - 1 if rounds.exists() else 0
    if not 2 <= done < 8:
        return {name: f"not stopped midway, but after {done} rounds: {log[-1000:]}"}
    return run({name: ["resume", str(out)]}, work)


def save_checkpoint(folder: Path) -> None:
    """Save a small ViT that LoRA runs start from."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 3}
    images = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    config = ViTConfig(**sizes, **images, num_attention_heads=2, num_labels=10)
    ViTForImageClassification(config).save_pretrained(folder)


def machine() -> dict[str, str]:
    """What decides about the last bits, beside the code."""
    import torch

    kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"cpu": kind, "torch": torch.__version__, "python": platform.python_version()}


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Read what a run left: per table its columns, per file of weights a digest per tensor."""
    import pandas as pd
    from safetensors.torch import load_file

    found: dict[str, dict[str, Any]] = {}
    for name in TABLES:
        if name.endswith(".parquet"):
            frame = pd.read_parquet(folder / name)
            columns = {str(key): [repr(v) for v in frame[key].tolist()] for key in frame}
        elif (folder / name).exists():
            with (folder / name).open(newline="", encoding="utf-8") as file:
                head, *rows = csv.reader(file)
            columns = {key: [row[i] for row in rows] for i, key in enumerate(head)}
        else:
            continue
        found[name] = {key: column for key, column in columns.items() if not is_ignored(key)}
    for name in TENSORS:
        if (folder / name).exists():
            found[name] = {key: digest(t) for key, t in sorted(load_file(folder / name).items())}
    return found


def is_ignored(column: str) -> bool:
    """Whether a column tells of clocks, or of bytes around what is counted."""
    return column.endswith("_seconds") or column.startswith("wire_bytes")


def digest(tensor: Any) -> str:
    """Return a digest of type, shape and bits."""
    import torch

    bits = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    shape = f"{tensor.dtype} {tuple(tensor.shape)}"
    return f"{shape} {hashlib.blake2b(bits, digest_size=16).hexdigest()}"


def compare(first: Path, second: Path, only: str) -> int:
    """Say for every run whether its two results are equal; return the exit code."""
    a, b = (json.loads((folder / "results.json").read_text()) for folder in (first, second))
    if a["machine"] != b["machine"]:
        print(f"note: recorded on unlike machines, {a['machine']} and {b['machine']}")
    names = [name for name in {**a["runs"], **b["runs"]} if only in name]
    different = 0
    for name in names:
        mine, its = a["runs"].get(name), b["runs"].get(name)
        if mine is None or its is None:
            found, notes = [f"only in {first if its is None else second}"], []
        else:
            found, notes = list(differences(mine, its)), list(moved_columns(mine, its))
        different += bool(found)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        print(f"{name}: {f'DIFFERS: {found[0]}{more}' if found else 'equal'}", *notes, sep="; ")
    print(f"{len(names)} runs, {different} differ")
    return 1 if different or not names else 0


def differences(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield what differs: files and tensors in one only, numbers, bits."""
    for file in {**a, **b}:
        if file not in a or file not in b:
            yield f"{file} only in the {'first' if file in a else 'second'}"
            continue
        for key in {**a[file], **b[file]}:
            mine, its = a[file].get(key), b[file].get(key)
            if file in TABLES and mine is not None and its is not None and mine != its:
                yield f"{file} {key}: {unlike(mine, its)}"
            elif file in TENSORS and mine != its:
                yield f"{file} {key}: {mine} and {its}"


def unlike(a: list[str], b: list[str]) -> str:
    """Say where two columns part."""
    for row, (mine, its) in enumerate(zip(a, b, strict=False), start=1):
        if mine != its:
            return f"row {row}: {mine} and {its}"
    return f"{len(a)} and {len(b)} rows"


def moved_columns(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield columns that one of the two lacks; they are no difference."""
    for file in [name for name in TABLES if name in a and name in b]:
        yield from (f"{file} {key}: removed" for key in a[file] if key not in b[file])
        yield from (f"{file} {key}: added" for key in b[file] if key not in a[file])


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording, comparing = commands.add_parser("record"), commands.add_parser("compare")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--tiny", action="store_true", help=f"only {', '.join(TINY)}")
    comparing.add_argument("folders", type=Path, nargs=2)
    for command in (recording, comparing):
        command.add_argument("--only", default="", metavar="TEXT", help="runs with it in the name")
    options = parser.parse_args()
    if options.command == "compare":
        first, second = options.folders
        return compare(first, second, options.only)
    chosen = {n: RUNS[n] for n in (TINY if options.tiny else RUNS) if options.only in n}
    if not find_spec("peft") and (lora := [n for n in chosen if n.startswith("lora")]):
        print(f"left out, they need peft: {', '.join(lora)}")
        chosen = {n: text for n, text in chosen.items() if n not in lora}
    return record(options.folder, chosen)


if __name__ == "__main__":
    sys.exit(main())
