"""What is read from the source is what importing gives, and nothing heavy is imported for it."""

import inspect
import subprocess
import sys
from functools import partial

import pytest
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from fl_split.spec_errors import SpecError
from simulations.cli import main as cli
from simulations.runs import outline
from simulations.runs.experiment import Experiment
from simulations.runs.misspelt import check_names
from simulations.runs.parts import SPEC_TABLES

HEAVY = {
    "torch", "transformers", "datasets", "flwr", "flwr_datasets", "ray", "pandas", "matplotlib",
    "scipy", "sklearn",
}  # fmt: skip


def test_keys_are_those_of_an_experiment():
    fields = Experiment.model_fields
    assert PydanticUndefined not in {field.default for field in fields.values()}
    expected = {name: (field.default, field.description) for name, field in fields.items()}
    assert {name: (k.default, k.about) for name, k in outline.keys().items()} == expected


def test_tables_have_the_same_entries():
    assert {key: list(table) for key, table in outline.tables().items()} == {
        key: list(table) for key, table in SPEC_TABLES.items()
    }


@pytest.mark.parametrize(
    ("key", "name"), [(key, name) for key, table in SPEC_TABLES.items() for name in table]
)
def test_an_entry_has_the_arguments_defaults_and_docstring_that_python_sees(key, name):
    entry, seen = SPEC_TABLES[key][name], outline.tables()[key][name]
    known = [inspect.signature(one).parameters.values() for one in (entry, seen)]
    real, ours = [[(one.name, repr(one.default)) for one in each] for each in known]
    assert ours == real
    target = entry.func if isinstance(entry, partial) else entry
    assert seen.doc == inspect.getdoc(target)
    for way in ("up", "down") if key in {"codec", "downlink"} else ():
        assert seen.constants.get(way) == getattr(target, way, None)


@pytest.mark.parametrize(
    "values",
    [
        {"strateyg": "parallel"},
        {"codec": "adcc"},
        {"codec": "adc(ratoi=0.1)"},
        {"codec": "topk | rnas"},
        {"partition": "dirichlet(alhpa=1)"},
        {"model": "vit(2, 3, hidden_sise=4)"},
        {"skew": "noise("},
        {"codec": "adc(ratio=0.1, ratio=0.2)", "strategy": "sflv4"},
    ],
)
def test_a_misspelt_name_is_answered_as_by_the_experiment(values):
    with pytest.raises(SpecError) as late:
        Experiment.from_dict(values)
    with pytest.raises(SpecError) as early:
        check_names(values)
    assert sorted(str(early.value).split("; codec")) == sorted(str(late.value).split("; codec"))


@pytest.mark.parametrize(
    "values",
    [
        {"codec": "my_parts:Mine(1)"},
        {"plugins": ["parts.py"], "codec": "mine"},
        {"codec": "adc(ratio=2)", "rounds": "many"},
        {"codec": 3},
    ],
)
def test_other_than_names_nothing_is_judged_early(values):
    check_names(values)


def test_parts_of_other_packages_are_not_overlooked(tmp_path, monkeypatch):
    installed = tmp_path / "theirs-1.2.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.2\n")
    point = "[fl_split.codecs]\ntheirs = fl_split.codecs:Identity\n"
    (installed / "entry_points.txt").write_text(point)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    outline.tables.cache_clear()
    try:
        check_names({"codec": "theirs"})
        shown = CliRunner().invoke(cli.app, ["list", "codecs"]).output
    finally:
        outline.tables.cache_clear()
    assert "adc(ratio=0.1" in shown and "Down: " in shown and "theirs()" in shown


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["list"], 0),
        (["list", "adc"], 0),
        (["configs"], 0),
        (["run", "quickstart", "codec=adcc"], 2),
        (["run", "nofile.toml"], 2),
        (["sweep", "quickstart", "codec=adcc,adc"], 2),
        (["pareto", "pareto_digits", "strateyg=local"], 2),
        (["compare", "splitfed_baselines", "sede=1"], 2),
        (["resume", "nowhere"], 2),
    ],
)
def test_lists_and_misspelt_names_import_nothing_heavy(arguments, code):
    program = (
        "import sys\n"
        "from simulations.cli.main import app\n"
        "try:\n    app()\n"
        "except SystemExit as end:\n"
        f"    assert end.code == {code}, end.code\n"
        f"assert not {HEAVY} & {{*sys.modules}}, {HEAVY} & {{*sys.modules}}\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_a_worker_imports_no_data_sets_tables_or_figures():
    heavy = HEAVY - {"torch", "flwr", "scipy"}  # scipy: what MergeSFL measures distances with
    program = f"import simulations.engines.ray_actor, sys; assert not {heavy} & {{*sys.modules}}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_the_name_of_an_entry_shows_all_that_its_docstring_says():
    shown = CliRunner().invoke(cli.app, ["list", "adc"]).output
    assert "weighted_loss : bool" in shown and "topk" not in shown
    named = CliRunner().invoke(cli.app, ["list", "none"]).output
    assert [key for key in ("budget", "skew", "tracking") if f"{key} = none()" in named] == [
        "budget",
        "skew",
        "tracking",
    ]
