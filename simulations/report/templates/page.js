// Starts Plotly and DataTables, and makes all figures of a page agree on what is hidden.
(async () => {
  const box = document.querySelector("#live input"), page = location.pathname;
  const state = { hidden: [], log: {} };
  try { if (box) Object.assign(state, JSON.parse(sessionStorage.getItem(page))); } catch {}
  const keep = () => { try { sessionStorage.setItem(page, JSON.stringify(state)); } catch {} };
  const plots = [...document.querySelectorAll(".plot")];
  const groups = plot => plot.data.map(trace => trace.legendgroup);
  const isHidden = trace => trace.visible === "legendonly";

  function scale(layout, axis, type) {
    const names = Object.keys(layout).filter(name => RegExp(`^${axis}axis[0-9]*$`).test(name));
    return Object.fromEntries(names.flatMap(
      name => [[`${name}.type`, type], [`${name}.autorange`, true]]));
  }

  function share(source) {
    const hidden = new Map(source.data.map(trace => [trace.legendgroup, isHidden(trace)]));
    hidden.delete("");
    state.hidden = state.hidden.filter(name => !hidden.has(name)).concat(
      [...hidden.keys()].filter(name => hidden.get(name)));
    keep();
    for (const plot of plots.filter(one => one !== source && one.data)) {
      const places = [...plot.data.keys()].filter(place => {
        const trace = plot.data[place];
        return hidden.has(trace.legendgroup) && hidden.get(trace.legendgroup) !== isHidden(trace);
      });
      const visible = places.map(place => hidden.get(plot.data[place].legendgroup) ? "legendonly" : true);
      if (places.length) Plotly.restyle(plot, { visible }, places);
    }
  }

  function highlight(plot, name) {
    const places = [...plot.data.keys()].filter(place => groups(plot)[place]);
    const opacity = places.map(place => !name || groups(plot)[place] === name ? 1 : 0.15);
    Plotly.restyle(plot, { opacity }, places);
  }

  function draw(plot) {
    const figure = plot.closest("figure"), { data, layout } = JSON.parse(plot.nextElementSibling.textContent);
    const { entries, entry, row } = layout.meta;
    if (entries) layout.height += row * Math.ceil(entries / Math.max(1, Math.floor(plot.clientWidth / entry)));
    for (const trace of data) if (state.hidden.includes(trace.legendgroup)) trace.visible = "legendonly";
    for (const button of figure.querySelectorAll("[data-axis]")) {
      const axis = button.dataset.axis, key = figure.id + axis;
      for (const name of Object.keys(scale(layout, axis)).filter(name => name.endsWith(".type")))
        if (key in state.log) layout[name.slice(0, -5)].type = state.log[key] ? "log" : "linear";
      button.setAttribute("aria-pressed", layout[`${axis}axis`].type === "log");
      button.onclick = () => {
        state.log[key] = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", state.log[key]);
        Plotly.relayout(plot, scale(plot.layout, axis, state.log[key] ? "log" : "linear"));
        keep();
      };
    }
    Plotly.newPlot(plot, data, layout, { responsive: true, displaylogo: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
    plot.on("plotly_restyle", () => share(plot));
    plot.on("plotly_hover", event => highlight(plot, event.points[0].data.legendgroup));
    plot.on("plotly_unhover", () => highlight(plot));
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.onchange = () => document.documentElement.classList.toggle("dark", dark.matches);
  dark.onchange();  // DataTables asks for this class
  document.documentElement.classList.add("playing");
  plots.forEach(draw);
  const code = new Blob([document.getElementById("datatables").textContent], { type: "text/javascript" });
  const { default: DataTable } = await import(URL.createObjectURL(code));
  for (const table of document.querySelectorAll("main table")) {
    new DataTable(table, { paging: false, order: [], autoWidth: false, stateSave: Boolean(box),
      layout: { topStart: "search", topEnd: "info", bottomStart: null, bottomEnd: null },
      language: { search: "Filter ", info: "_TOTAL_ rows", infoEmpty: "no rows", infoFiltered: "of _MAX_", zeroRecords: "" },
      columnControl: ["order", ["search"]], ordering: { indicators: false, handler: false } });
  }
  if (box) setInterval(() => box.checked && location.reload(), 1000 * box.dataset.every);
  document.documentElement.classList.add("ready");
})();
