"""Colours and marks: told apart by everybody, the same for a configuration wherever it stands."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from simulations.report.chart import hidden
from simulations.report.comparison import comparison_figure
from simulations.report.marks import COLOURS, Mark, Marks, in_a_row, kept_marks, shared
from simulations.report.page import build, older_marks, write
from simulations.report.runs import collect
from tests.test_report import write_run

CODECS = [
    "identity", "fp16", "bf16", "uniform(bits=4)", "rans", "zstd", "adc", "attended", "topk",
    "randtopk", "c3sl", "bottlenet", "fedlite", "splitfc", "slicer",
    "jscc", "semantic",
]  # fmt: skip

EYES = {
    "usual": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
"""Machado, Oliveira and Fernandes 2009, severity 1: what eyes make of linear RGB."""


def lab(colour, eye):
    """CIE L*a*b* of #rrggbb as an eye sees it, white D65."""
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = to_xyz @ np.clip(EYES[eye] @ linear, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", EYES)
def test_colour_blind_readers_tell_all_colours_apart(eye):
    """A distance of 2 can just be seen; 15 is seen at a glance."""
    for one, other in combinations(COLOURS, 2):
        assert np.linalg.norm(lab(one, eye) - lab(other, eye)) > 15


def marks_of(folder, kept=None):
    found = collect([folder]).configurations
    marks = Marks.of(found, kept)
    return {one.label: marks[one] for one in found}


def test_all_codecs_have_marks_of_their_own(tmp_path):
    for codec in CODECS:
        write_run(tmp_path / codec, [0.5], codec=codec)
    found = marks_of(tmp_path)
    assert len(found) == 17 == len({(mark.colour, mark.shape) for mark in found.values()})
    for colour in range(len(COLOURS)):  # of one colour: other shapes and other dashes
        alike = [mark for mark in found.values() if mark.colour == colour]
        assert len({m.shape for m in alike}) == len({m.dash for m in alike}) == len(alike) > 1


def test_ratios_of_a_codec_share_the_colour_where_colours_are_few(tmp_path):
    codecs, ratios = ("adc", "topk", "randtopk"), (0.1, 0.2, 0.4)
    names = [f"{codec}(ratio={ratio})" for codec in codecs for ratio in ratios]
    for codec in names:
        write_run(tmp_path / codec, [0.5], codec=codec)
    found = marks_of(tmp_path)
    colours = {name: {m.colour for label, m in found.items() if label.startswith(name + "(")}
               for name in codecs}  # fmt: skip
    assert all(len(one) == 1 for one in colours.values())
    assert len(set.union(*colours.values())) == 3 and len({*found.values()}) == 9


def test_where_two_keys_differ_one_is_the_colour_and_the_other_the_shape(tmp_path):
    for codec in ("identity", "topk", "adc"):
        for strategy in ("parallel", "sflv1", "sflv2", "sequential"):
            write_run(tmp_path / f"{codec}-{strategy}", [0.5], codec=codec, strategy=strategy)
    found = marks_of(tmp_path)
    for place, attribute, count in ((0, "colour", 4), (1, "shape", 3)):
        by_part = {}
        for label, mark in found.items():
            by_part.setdefault(label.split(", ")[place], set()).add(getattr(mark, attribute))
        assert len(by_part) == count and all(len(values) == 1 for values in by_part.values())
        assert len(set.union(*by_part.values())) == count


def test_a_page_that_replaces_another_keeps_its_colours(tmp_path):
    for codec in ("identity", "topk", "fp16"):
        write_run(tmp_path / "runs" / codec, [0.5], codec=codec)
    page = tmp_path / "page.html"
    write(build([tmp_path / "runs"]), page, "html")
    before = marks_of(tmp_path / "runs")
    for codec in ("adc", "bf16"):  # both stand before others in the order of labels
        write_run(tmp_path / "runs" / codec, [0.5], codec=codec)
    after = marks_of(tmp_path / "runs", older_marks(page))
    assert {label: after[label] for label in before} == before
    assert len({mark.colour for mark in after.values()}) == 5
    assert marks_of(tmp_path / "runs") != after  # without the page they would change


def test_a_damaged_page_has_no_marks():
    assert kept_marks("<p>") == {}
    assert kept_marks('<script type="application/json" id="marks">{"a": [1</script>') == {}


def test_a_legend_shows_what_marks_have_in_common():
    assert shared([Mark(1, 2, 0), Mark(1, 3, 0)]) == Mark(1, None, 0)
    assert shared([Mark(1, 2, 0)]) == Mark(1, 2, 0)


def test_names_in_a_row_are_all_told_apart():
    found = in_a_row([f"run {number}" for number in range(60)])
    assert len({*found.values()}) == 60


def test_curves_that_lie_on_each_other_are_all_seen(tmp_path):
    frames = [pd.DataFrame({"x": [1, 2], "mean": means}) for means in ([1, 2], [1, 2], [1, 3])]
    assert hidden(frames) == [1, 0, 0]
    for name in ("sflv1", "fedavg"):
        write_run(tmp_path / name, [0.1, 0.2], strategy=name, extra={"client_steps": 1})
    figure = comparison_figure({name: tmp_path / name for name in ("sflv1", "fedavg")})
    figure.savefig(tmp_path / "c.svg")
    text = (tmp_path / "c.svg").read_text()
    widths = {"#010203": "3.8", "#0072b2": "1.3"}  # the lower one is the wider
    for colour, width in widths.items():
        assert f"stroke: {colour}; stroke-opacity: 0.5; stroke-width: {width}" in text or (
            f"stroke: {colour}; stroke-width: {width}" in text
        )
