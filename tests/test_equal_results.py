"""The tool that says whether a change of the code moved a result."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "benchmarks" / "equal_results.py"
MACHINE = {"cpu": "x86_64 AVX2", "torch": "2.13", "python": "3.12"}
RUN = {
    "rounds.csv": {"round": ["1", "2"], "loss": ["2.25", "2.125"]},
    "model.safetensors": {"head.bias": "torch.float32 (2,) aa", "head.weight": "torch.int64 () bb"},
}


def call(*words):
    return subprocess.run([sys.executable, TOOL, *words], capture_output=True, text=True)


@pytest.fixture
def compared(tmp_path):
    """Compare two runs, `kept` and `other`, before and after a change to `other`."""

    def compare(change, *options):
        before = {"machine": MACHINE, "runs": {"kept": RUN, "other": copy.deepcopy(RUN)}}
        after = copy.deepcopy(before)
        change(after)
        for name, content in (("a", before), ("b", after)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "results.json").write_text(json.dumps(content))
        done = call("compare", tmp_path / "a", tmp_path / "b", *options)
        return done.returncode, done.stdout.splitlines()

    return compare


def test_equal_results_are_equal(compared):
    code, lines = compared(lambda after: None)
    assert code == 0 and lines == ["kept: equal", "other: equal", "2 runs, 0 differ"]


def test_one_changed_number_is_named_with_its_column_and_row(compared):
    def change(after):
        after["runs"]["other"]["rounds.csv"]["loss"][1] = "2.126"

    code, lines = compared(change)
    assert code == 1
    assert lines[:2] == ["kept: equal", "other: DIFFERS: rounds.csv loss: row 2: 2.125 and 2.126"]
    assert compared(change, "--only", "kept") == (0, ["kept: equal", "1 runs, 0 differ"])


def test_a_round_more_is_a_difference(compared):
    def change(after):
        for column in after["runs"]["other"]["rounds.csv"].values():
            column.append("3")

    code, lines = compared(change)
    assert code == 1
    assert lines[1] == "other: DIFFERS: rounds.csv round: 2 and 3 rows (and 1 more)"


def test_a_changed_and_a_lost_tensor_are_differences(compared):
    def change(after):
        tensors = after["runs"]["other"]["model.safetensors"]
        tensors["head.bias"] = "torch.float32 (2,) ab"
        del tensors["head.weight"]

    code, lines = compared(change)
    assert code == 1 and "model.safetensors head.bias: torch.float32 (2,) aa and" in lines[1]
    assert lines[1].endswith("(and 1 more)")


def test_columns_in_one_of_both_are_told_but_no_difference(compared):
    def change(after):
        table = after["runs"]["other"]["rounds.csv"]
        table["drift"] = table.pop("loss")

    code, lines = compared(change)
    assert code == 0
    assert lines[1] == "other: equal; rounds.csv loss: removed; rounds.csv drift: added"


def test_a_lost_run_a_lost_file_and_nothing_to_compare_are_no_proof(compared):
    assert compared(lambda after: after["runs"].pop("other"))[0] == 1
    assert compared(lambda after: after["runs"]["other"].pop("rounds.csv"))[0] == 1
    assert compared(lambda after: None, "--only", "nothing")[0] == 1


def test_unlike_machines_are_told(compared):
    code, lines = compared(lambda after: after["machine"].update(cpu="x86_64 AVX512"))
    assert code == 0 and lines[0].startswith("note: recorded on unlike machines")


@pytest.mark.slow
def test_the_same_code_gives_the_same_results_twice(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, only in ((a, []), (b, ["--only", "adc"])):
        done = call("record", folder, "--tiny", *only)
        assert done.returncode == 0, done.stdout + done.stderr
    assert call("compare", a, b).returncode == 1  # a run is in one folder only
    done = call("compare", a, b, "--only", "adc")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "1 runs, 0 differ"
    whole = json.loads((a / "results.json").read_text())["runs"]
    assert sorted(whole) == ["adc", "parallel"]
    assert whole["parallel"]["rounds.csv"]["round"] == ["1", "2"]
    assert len(set(whole["parallel"]["clients.parquet"]["client"])) == 6
    record = json.loads((b / "results.json").read_text())
    loss = record["runs"]["adc"]["rounds.csv"]["loss"]
    loss[0] = loss[0][:-1] + str((int(loss[0][-1]) + 1) % 10)
    (b / "results.json").write_text(json.dumps(record))
    done = call("compare", a, b, "--only", "adc")
    assert done.returncode == 1 and "adc: DIFFERS: rounds.csv loss: row 1" in done.stdout
