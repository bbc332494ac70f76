"""Reports: the statistics by hand and by scipy, the grouping, and the page as a browser sees it."""

import base64
import io
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

from simulations.cli import main as cli
from simulations.report.figures import grid, named
from simulations.report.labels import families, listed, short
from simulations.report.page import attachments, build, html, write
from simulations.report.panels import panels
from simulations.report.runs import collect
from simulations.report.statistics import holm, interval, non_dominated, paired
from simulations.runs.experiment import Experiment


def write_run(folder, accuracies, status="complete", extra=None, **settings):
    """Write what a run leaves, without running it."""
    experiment = Experiment.from_dict(settings)
    folder.mkdir(parents=True)
    (folder / "experiment.toml").write_text(experiment.to_toml())
    count = len(accuracies)
    payload = (
        0 if experiment.strategy.startswith("fedavg") else 5 if "adc" in experiment.codec else 50
    )
    sums = {
        "payload_bytes_up": payload * 10**5, "payload_bytes_down": payload * 10**5,
        "head_bytes_up": 10**6, "head_bytes_down": 10**6,
        "client_flops": 3 * 10**9, "server_flops": 4 * 10**9,
        "wall_seconds": 2.0, "cpu_seconds": 3.0,
    }  # fmt: skip
    rounds = pd.DataFrame({"round": range(1, count + 1), "accuracy": accuracies, "dropped": 0})
    rounds.assign(**{**sums, **(extra or {})}).to_csv(folder / "rounds.csv", index=False)
    summary = {
        "status": status,
        "final_accuracy": accuracies[-1] if accuracies else None,
        "best_accuracy": max(accuracies, default=None),
        "ratio": payload / 50 or None,
        "versions": {"torch": "2.13"},
        "machine": {"cores": 2},
        **{key: count * value for key, value in sums.items()},
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def write_spread(folder, seed, clients=4, classes=3):
    """Write who holds what, and accuracies by class and client."""
    held = [(i, c, (i + 2 * c + seed) % 5) for i in range(clients) for c in range(classes)]
    frame = pd.DataFrame(held, columns=["client", "class", "samples"])
    frame.to_csv(folder / "partition.csv", index=False)
    by_class = [(r, c, f"digit {c}", 10, (c + r) / 10) for r in (1, 2) for c in range(classes)]
    columns = ["round", "class", "name", "samples", "accuracy"]
    pd.DataFrame(by_class, columns=columns).to_csv(folder / "classes.csv", index=False)
    by_client = [(r, i, 7, (i + r + seed) / 10) for r in (1, 2) for i in range(clients)]
    columns = ["round", "client", "samples", "accuracy"]
    pd.DataFrame(by_client, columns=columns).to_csv(folder / "shards.csv", index=False)


FINAL = {"identity": [0.8, 0.9, 1.0], "adc(ratio=0.1)": [0.7, 0.75, 0.85], "topk": [0.8, 0.9, 1.0]}


@pytest.fixture
def study(tmp_path):
    """Three codecs and three seeds, two levels deep, one run that was stopped."""
    folder = tmp_path / "study"
    for number, (codec, finals) in enumerate(FINAL.items()):
        for seed, final in enumerate(finals):
            place = folder / "cells" / f"{number}-seed{seed}"
            extra = {"drift": [0.1, 0.2], "empty": [math.nan, math.nan]}
            write_run(place, [0.1, final], extra=extra, codec=codec, seed=seed)
            write_spread(place, seed)
    write_run(folder / "cells" / "stopped", [0.1], "interrupted", codec="topk", seed=7)
    return folder


TASKS = ("dirichlet(alpha=0.3)", "dirichlet(alpha=1.0)")


def write_tasks(folder, codecs):
    """Two seeds of every codec on two partitions; accuracies 10 points and more apart."""
    for i, codec in enumerate(codecs):
        for j, partition in enumerate(TASKS):
            for seed in (0, 1):
                final = 0.3 + 0.2 * i + 0.1 * j + 0.02 * seed
                where = folder / f"{i}{j}{seed}"
                write_run(where, [0.1, final], codec=codec, partition=partition, seed=seed)
    return build([folder])


def test_an_overview_sets_methods_against_tasks(tmp_path):
    page = write_tasks(tmp_path, ["identity", "topk(ratio=0.1)"])
    found = {table.name: table for table in page.tables}["overview"]
    assert found.columns == ["method", *TASKS]
    half = 12.7062047 * math.sqrt(2) / math.sqrt(2)  # Student's t with one degree of freedom
    assert found.rows == [
        ["identity", f"31.0 ± {half:.1f}", f"41.0 ± {half:.1f}"],
        ["topk(ratio=0.1)", f"51.0 ± {half:.1f}", f"61.0 ± {half:.1f}"],
    ]
    drawing = page.drawings[0]
    assert drawing.name == "accuracy-by-task" and "dirichlet(alpha=...)" in drawing.file
    ends = drawing.data.set_index(["method", "task"])
    assert ends.loc[("topk(ratio=0.1)", TASKS[1]), "least"] == pytest.approx(60)
    assert ends.loc[("topk(ratio=0.1)", TASKS[1]), "greatest"] == pytest.approx(62)
    assert f"{TASKS[0]}: topk(ratio=0.1)" in drawing.alt


def test_tasks_of_one_method_have_no_overview(tmp_path):
    page = write_tasks(tmp_path, ["identity"])
    assert page.tables[0].name == "results"
    assert page.drawings[0].name == "accuracy-rounds" and len(html(page)) > 1000


def test_interval_is_student_t():
    mean, half = interval([0.8, 0.9, 1.0])
    assert mean == pytest.approx(0.9)
    assert half == pytest.approx(4.302652729911275 * 0.1 / math.sqrt(3))
    low, high = stats.t.interval(0.95, 2, loc=mean, scale=stats.sem([0.8, 0.9, 1.0]))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_one_value_has_no_interval():
    mean, half = interval([0.5, math.nan])
    assert mean == 0.5 and math.isnan(half)
    assert all(math.isnan(number) for number in interval([]))


def test_pairs_are_the_common_seeds():
    found = paired({0: 0.7, 1: 0.75, 2: 0.85, 9: 0.1}, {0: 0.8, 1: 0.9, 2: 1.0, 5: 0.3})
    assert found.seeds == (0, 1, 2)
    assert found.mean == pytest.approx(-0.4 / 3)
    assert found.p == pytest.approx(stats.ttest_rel([0.7, 0.75, 0.85], [0.8, 0.9, 1.0]).pvalue)


def test_what_cannot_be_tested_has_no_p():
    assert paired({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6}).p == 1
    assert math.isnan(paired({0: 0.75, 1: 1.0}, {0: 0.5, 1: 0.75}).p)  # equal differences
    one = paired({0: 0.7}, {0: 0.5})
    assert one.mean == pytest.approx(0.2) and math.isnan(one.half) and math.isnan(one.p)
    assert paired({0: 0.7}, {1: 0.5}).seeds == ()
    assert paired({0: 0.7, 1: math.nan}, {0: 0.5, 1: 0.5}).seeds == (0,)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    adjusted = holm([0.5, math.nan, 0.02, 0.9])
    assert [adjusted[0], adjusted[2], adjusted[3]] == pytest.approx([1.0, 0.06, 1.0])
    assert math.isnan(adjusted[1])


def test_the_front_has_what_nothing_dominates():
    assert non_dominated([1, 2, 3, 3], [5, 7, 6, 7]) == [True, True, False, False]
    assert non_dominated([1, 1], [5, 5]) == [True, True]


def test_specs_are_shortened_to_what_matters():
    assert short("codec", "adc(ratio=0.1, split='sqrt', batch_ratio=None)") == "adc(ratio=0.1)"
    assert short("codec", "topk(0.2) | fp16()") == "topk(ratio=0.2) | fp16"
    assert short("strategy", "parallel(average_heads=True)") == "parallel"
    assert short("strategy", "parallel(average_heads=False)") == "parallel(average_heads=False)"
    assert short("partition", Experiment().partition) == "dirichlet(alpha=0.3)"
    assert short("codec", "unheard_of(x=1)") == "unheard_of(x=1)"
    assert short("clients", 5) == "5"


def test_runs_are_grouped_by_all_but_the_seed(study):
    found = collect([study])
    assert [one.label for one in found.configurations] == [
        "identity",
        "adc(ratio=0.1)",
        "topk(ratio=0.1)",
    ]
    assert [[run.seed for run in one.runs] for one in found.configurations] == [[0, 1, 2]] * 3
    assert found.common["clients"] == 100 and "codec" not in found.common
    assert [(run.name, run.flaw) for run in found.left_out] == [
        ("study/cells/stopped", "interrupted")
    ]


def test_labels_name_every_key_that_differs_and_no_other(tmp_path):
    write_run(tmp_path / "a", [0.5], strategy="sflv2", codec="adc(ratio=0.1)", clients=5)
    write_run(tmp_path / "b", [0.5], strategy="sflv1", codec="adc(ratio=0.1)", clients=10)
    write_run(
        tmp_path / "c", [0.5], strategy="sflv1", downlink="bf16", codec="adc(0.1)", clients=10
    )
    labels = {one.label for one in collect([tmp_path]).configurations}
    assert labels == {"sflv2, clients=5", "sflv1, clients=10", "sflv1, clients=10, downlink=bf16"}
    assert collect([tmp_path / "a"]).configurations[0].label == "sflv2, adc(ratio=0.1)"


def test_the_same_run_counts_once(tmp_path):
    write_run(tmp_path / "a", [0.5], engine="ray")
    write_run(tmp_path / "b", [0.5], engine="inline")
    found = collect([tmp_path, tmp_path / "a"])
    assert [run.name for run in found.runs] == [f"{tmp_path.name}/a"]
    assert [run.flaw for run in found.left_out] == [f"same experiment as {tmp_path.name}/a"]


def test_damaged_runs_are_left_out_and_named(tmp_path):
    for name in ("good", "no-summary", "torn", "no-rounds", "empty"):
        write_run(tmp_path / name, [] if name == "empty" else [0.5], rounds=3, batch_size=len(name))
    (tmp_path / "no-summary" / "summary.json").unlink()
    (tmp_path / "torn" / "summary.json").write_text('{"status": "comp')
    (tmp_path / "no-rounds" / "rounds.csv").unlink()
    page = build([tmp_path])
    for flaw in ("no-summary (unfinished)", "torn (summary.json is torn",
                 "no-rounds (no rounds.csv)", "empty (no rounds)"):  # fmt: skip
        assert flaw in page.facts["left out"]


def test_baselines_are_found_by_part_of_a_label(tmp_path):
    for alpha in (0.1, 1.0):
        for codec in ("identity", "topk(ratio=0.1)", "topk(ratio=0.2)"):
            place = tmp_path / f"{alpha}{codec}"
            write_run(place, [0.5], codec=codec, partition=f"dirichlet(alpha={alpha})")
    study = collect([tmp_path])
    tasks = ["dirichlet(alpha=0.1)", "dirichlet(alpha=1.0)"]

    def chosen(name):
        return [study.baselines(name)[task].label for task in tasks]

    assert chosen(None) == chosen("identity") == [f"identity, {task}" for task in tasks]
    assert chosen("0.2") == [f"topk(ratio=0.2), {task}" for task in tasks]
    assert chosen("topk(ratio=0.1), dirichlet(alpha=1.0)") == [f"topk(ratio=0.1), {tasks[1]}"] * 2
    with pytest.raises(ValueError, match=r"'topk' fits 4 configurations: topk\(ratio=0.1\)"):
        chosen("topk")
    with pytest.raises(ValueError, match="no configuration is called 'adc'; there are: identity"):
        chosen("adc")


def test_tables_hold_the_numbers(study):
    page = build([study], "identity")
    tables = {table.name: table for table in page.tables}
    assert list(tables) == ["results", "differences", "metrics", "runs"]
    row = tables["results"].data.set_index("configuration").loc["identity"]
    assert row["final accuracy, %"] == pytest.approx(90)
    assert row["final accuracy, half interval"] == pytest.approx(24.8414, abs=1e-3)
    assert row["payload up, MB"] == pytest.approx(10) and row["weights up, MB"] == 2
    assert tables["results"].rows[0][:4] == ["identity", "3", "90.0 ± 24.8", "90.0 ± 24.8"]
    found = tables["differences"].data.set_index("configuration")
    p = stats.ttest_rel(FINAL["adc(ratio=0.1)"], FINAL["identity"]).pvalue
    assert found.loc["adc(ratio=0.1)", "p"] == pytest.approx(p)
    assert found.loc["adc(ratio=0.1)", "p (Holm)"] == pytest.approx(2 * p)
    assert found.loc["topk(ratio=0.1)", "p"] == 1
    assert tables["differences"].rows[1][2] == "0, equal in every seed"
    assert list(tables["metrics"].columns) == ["configuration", "drift"]  # nothing of `empty`
    assert "client, %" not in tables["results"].columns
    latex = tables["results"].latex()
    assert latex.startswith("\\begin{tabular}{lrr") and "90.0 $\\pm$ 24.8" in latex
    assert "\\toprule" in latex and "final, \\%" in latex


def test_accuracy_of_clients_is_a_result_and_shares_are_all_told_in_percent(tmp_path):
    for seed, last in ((0, 0.6), (1, 0.8)):
        extra = {"client_accuracy": [0.1, last], "worst_client_accuracy": [0.0, 0.25],
                 "jain": [0.9, 0.95], "loss": [2.0, 1.5]}  # fmt: skip
        write_run(tmp_path / f"a{seed}", [0.1, 0.5], extra=extra, strategy="local", seed=seed)
    write_run(tmp_path / "b", [0.1, 0.5], strategy="fedavg")
    page = build([tmp_path])
    results, metrics = page.tables[0], page.tables[2]
    place = results.columns.index("client, %")
    half = stats.t.ppf(0.975, 1) * 100 * np.std([0.6, 0.8], ddof=1) / math.sqrt(2)
    by_label = {row[0]: row for row in results.rows}
    assert by_label["local"][place] == f"70.0 ± {half:.1f}" and by_label["fedavg"][place] == "-"
    data = results.data.set_index("configuration")
    assert data.loc["local", "client accuracy, %"] == pytest.approx(70)
    assert metrics.columns[1:] == ["worst client accuracy, %", "Jain's index", "test loss"]
    assert metrics.rows[1] == ["local", "25.0 ± 0.0", "0.950 ± 0.000", "1.500 ± 0.000"]
    assert metrics.data["worst client accuracy, %"].dropna().tolist() == [25.0]
    assert not re.search(r"\d%", " ".join(table.caption for table in page.tables))


def test_studies_that_differ_in_much_have_short_labels_and_whole_ones_to_look_at(tmp_path):
    """Of keys that tell nothing more, labels name those that have room."""
    more = {"batch_size": 8, "local_steps": 3, "tail_optimizer": "sgd(lr=0.1)", "rounds": 7}
    for codec in ("identity", "topk"):
        write_run(tmp_path / f"a-{codec}", [0.5], codec=codec)
        write_run(tmp_path / f"b-{codec}", [0.5], codec=codec, clients=5, **more)
    page = build([tmp_path])
    labels = [one.label for one in page.collection.configurations]
    first, second = "clients=5, rounds=7, batch_size=8", "clients=100, rounds=20, batch_size=16"
    assert labels == [
        f"{codec}, {rest}" for rest in (first, second) for codec in ("identity", "topk(ratio=0.1)")
    ]
    whole = "identity, clients=5, rounds=7, batch_size=8, local_steps=3, tail_optimizer=sgd(lr=0.1)"
    assert page.whole_labels[labels[0]] == whole
    assert f'<th scope="row" title="{whole}">{labels[0]}</th>' in html(page)
    assert page.facts["batch_size (differs)"] == "8; 16"
    runs = page.tables[-1].data.set_index("run")
    assert runs.loc[f"{tmp_path.name}/b-identity", "all that differs"] == whole
    assert (
        page.collection.baselines(whole)[page.collection.configurations[0].task].label == labels[0]
    )


def test_labels_that_stay_long_are_cut_where_they_are_shown():
    long = ["a" * 200 + "-first", "a" * 200 + "-second"]
    shown = named(long)
    assert [name.count("\n") for name in shown] == [1, 1]
    assert shown[0].endswith("-first") and "…" in shown[0] and len(shown[0]) < 120
    alike = ["a" * 100 + "x" + "a" * 100, "a" * 100 + "y" + "a" * 100]
    assert "".join(named(alike)).replace("\n", "") == "".join(alike)  # cut they would be the same


def test_it_is_said_where_a_baseline_comes_from(study):
    fact = "identity (the first method; choose another with --baseline)"
    page = build([study])
    assert page.facts["baseline"] == fact
    assert "The baseline is the first method; choose" in page.tables[1].caption
    chosen = build([study], "topk")
    assert chosen.facts["baseline"] == "topk(ratio=0.1)"
    assert "first method" not in chosen.tables[1].caption


def test_the_folder_of_a_report_is_made(study, tmp_path):
    target = tmp_path / "new" / "folder" / "r.md"
    done = CliRunner().invoke(cli.app, ["report", str(study), "-o", str(target)])
    assert done.exit_code == 0 and target.read_text().startswith("# 3 configurations")
    odd = CliRunner().invoke(cli.app, ["report", str(study), "-o", f"{target}.x", "--format", "md"])
    assert odd.exit_code == 0 and (target.parent / "r.md.x").exists()


def test_one_seed_is_told_not_dressed_up(tmp_path):
    write_run(tmp_path / "a", [0.5])
    write_run(tmp_path / "b", [0.6], codec="topk")
    page = build([tmp_path])
    assert page.tables[0].rows[0][2] == "50.0"
    differences = page.tables[1]
    assert differences.rows[0][2:] == ["+10.0", "-", "-"]
    assert "One common seed gives no interval and no test" in differences.caption
    assert "topk(ratio=0.1)" in page.facts["one seed only, so no interval"]


FIGURES = [
    "accuracy-rounds", "accuracy-payload", "accuracy-payload-and-weights",
    "accuracy-client-compute", "accuracy-server-compute", "accuracy-wall-time",
    "accuracy-CPU-time", "pareto-payload",
    "pareto-payload-and-weights", "partition-1", "accuracy-per-class", "accuracy-per-client",
]  # fmt: skip


def test_every_figure_and_table_can_be_downloaded(study):
    page = build([study])
    text = html(page)
    links = re.findall(r'download="([^"]+)" href="data:([^;]+);charset=utf-8;base64,([^"]+)"', text)
    files = {name: base64.b64decode(data).decode() for name, _, data in links}
    assert files == attachments(page)
    assert [drawing.name for drawing in page.drawings] == FIGURES
    assert all({f"{name}.svg", f"{name}.csv"} <= files.keys() for name in FIGURES)
    for drawing in page.drawings:
        numbers = pd.read_csv(io.StringIO(files[f"{drawing.name}.csv"]))
        pd.testing.assert_frame_equal(numbers, drawing.data, check_dtype=False)
        assert files[f"{drawing.name}.svg"].startswith("<?xml")
        assert drawing.alt and f'id="{drawing.name}-figure"' in text


def test_unequal_rounds_are_said(tmp_path):
    write_run(tmp_path / "a", [0.5] * 8, codec="identity", engine="inline")
    write_run(tmp_path / "b", [0.5] * 8, codec="fp16", engine="inline")
    assert "rounds done" not in build([tmp_path]).facts
    write_run(tmp_path / "c", [0.5] * 12, codec="bf16", engine="inline")
    assert build([tmp_path]).facts["rounds done"].startswith("8 to 12: final accuracies are not")


def test_unlike_cpus_are_said_and_unknown_ones_are_not(tmp_path):
    for name, codec in (("a", "identity"), ("b", "fp16"), ("c", "bf16")):
        write_run(tmp_path / name, [0.5] * 8, codec=codec, engine="inline")
    set_cpu(tmp_path / "a", "x86_64 AVX2")
    assert "unlike CPUs" not in build([tmp_path]).facts  # b and c do not know
    set_cpu(tmp_path / "b", "x86_64 AVX2")
    assert "unlike CPUs" not in build([tmp_path]).facts
    set_cpu(tmp_path / "c", "x86_64 AVX2, aarch64 DEFAULT")  # resumed on another
    page = build([tmp_path])
    assert page.facts["unlike CPUs"].startswith("x86_64 AVX2, aarch64 DEFAULT: on unlike CPUs")
    assert html(page).count("on unlike CPUs") == 1


def set_cpu(folder, cpu):
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({**summary, "machine": {"cpu": cpu}}))


def test_what_is_read_aloud_names_eight_and_counts_the_rest():
    names = [f"sflv{number}" for number in range(11)]
    assert listed(names[:2]) == "sflv0; sflv1"
    assert listed(names[:8]).endswith("sflv6; sflv7")
    assert listed(names).endswith("sflv6; sflv7 and 3 more")


def test_families_differ_in_numbers_only():
    fine, coarse = (f"adc(ratio={ratio}) | uniform(bits=4), clients=5" for ratio in (0.05, 0.2))
    alone = ["adc(ratio=0.1)", "fp16", "adc(split='fifth')", "lr=1e-05", "hub(version=1.2.3)"]
    family = "adc(ratio=0.05 to 0.2) | uniform(bits=4), clients=5"
    expected = {fine: family, coarse: family, **{label: label for label in alone}}
    assert families([coarse, *alone, fine]) == expected


def test_figures_draw_what_was_measured(study):
    data = {drawing.name: drawing.data for drawing in build([study]).drawings}
    curve = data["accuracy-payload"].set_index("configuration").loc["adc(ratio=0.1)"]
    assert list(curve["payload sent, both ways, MB"]) == pytest.approx([1, 2])
    assert list(curve["mean"]) == pytest.approx([10, np.mean([70, 75, 85])])
    assert list(curve["least"]) == pytest.approx([10, 70]) and set(curve["seeds"]) == {3}
    front = data["pareto-payload"].set_index("configuration")["on front"]
    assert dict(front) == {"identity": True, "adc(ratio=0.1)": True, "topk(ratio=0.1)": True}
    assert data["partition-1"]["samples"].sum() == sum(
        (i + 2 * c) % 5 for i in range(4) for c in range(3)
    )
    classes = data["accuracy-per-class"]
    assert list(classes["accuracy"][:3]) == pytest.approx([20, 30, 40])  # of the last round
    clients = data["accuracy-per-client"].iloc[0]
    values = [10 * (i + 2 + seed) for i in range(4) for seed in range(3)]
    assert clients["clients"] == 12 and clients["median"] == pytest.approx(np.median(values))
    assert clients["10 %"] == pytest.approx(np.quantile(values, 0.1))


def test_no_accuracy_is_drawn_and_no_sample_is_blank(tmp_path):
    """Two images: as many colours as values, but for classes that nobody holds."""
    write_run(tmp_path / "a", [0.5])
    frame = pd.DataFrame({"client": [0, 0], "class": [0, 1], "samples": [0, 5]})
    frame.to_csv(tmp_path / "a" / "partition.csv", index=False)
    frame = pd.DataFrame({"round": 1, "class": [0, 1], "samples": 9, "accuracy": [0.0, 1.0]})
    frame.to_csv(tmp_path / "a" / "classes.csv", index=False)
    figures = {drawing.name: drawing.file for drawing in build([tmp_path]).drawings}
    opaque = {}
    for name in ("partition-1", "accuracy-per-class"):
        data = re.search(r'base64,([^"]+)"', figures[name].replace("\n", "")).group(1)
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))
        opaque[name] = (pixels[..., 3] > 0).mean()
    assert opaque == {"partition-1": 0.5, "accuracy-per-class": 1.0}


def test_fedavg_has_no_payload_and_is_named_where_it_is_missing(tmp_path):
    write_run(tmp_path / "a", [0.5, 0.6], strategy="fedavg")
    write_run(tmp_path / "b", [0.5, 0.6], strategy="sflv1")
    figures = {drawing.name: drawing for drawing in build([tmp_path]).drawings}
    assert set(figures["pareto-payload"].data["configuration"]) == {"sflv1"}
    assert (
        "Not drawn, as nothing of it was sent or recorded: fedavg"
        in figures["pareto-payload"].caption
    )
    assert "fedavg" in set(figures["pareto-payload-and-weights"].data["configuration"])
    assert not {"partition-1", "accuracy-per-class", "accuracy-per-client"} & figures.keys()


def test_a_page_replaces_a_page_and_nothing_else(tmp_path):
    write_run(tmp_path / "runs", [0.5])
    notes, page = tmp_path / "notes.md", build([tmp_path / "runs"])
    notes.write_text("mine")
    with pytest.raises(ValueError, match="is no report"):
        write(page, notes, "md")
    assert notes.read_text() == "mine"
    for form in ("md", "html"):
        write(page, tmp_path / f"page.{form}", form)
        write(page, tmp_path / f"page.{form}", form)


def test_the_page_says_what_the_commonest_class_would_get(tmp_path):
    for name, share in (("a", 0.102), ("b", 0.25), ("c", None)):
        write_run(tmp_path / name, [0.5], seed=ord(name))
        path = tmp_path / name / "summary.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "majority_accuracy": share}))
    heading = "always the commonest class"
    assert build([tmp_path]).facts[heading] == "10.2 to 25.0 % right"
    assert build([tmp_path / "a"]).facts[heading] == "10.2 % right"
    assert heading not in build([tmp_path / "c"]).facts


def test_many_configurations_are_spread_over_panels(tmp_path):
    for alpha in (0.1, 1.0):
        for codec in ("identity", "topk", "adc"):
            for strategy in ("parallel", "sflv1", "sflv2", "sequential"):
                place = tmp_path / f"{alpha}-{codec}-{strategy}"
                task = f"dirichlet(alpha={alpha})"
                write_run(place, [0.5], codec=codec, strategy=strategy, partition=task)
    found = panels(collect([tmp_path]).configurations)
    assert [panel.title for panel in found] == [
        f"dirichlet(alpha={alpha}), {codec}"
        for alpha in (0.1, 1.0)
        for codec in ("identity", "adc(ratio=0.1)", "topk(ratio=0.1)")
    ]
    lines = ["parallel", "sequential", "sflv1", "sflv2"]
    assert all([label for label, _ in panel.lines] == lines for panel in found)
    assert len(grid(found, "x", "y", lines)[1]) == 6


def test_the_page_needs_no_network_and_is_the_same_twice(study):
    whole = html(build([study]))
    assert whole == html(build([study]))
    text = re.sub(r"<(script|style)\b.*?</\1>", "", whole, flags=re.DOTALL)  # what they fetch
    assert "@import" not in text  # tests of the page look at
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert not re.search(r"url\((?!#)", text)
    assert set(re.findall(r'([\w:]+)="https?://', text)) <= {"xmlns", "xmlns:xlink"}
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))


def test_names_of_folders_cannot_break_the_page(tmp_path):
    write_run(tmp_path / "<img src=x>", [0.5])
    text = html(build([tmp_path]))
    assert "<img" not in text and "&lt;img src=x&gt;" in text


def test_markdown_shows_the_same_tables(study, tmp_path):
    page = build([study])
    write(page, tmp_path / "out.md", "md")
    text = (tmp_path / "out.md").read_text()
    assert "| identity | 3 | 90.0 ± 24.8 |" in text
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (tmp_path / target).exists()
    assert {path.name for path in (tmp_path / "out_files").iterdir()} == attachments(page).keys()


def test_the_command_writes_a_page(study, tmp_path):
    target = tmp_path / "r.html"
    done = CliRunner().invoke(cli.app, ["report", str(study), "-o", str(target)])
    assert done.exit_code == 0, done.output
    assert "9 runs of 3 configurations" in done.output and "stopped: interrupted" in done.output
    assert target.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "no folder 'nowhere'"),
        (["bare"], "no runs in 'bare'"),
        (["study", "--baseline", "zip"], "no configuration is called 'zip'; there are: identity;"),
        (["study", "-o", "r.txt"], "expected a name that ends in .html, .htm, .md, got 'r.txt'"),
        (["study", "-o", "study/cells/0-seed0/rounds.csv/r.md"], "output: cannot write"),
        (["study", "-o", "."], "output: '.' is a folder; give a file"),
        (["study/cells/stopped"], "no run is complete: stopped (interrupted)"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(study, monkeypatch, arguments, sentence):
    monkeypatch.chdir(study.parent)
    (study.parent / "bare").mkdir()
    done = CliRunner().invoke(cli.app, ["report", *arguments])
    assert done.exit_code == 2
    assert sentence in done.output and done.output.count("\n") == 1


CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=2000",
]  # fmt: skip
PROBE = """<pre id="probe"></pre>
<iframe id="page" src="report.html" style="width: WIDTHpx; height: 900px; border: 0"></iframe>
<script>
document.getElementById("page").onload = event => {
  const page = event.target.contentDocument, root = page.documentElement
  const plots = [...page.querySelectorAll("figure .plot")]
  document.getElementById("probe").textContent = JSON.stringify({
    width: root.clientWidth, content: root.scrollWidth,
    figures: plots.map(plot => plot.getBoundingClientRect().width),
    tables: page.querySelectorAll("table").length,
  })
}</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_errors_and_without_scrolling_sideways(study, tmp_path, width):
    write(build([study]), tmp_path / "report.html", "html")
    (tmp_path / "probe.html").write_text(PROBE.replace("WIDTH", str(width)))
    files = ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [CHROMIUM, *FLAGS, *files, "--dump-dom", f"file://{tmp_path / 'probe.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr
    seen = json.loads(re.search(r'<pre id="probe">(\{.*?\})</pre>', done.stdout).group(1))
    assert seen["width"] == width and seen["content"] <= width
    assert seen["tables"] == 4 and len(seen["figures"]) == len(FIGURES)
    assert all(100 < figure <= width for figure in seen["figures"])
