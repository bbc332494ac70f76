"""Names of runs: refused before training, or shown everywhere as they are."""

from pathlib import Path

import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from typer.testing import CliRunner

import fl_split as fs
from fl_split.spec_errors import SpecError
from simulations.cli import main as cli
from simulations.data import statistics
from simulations.report.canvas import PLAIN, named_legend
from simulations.report.page import build, html
from simulations.report.runs import collect
from simulations.runs.names import check_apart, check_name
from simulations.runs.settings import several
from simulations.studies.pareto import ParetoStudy, pareto_figure, pareto_table

ODD = ["Ba$$in", "_hidden", "[bold]x", "<b>ö=0.1 & ünï", "NA", "001"]
TINY = {
    "clients": 4, "rounds": 1, "engine": "inline", "batch_size": 128, "local_steps": 1, "cut": 1,
    "model": "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)",
}  # fmt: skip


@pytest.mark.parametrize("name", [*ODD, "a b", "adc-0.1", "x.y", "run"])
def test_names_that_a_folder_can_have(name):
    check_name(name, "c.toml")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        (".", "hidden"),
        ("..", "hidden"),
        (".hidden", "hidden"),
        ("a/b", "no '/'"),
        ("a\\b", r"no '\\\\'"),
        ("a\nb", r"no '\\n'"),
        ("a ", "space"),
        ("n" * 300, "300 bytes"),
        ("ü" * 150, "300 bytes"),
        ("comparison.csv", "does not end in .csv"),
        ("x.SVG", "does not end in .svg"),
    ],
)
def test_names_that_it_cannot_have_are_refused(name, reason):
    with pytest.raises(SpecError, match=f"c.toml: name must be usable as a folder's.*{reason}"):
        check_name(name, "c.toml")


@pytest.mark.parametrize(
    ("one", "other"), [("Run", "run"), ("ü", "u\u0308"), ("straße", "STRASSE")]
)
def test_names_that_some_file_systems_do_not_tell_apart(one, other):
    with pytest.raises(SpecError, match="some file systems do not tell them apart"):
        check_apart([one, "x", other])
    with pytest.raises(SpecError, match="two runs are called"):
        check_apart([one, "x", one])


def test_several_files_and_their_tables_are_one_list():
    rows = {"compare": [{"name": "b", "rounds": 1}, {"rounds": 2}]}
    found = several([("a.toml", {"seed": 1}), ("c.toml", rows)], {"clients": 3})
    assert found == {
        "a": {"seed": 1, "clients": 3},
        "b": {"rounds": 1, "clients": 3},
        "run-2": {"rounds": 2, "clients": 3},
    }
    with pytest.raises(SpecError, match="give at least one run"):
        several([], {})


def test_names_of_a_pareto_study_are_held_to_the_same():
    study = {"codecs": [{"codec": "fp16", "name": "a/b"}], "rounds": 1, "max_rounds": 1}
    with pytest.raises(SpecError, match="pareto: name must be usable"):
        ParetoStudy.read(study).cells({})


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd") / "c"
    codecs = ["identity", "fp16", "bf16", "uniform(bits=8)", "uniform(bits=4)", "topk(ratio=0.5)"]
    runs = {name: {"codec": codec} for name, codec in zip(ODD, codecs, strict=True)}
    fs.compare(runs, out=folder, **TINY)
    return folder


def test_a_comparison_shows_its_names_as_they_are(compared):
    both = fs.load(compared)
    assert list(both.runs) == ODD and list(both.table["run"]) == ODD
    drawn = both.plot()
    assert [text.get_text() for text in drawn.axes[0].get_legend().get_texts()] == ODD
    svg = (compared / "comparison.svg").read_text()
    assert "<svg" in svg


def test_a_report_labels_runs_by_the_names_of_their_comparison(compared):
    found = collect([compared])
    assert {one.label for one in found.configurations} == {*ODD}
    assert found.configurations[1].label == "[bold]x", "in the order of what differs: bf16"
    assert found.configurations[0].whole_label == "Ba$$in, identity"
    assert found.baselines("fp16")[""].label == "_hidden", "what differs still names a baseline"
    text = html(build([compared]))
    assert "&lt;b&gt;ö=0.1 &amp; ünï" in text and "<b>ö" not in text
    assert "Ba$$in" in text and "_hidden</text>" in text and "[bold]x" in text


def test_numbered_runs_are_labelled_by_what_differs(tmp_path):
    fs.compare(
        [{"codec": "identity"}, {"codec": "fp16"}], out=tmp_path / "c", progress=False, **TINY
    )
    assert [one.label for one in collect([tmp_path / "c"]).configurations] == ["identity", "fp16"]


def test_the_command_line_shows_and_refuses_the_same(tmp_path):
    rows = "".join(f"[[compare]]\nname = '{name}'\nseed = {n}\n" for n, name in enumerate(ODD[:3]))
    file = tmp_path / "c.toml"
    file.write_text(rows)
    keys = [f"{key}={value}" for key, value in TINY.items()]
    command = ["compare", str(file), *keys, "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 0 and all(name in done.output for name in ODD[:3])
    file.write_text(rows.replace("_hidden", "ba$$in"))
    command[-1] = str(tmp_path / "p")
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "p").exists()


def test_legends_and_ticks_have_names_as_they_are(tmp_path):
    with rc_context(PLAIN):
        figure = Figure()
        axis = figure.subplots()
        lines = [axis.plot([0, 1])[0] for _ in ODD]
        legend = named_legend(axis, lines, ODD)
        figure.savefig(tmp_path / "x.svg")
    assert [text.get_text() for text in legend.get_texts()] == ODD
    counts = pd.DataFrame([[1, 2], [3, 4]]).to_numpy()
    statistics.partition_plot(counts, ["Ba$$in", "_x"], tmp_path / "p.svg")
    assert (tmp_path / "p.svg").stat().st_size > 0


def test_a_pareto_study_draws_its_names():
    rows = [
        {"codec": name, "budget": "rounds", "limit": 1, "seed": 0, "ratio": 0.1, "rounds": 1,
         "reached": True, "accuracy": 0.5}
        for name in ODD[:3]
    ]  # fmt: skip
    figure = pareto_figure(pd.DataFrame(rows))
    names = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert names == [*ODD[:3], "front"]
    figure.savefig("/dev/null", format="svg")
    cells = [str(cell) for cell in pareto_table(pd.DataFrame(rows)).columns[0]._cells]
    assert cells == ODD[:3]


def test_a_stem_of_a_file_is_a_name_too(tmp_path):
    Path(tmp_path / "rounds.csv.toml").write_text("rounds = 1\n")
    done = CliRunner().invoke(cli.app, ["compare", str(tmp_path / "rounds.csv.toml")])
    assert done.exit_code == 2 and "does not end in .csv" in done.stderr
