"""What `fl-split infer` and `fl-split report` show of runs: sweeps, baselines, figures."""

import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from fl_split.payload import Payload
from simulations.cli.main import app
from simulations.inference.figure import draw
from simulations.inference.inference import infer
from simulations.inference.pictures import Files
from simulations.report.distributions import heat_map
from simulations.report.figures import our_style
from simulations.report.split_inference import _lines

TINY = {"tokens": "norm(rate=0.25)", "exits": "plain()", "cut": 2, "clients": 2, "rounds": 1}

FINE = "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=2)"
NO_EXITS = {"tokens": "norm(rate=0.25)", "model": FINE, "cut": 2, "clients": 2, "rounds": 1}


@pytest.fixture
def reported(reference, tmp_path):
    """Serve a copy of a tiny run by the command; give the text of its report."""
    folder = shutil.copytree(reference(**TINY, holdout=0.1).folder, tmp_path / "run")

    def page(*words):
        served = CliRunner().invoke(app, ["infer", str(folder), *words])
        assert served.exit_code == 0, served.output
        file = tmp_path / "report.md"
        shown = CliRunner().invoke(app, ["report", str(folder), "-o", str(file)])
        assert shown.exit_code == 0, shown.output
        return file.read_text()

    return page


def test_a_report_shows_the_patches_that_a_run_has_kept(reported):
    assert "Patches that go on" in reported()


def test_a_plain_split_sends_all_tokens_by_no_codec(reference):
    """16 patches and CLS of 16 numbers; the run itself sends 4 patches in 8 bits."""
    run = reference(**NO_EXITS, codec="uniform(bits=8)")
    table = infer(run.folder, "all_sent()").table.set_index("policy")
    payload = Payload({"tokens": torch.zeros(1, 17, 16)}, {"labels": torch.zeros(1).long()})
    assert table.loc["plain split", "bytes_up"] == payload.nbytes
    other = infer(run.folder, "all_sent()", codec="identity()", rate=1.0)
    assert any("plain split lets all tokens go on" in note for note in other.notes)
    same = other.table.set_index("policy").loc["all sent", ["accuracy", "device_flops"]]
    assert table.loc["plain split", [*same.index]].tolist() == same.tolist()


def test_a_plain_split_has_no_exits(reference):
    run = reference(clients=2, rounds=1, cut=2, exits="plain()")
    found = infer(run.folder, channel="bit_errors(ber=0.01, protect='none')")
    (sent, lost), (plain, also_lost) = (
        found.table.set_index("policy").loc[name, ["accuracy", "lost"]]
        for name in ("all sent", "plain split")
    )
    assert lost == also_lost > 300
    assert plain <= (364 - lost) / 364 < sent  # the last exit answers what is lost, or nobody


def test_a_trained_codec_has_no_plain_split(reference):
    run = reference(clients=2, rounds=1, cut=2, codec="bottlenet()")
    found = infer(run.folder, "all_sent()")
    assert "plain split" not in [*found.table["policy"]]
    (note,) = [note for note in found.notes if "plain split" in note]
    assert "no row" in note and "one is trained" in note and "leave" not in note


def test_files_of_as_few_bytes_by_hand():
    """Three images in two qualities of two formats; means of 5 and 7, and of 6 and 20 bytes."""
    right = np.array([[[1, 0, 0], [1, 1, 0]], [[0, 0, 1], [1, 1, 1]]], dtype=bool)
    sizes = np.array([[[2, 5, 8], [4, 7, 10]], [[5, 6, 7], [19, 20, 21]]])
    files = Files([], right, sizes)
    assert files.within(20.0) == (1.0, 0)
    assert files.within(7.0) == (2 / 3, 0)
    assert files.within(5.0) == (1 / 3, 0)  # of the other format two files are too large, and wrong
    assert files.within(4.0) == (1 / 3, 2)
    assert files.within(1.0) == (0.0, 3)


def test_files_stand_beside_each_policy(reference):
    """The accuracy is that of a row of files that is not dearer; what sends nothing has none."""
    found = infer(reference(**TINY, holdout=0.1).folder, ["threshold()", "all_local()"])
    is_file = found.table["policy"].str.startswith(("JPEG", "WEBP"))
    table, files = (found.table[one].set_index("policy") for one in (~is_file, is_file))
    assert np.isnan(table.loc["all local", "file_accuracy"])
    fitting = files[files["bytes_up"] <= table.loc["plain split", "bytes_up"]]
    last = fitting.groupby(fitting.index.str[:4])["accuracy"].last()
    assert table.loc["plain split", "file_accuracy"] == pytest.approx(last.max())
    assert table.loc["oracle", "bytes_up"] < files["bytes_up"].min()
    assert table.loc["oracle", ["file_accuracy", "file_too_large"]].tolist() == [0, 364]
    assert table.loc[["plain split", "all local"], "file_too_large"].tolist() == [0, 0]
    assert any("up to 364 images have no file so small" in note for note in found.notes)


def test_long_names_of_policies_and_settings_leave_room_for_figures(tmp_path):
    """Names as `lyapunov` and chains of codecs have; each axis keeps an inch of height."""
    frame = pd.DataFrame({"bytes_up": [1.0, 2.0], "accuracy": 0.5, "device_flops": 1.0})
    policies = [f"lyapunov(rate={rate}, V=12.5, slots=5000, shared=True)" for rate in range(12)]
    settings = [f"attended(ratio=0.5) | uniform(bits={n}) | zstd(level=9)" for n in range(10)]
    counts = dict.fromkeys(policies, dict.fromkeys(settings, 3))
    table = pd.DataFrame(
        {"policy": policies, "bytes_up": 1.0, "device_flops": 1.0, "accuracy": 1.0}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        served = draw(table, dict.fromkeys(policies, frame), counts)
        with our_style("frontiers"):
            lines = _lines(dict.fromkeys(policies, frame), ("bytes", "accuracy"))
        for figure in (served, lines):
            figure.savefig(tmp_path / "figure.svg")
            for axis in figure.axes:
                assert axis.get_position().height * figure.get_figheight() > 1
        for rows in (policies[:1], policies):
            wide = pd.DataFrame(0.5, index=rows, columns=settings)
            heat_map(wide, "left", "", "", "", ("place", "", "%"), wide)


def test_rates_are_swept_without_a_controller_and_without_held_out_rows(reference):
    """Of 16 patches 2, 8 and 16: each as if it were the rate of the run, and the area by hand."""
    folder = reference(**NO_EXITS).folder
    rates = [1.0, 0.1, 0.5]  # in any order
    found = infer(folder, "all_sent()", rates=rates)
    table, line = found.table.set_index("policy"), found.frontiers["settings"]
    assert line["policy"].tolist() == [f"rate {rate:g}" for rate in rates]
    for rate in rates:
        alone = infer(folder, "all_sent()", rate=rate).table.set_index("policy")
        for key in ("accuracy", "bytes_up", "device_flops"):
            assert table.loc[f"rate {rate:g}", key] == alone.loc["all sent", key]
    (few, half, whole), (a, b, _) = (
        [table.loc[f"rate {rate}", key] for rate in ("0.1", "0.5", "1")]
        for key in ("bytes_up", "accuracy")
    )
    assert whole - few == 14 * 16 * 4 and half - few == 6 * 16 * 4
    area = (half * a + (whole - half) * max(a, b)) / whole
    assert table["area"].dropna().to_dict() == pytest.approx(dict.fromkeys(line["policy"], area))


@pytest.mark.parametrize("keys", [{"model": "resnet18(width=4)", "cut": 2}, {}])
def test_codecs_are_swept_in_a_model_without_exits(reference, keys):
    run = reference(**keys, clients=2, rounds=1, local_steps=1)
    found = infer(run.folder, "all_sent()", codecs=["identity()", "uniform(bits=8)"])
    table = found.table.set_index("policy")
    assert table.loc["identity", "accuracy"] == pytest.approx(run.rounds["accuracy"].iloc[-1])
    assert table.loc["identity", "bytes_up"] > table.loc["uniform(bits=8)", "bytes_up"] > 0
    assert table.loc[["identity", "uniform(bits=8)"], "area"].notna().all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rate", "2"], "rate must be in (0, 1], got 2"),
        (["--rate", "0"], "rate must be in (0, 1], got 0"),
        (["--rate", "x"], "'--rate': 'x' is not a valid float"),
        (["--price", "-1"], "price must be 0 or more, got -1"),
    ],
)
def test_a_number_out_of_range_is_one_line(reference, tmp_path, words, said):
    folder = str(reference(**TINY, holdout=0.1).folder)
    done = CliRunner().invoke(app, ["infer", folder, *words, "--out", str(tmp_path / "none")])
    assert done.exit_code == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line


def test_bounds_of_other_commands_are_one_line_too(tmp_path):
    done = CliRunner().invoke(app, ["time", str(tmp_path), "--round", "0"])
    assert done.exit_code == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "0 is not in the range" in line
