"""The page as readers play with it, in a real browser."""

import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from simulations.report.live import Live
from simulations.report.marks import INK
from simulations.report.page import build, html, write
from tests.test_report import FINAL, write_run, write_spread

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--virtual-time-budget=15000", "--allow-file-access-from-files",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]  # fmt: skip
PROBE = """<pre id="probe"></pre>
<iframe id="page" src="report.html" SANDBOX style="width: 1000px; height: 900px"></iframe>
<script>
const frame = document.getElementById("page"),
  wait = ms => new Promise(done => setTimeout(done, ms))
const all = (selector, root = frame.contentDocument) => [...root.querySelectorAll(selector)]
const until = async ready => { while (!ready()) await wait(50) }
const send = (node, type, kind, more) =>
  node.dispatchEvent(new frame.contentWindow[type](kind, {bubbles: true, ...more}))
const click = node => {
  for (const kind of ["mousedown", "mouseup", "click"])
    send(node, "MouseEvent", kind, {view: frame.contentWindow})
}
const legend = (plot, name) => all(".legend .traces", plot).find(
  node => all(".legendtext", node)[0].textContent === name).querySelector(".legendtoggle")
const isHidden = trace => trace.visible === "legendonly"
const hidden = plot => [...new Set(plot.data.filter(isHidden).map(trace => trace.legendgroup))]
const isReady = () => frame.contentDocument.documentElement.matches(".ready")
frame.onload = async () => {
  frame.onload = null
  const found = await (async () => { SCRIPT })().catch(error => String(error))
  document.getElementById("probe").textContent = JSON.stringify(found)
}</script>"""

browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def played(folder, page, script, sandbox=""):
    """Return what a script finds in a page, in Chromium, and that nothing went wrong."""
    write(page, folder / "report.html", "html")
    text = PROBE.replace("SCRIPT", script).replace("SANDBOX", sandbox)
    (folder / "probe.html").write_text(text)
    address = f"file://{folder / 'probe.html'}"
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, profile, "--dump-dom", address],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    told = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    assert "CONSOLE" not in done.stderr or sandbox, done.stderr
    return json.loads(told.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def write_study(folder):
    """Three codecs, three seeds, two rounds."""
    for number, (codec, finals) in enumerate(FINAL.items()):
        for seed, final in enumerate(finals):
            place = folder / f"{number}-seed{seed}"
            write_run(place, [0.1 + number / 100, final], codec=codec, seed=seed)
            write_spread(place, seed)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("played") / "study"
    write_study(folder)
    return folder


@pytest.fixture(scope="module")
def page(study):
    return build([study])


def plots(page):
    """Return Plotly's figures of a page, by name."""
    return {drawing.name: json.loads(drawing.plot) for drawing in page.drawings}


@browser
def test_a_click_on_a_name_hides_it_everywhere_and_a_double_click_all_others(page, tmp_path):
    script = """
      await until(isReady)
      const figures = all(".plot").filter(plot => plot.data.some(t => t.legendgroup))
      const lines = () => all(".scatterlayer .trace", figures[0]).length
      const before = [lines(), figures.map(hidden)]
      click(legend(figures[0], "adc(ratio=0.1)")); await wait(900)
      const after = [lines(), figures.map(hidden)]
      click(legend(figures[0], "adc(ratio=0.1)")); await wait(900)
      const again = figures.map(hidden)
      click(legend(figures[1], "identity")); await wait(60); click(legend(figures[1], "identity"))
      await wait(900)
      return {before, after, again, alone: figures.map(hidden)}
    """
    seen = played(tmp_path, page, script)
    count = len(seen["before"][1])
    assert count == 9 and seen["before"][1] == [[]] * count
    assert seen["after"][1] == [["adc(ratio=0.1)"]] * count
    assert seen["after"][0] < seen["before"][0]
    assert seen["again"] == [[]] * count
    assert [sorted(names) for names in seen["alone"]] == [
        ["adc(ratio=0.1)", "topk(ratio=0.1)"]
    ] * count


@browser
def test_buttons_make_axes_logarithmic_and_linear_again(page, tmp_path):
    script = """
      await until(isReady)
      const figure = frame.contentDocument.getElementById("accuracy-rounds-figure")
      const plot = all(".plot", figure)[0]
      const types = () => ["xaxis", "yaxis"].map(axis => plot._fullLayout[axis].type)
      const seen = [types()]
      for (const axis of ["x", "y", "x"]) {
        const button = all(`[data-axis=${axis}]`, figure)[0]
        click(button); await wait(300)
        seen.push([...types(), button.getAttribute("aria-pressed")])
      }
      return seen
    """
    seen = played(tmp_path, page, script)
    assert seen == [
        ["linear", "linear"], ["log", "linear", "true"], ["log", "log", "true"],
        ["linear", "log", "false"],
    ]  # fmt: skip


@browser
def test_tables_sort_by_number_and_filter(page, tmp_path):
    script = """
      await until(isReady)
      const table = frame.contentDocument.getElementById("results-table")
      const names = () => all("tbody th", table).map(cell => cell.textContent)
      const place = all("thead th", table).findIndex(cell => cell.textContent.startsWith("final"))
      const order = all("thead th", table)[place].querySelector("button.dtcc-button_order")
      const seen = {before: names()}
      click(order); await wait(200); seen.up = names()
      click(order); await wait(200); seen.down = names()
      const filter = table.closest(".dt-container").querySelector(".dt-search input")
      filter.value = "topk"; send(filter, "Event", "input")
      await wait(500); seen.filtered = names()
      seen.others = all("#runs-table tbody tr").length
      return seen
    """
    seen = played(tmp_path, page, script)
    assert seen["before"] == ["identity", "adc(ratio=0.1)", "topk(ratio=0.1)"]
    assert seen["up"][0] == "adc(ratio=0.1)"  # 76.7 %, the others 90 %
    assert seen["down"][-1] == "adc(ratio=0.1)"
    assert seen["filtered"] == ["topk(ratio=0.1)"] and seen["others"] == 9


@browser
def test_pointing_at_a_line_shows_what_rounds_csv_says_and_fades_the_others(page, study, tmp_path):
    script = """
      await until(isReady)
      const plot = frame.contentDocument.querySelector("#accuracy-rounds-figure .plot")
      const place = plot.data.findIndex(t => t.meta === "adc(ratio=0.1)")
      const {_fullLayout: {xaxis, yaxis}} = plot, trace = plot.data[place]
      const box = plot.getBoundingClientRect()
      const at = {clientX: box.left + xaxis._offset + xaxis.d2p(trace.x[1]),
                  clientY: box.top + yaxis._offset + yaxis.d2p(trace.y[1])}
      const view = frame.contentWindow
      send(plot.querySelector(".nsewdrag"), "MouseEvent", "mousemove", {view, ...at})
      await wait(500)
      const text = all(".hovertext", plot).map(node => node.textContent).join(" ")
      return {text, opacity: plot.data.map(t => [t.legendgroup, t.opacity])}
    """
    seen = played(tmp_path, page, script)
    last = [pd.read_csv(study / f"1-seed{s}" / "rounds.csv")["accuracy"].iloc[1] for s in range(3)]
    low, mean, high = (100 * f(last) for f in (min, np.mean, max))
    assert f"{mean:.1f} %, {low:.1f} to {high:.1f} over 3 seeds" in seen["text"]
    assert "adc(ratio=0.1)" in seen["text"]
    assert {o for name, o in seen["opacity"] if name == "adc(ratio=0.1)"} == {1}
    assert {o for name, o in seen["opacity"] if name != "adc(ratio=0.1)"} == {0.15}


@browser
def test_nothing_is_fetched_and_the_page_forbids_it(page, tmp_path):
    script = """
      await until(isReady)
      const fetched = frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name)
      return fetched.filter(name => !/^(data|blob):/.test(name))
    """
    assert played(tmp_path, page, script) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html(page))[1]
    assert policy.startswith("default-src 'none';") and "http" not in policy


SHOWN = """
  const isSeen = node => node.getBoundingClientRect().width > 100
  const visible = selector => all(selector).filter(isSeen).length
  const count = () => [visible("figure .plot"), visible("figure .static svg")]
"""


@browser
def test_without_scripts_and_in_print_the_plain_figures_are_seen(page, tmp_path):
    count = len(page.drawings)
    script = f"{SHOWN} return count()"
    assert played(tmp_path, page, script, 'sandbox="allow-same-origin"') == [0, count]
    script = f"""{SHOWN}
      await until(isReady)
      const before = count(), media = {{screen: "not all", print: "all"}}
      for (const sheet of frame.contentDocument.styleSheets) for (const rule of sheet.cssRules)
        if (rule.media?.mediaText in media) rule.media.mediaText = media[rule.media.mediaText]
      return [before, count()]
    """
    assert played(tmp_path, page, script) == [[count, 0], [0, count]]


@browser
def test_a_live_page_reloads_itself_and_remembers_what_is_hidden(study, tmp_path):
    script = """
      await until(isReady)
      const plot = () => all(".plot")[0]
      let loads = 0
      frame.addEventListener("load", () => loads++)
      click(legend(plot(), "identity")); await wait(700)
      await until(() => loads > 1)
      await until(isReady)
      return hidden(plot())
    """
    assert played(tmp_path, build([study], live=Live("Live.", 2)), script) == ["identity"]
    plain = html(build([study]))
    assert 'http-equiv="refresh"' not in plain and "<input" not in plain.split("<script")[0]


def test_plots_draw_the_means_of_rounds_csv(page, study):
    found = plots(page)
    for number, codec in enumerate(FINAL):
        label = page.collection.configurations[[0, 1, 2][number]].label
        runs = [pd.read_csv(study / f"{number}-seed{seed}" / "rounds.csv") for seed in range(3)]
        means = np.mean([100 * rounds["accuracy"] for rounds in runs], axis=0)
        sent = [
            r[[c for c in r if c.startswith("payload_bytes")]].sum(axis=1).cumsum() for r in runs
        ]
        for name, x in (("rounds", [1, 2]), ("payload", np.mean(sent, axis=0) / 1e6)):
            traces = found[f"accuracy-{name}"]["data"]
            trace = next(t for t in traces if t.get("meta") == label)
            assert codec.partition("(")[0] in label
            assert trace["y"] == pytest.approx(list(means)) and trace["x"] == pytest.approx(list(x))


def test_a_configuration_looks_the_same_in_every_figure(page):
    looks = {}
    for name, plot in plots(page).items():
        for trace in plot["data"]:
            if name.startswith(("accuracy-", "pareto-")) and trace.get("meta"):
                look = trace["line"]["color"], trace["marker"]["symbol"], trace["marker"]["color"]
                looks.setdefault(trace["meta"], set()).add(look)
    assert len(looks) == 3 and all(len(found) == 1 for found in looks.values())
    assert len(set.union(*looks.values())) == 3
    for drawing in page.drawings:
        if drawing.name.startswith(("accuracy-rounds", "pareto-")):
            drawn = {look[0] for found in looks.values() for look in found} - {INK}
            assert all(colour in drawing.file for colour in drawn)
