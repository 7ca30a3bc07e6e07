// X/Y/Z plots: what was started, how far it is, and the finished grid. The state comes with page.js's; text is only ever textContent.
window.studio.plots = (() => {
  const { el, button, call, url } = window.studio;
  const $ = (selector) => document.querySelector(selector);
  let plots = [];
  let chosen = null;   // id of the plot whose grid is shown; the newest finished one if nobody chose

  function started(text) {
    const result = JSON.parse(text || "{}");
    $("#sp-problem").textContent = result.error || "";
    if (result.plot) chosen = result.plot;
    draw();
  }

  async function act(action, plot) {
    const answer = await call("plot/" + action, { plot: plot.id });
    $("#sp-problem").textContent = answer.error || "";
    if (answer.ok) chosen = plot.id;
  }

  function line(plot) {
    const made = `${plot.done} of ${plot.total}`;
    if (plot.state === "done") return `${plot.total} pictures`;
    if (plot.state === "running") return made;
    if (plot.state === "joining") return `${made}, joining …`;
    return `${made} · ` + (plot.error || (plot.state === "failed" ? "failed" : "cancelled"));
  }

  function row(plot) {
    const share = Math.round(100 * plot.done / plot.total);
    const open = plot.state === "running";
    return el("div", { class: "sp-plot" + (plot.id === chosen ? " st-on" : ""), "data-plot": plot.id, "data-state": plot.state },
      el("div", { class: "st-row" },
        el("span", { class: "sp-title", text: plot.title, title: plot.prompt }),
        el("span", { class: "st-quiet sp-line", text: line(plot) }),
        open && button("Cancel", "Take its pictures out of the queue; finished ones stay", () => act("cancel", plot)),
        ["stopped", "failed"].includes(plot.state) && button("Resume", "Make what is missing", () => act("resume", plot)),
        plot.grid && button("Show", "Show the grid", () => { chosen = plot.id; draw(); })),
      plot.state !== "done" && el("div", { class: "st-track", role: "progressbar", "aria-label": "Plot", "aria-valuenow": share, "aria-valuemin": 0, "aria-valuemax": 100 },
        el("div", { class: "sp-bar", style: `width: ${share}%` })));
  }

  function grid() {
    const box = $("#sp-grid");
    const plot = plots.find((one) => one.id === chosen) || plots.find((one) => one.grid);
    const key = plot ? plot.grid || plot.cells.join() : "";
    if (box.dataset.key === key) return;
    box.dataset.key = key;
    if (plot?.grid) {
      box.replaceChildren(
        el("a", { href: url("image/" + plot.grid), target: "_blank", title: "Open the grid at its own size" },
          el("img", { id: "sp-picture", src: url("image/" + plot.grid), alt: "Grid: " + plot.title })),
        el("div", { class: "st-row" }, el("a", { class: "st-button", text: "Download", title: "Save the grid; it says how to make it again", href: url("image/" + plot.grid), download: "grid-" + plot.grid + ".png" })));
    } else {
      box.replaceChildren(...(plot?.cells || []).map((id) => el("img", { class: "sp-cell", src: url("thumbnail/" + id), alt: "" })));
    }
  }

  function draw() {
    if (!$("#sp-list")) return;
    const box = $("#sp-list");
    const key = JSON.stringify([chosen, plots.map((plot) => [plot.id, plot.state, plot.done, plot.error])]);
    if (box.dataset.key !== key) {
      box.dataset.key = key;
      box.replaceChildren(...plots.map(row));
    }
    grid();
  }

  const show = (next) => { plots = next; draw(); };
  return { started, show, draw };
})();
