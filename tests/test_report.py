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
from scipy import stats
from typer.testing import CliRunner

from simulations import cli
from simulations.experiment import Experiment
from simulations.report.labels import short
from simulations.report.page import attachments, build, html, write
from simulations.report.runs import collect
from simulations.report.statistics import holm, interval, non_dominated, paired


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
        "head_bytes_up": 10**6, "head_bytes_down": 10**6, "wire_bytes_up": 10**7,
        "wire_bytes_down": 10**7, "client_flops": 3 * 10**9, "server_flops": 4 * 10**9,
        "wall_seconds": 2.0, "cpu_seconds": 3.0,
    }  # fmt: skip
    rounds = pd.DataFrame({"round": range(1, count + 1), "accuracy": accuracies, "dropped": 0})
    rounds.assign(**sums, **(extra or {})).to_csv(folder / "rounds.csv", index=False)
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
