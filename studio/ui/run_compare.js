// Checkpoints of a run side by side: a plot in one click, two pictures under one slider, blind votes and the ranking they make.
window.studio.runCompare = (() => {
  const { el, button, call, url, runs } = window.studio;
  const $ = (selector) => document.querySelector(selector);
  let run = null;
  let built = "";        // what the form was built for
  let pair = { left: null, right: null };
  let taken = "";        // the plot whose pictures were offered
  let poll = null;       // the next pair and the ranking

  const path = (rest) => url(`run/${encodeURIComponent(run.id)}/${rest}`);
  const fill = (box, ...children) => box.replaceChildren(...children.filter(Boolean));
  const label = (step) => window.studio.runParts.label(step);

  // ---- the plot -------------------------------------------------------------------------------------------------
  function draw(next, box, open) {
    run = next;
    if (!open) return;
    const key = JSON.stringify([run.id, run.results.map((one) => one.step)]);
    if (built !== key || !box.children.length) {
      const before = built.startsWith(`["${run.id}"`) ? read(box) : null;
      built = key;
      form(box, before);
    }
    progress();
    slider();
  }

  const read = (box) => box.querySelector("#sr-cmp-prompts") && { steps: picked(box), prompts: $("#sr-cmp-prompts").value, weights: $("#sr-cmp-weights")?.value, seed: $("#sr-cmp-seed").value, untouched: $("#sr-cmp-base")?.checked };
  const picked = (box) => [...box.querySelectorAll("#sr-cmp-steps input:checked")].map((one) => Number(one.value));

  function form(box, before) {
    const kind = run.results[0].kind;
    const usual = run.results.filter((one) => one.step >= 0 || run.results.length === 1).map((one) => one.step).slice(-3);
    if (run.recommended && !usual.includes(run.recommended.step)) usual.unshift(run.recommended.step);
    const chosen = before?.steps?.length ? before.steps : usual;
    const field = (text, input) => el("label", { class: "sr-field" }, el("span", { text }), input);
    const prompts = el("textarea", { id: "sr-cmp-prompts", rows: 2 });
    prompts.value = before?.prompts ?? (run.prompts[0] || "");
    const weights = kind === "lora" && el("input", { id: "sr-cmp-weights", value: before?.weights ?? "0, 0.6, 1", placeholder: "0, 0.6, 1" });
    const seed = el("input", { id: "sr-cmp-seed", type: "number", min: 0, value: before?.seed ?? run.seed });
    const base = kind === "model" && el("label", { class: "st-quiet" }, el("input", { type: "checkbox", id: "sr-cmp-base", checked: before ? before.untouched : true }), " with the model that it began from");
    const count = el("span", { class: "st-quiet", id: "sr-cmp-count" });
    const wanted = () => ({
      steps: picked(box), prompts: prompts.value.split("\n").map((line) => line.trim()).filter(Boolean), seed: Number(seed.value),
      weights: weights ? weights.value.split(",").map((one) => one.trim()).filter(Boolean).map((one) => (Number.isFinite(Number(one)) ? Number(one) : one)) : [1], untouched: Boolean($("#sr-cmp-base")?.checked) });
    const tell = () => {
      const one = wanted();
      const number = (one.steps.length + (one.untouched ? 1 : 0)) * one.weights.length * one.prompts.length;
      count.textContent = number ? `${number} pictures` : "";
    };
    const go = button("Make the grid", "Draw every combination with the same seed; it appears here, and among the X/Y/Z plots", async () => {
      await runs.act(run.id, "compare", wanted());
    }, { id: "sr-cmp-go" });
    fill(box, el("p", { class: "st-quiet", text: kind === "lora" ? "Checkpoint × weight × prompt with one seed. Weight 0 is the model without it." : "Checkpoint × prompt with one seed." }),
      el("div", { id: "sr-cmp-steps", class: "sr-row" }, ...run.results.map((one) => el("label", { class: "sr-chip" }, el("input", { type: "checkbox", value: one.step, checked: chosen.includes(one.step) }), " " + label(one.step)))),
      el("div", { class: "sr-fields" }, field("Prompts, one a line", prompts), weights && field("Weights", weights), field("Seed", seed)), base,
      el("div", { class: "st-row" }, go, count), el("div", { id: "sr-cmp-progress" }), el("div", { id: "sr-cmp-slider" }));
    box.oninput = tell;
    tell();
  }

  function progress() {
    const box = $("#sr-cmp-progress");
    const plot = run.compared;
    const key = JSON.stringify(plot && [plot.plot, plot.state, plot.done, plot.error]);
    if (!box || box.dataset.key === key) return;
    box.dataset.key = key;
    if (!plot) { box.replaceChildren(); return; }
    const share = Math.round(100 * plot.done / plot.total);
    const open = plot.state === "running";
    fill(box, 
      plot.state !== "done" ? el("div", { class: "st-row" }, el("span", { class: plot.error ? "st-bad" : "st-quiet", text: `${plot.done} of ${plot.total} pictures` + (plot.state === "joining" ? ", joining …" : plot.error ? ` · ${plot.error}` : "") }),
        open && button("Cancel", "Take its pictures out of the queue; finished ones stay", () => call("plot/cancel", { plot: plot.plot }).then(runs.load)),
        ["stopped", "failed"].includes(plot.state) && button("Resume", "Make what is missing", () => call("plot/resume", { plot: plot.plot }).then(runs.load))) : null,
      plot.state !== "done" ? el("div", { class: "st-track" }, el("div", { class: "st-fill", style: `width:${share}%` })) : null,
      plot.grid ? el("a", { href: url("image/" + plot.grid), target: "_blank", title: "Open the grid at its own size" }, el("img", { id: "sr-cmp-grid", src: url("image/" + plot.grid), alt: "Grid of checkpoints" })) : null, plot.grid ? scores() : null);
  }

  // What the run itself judged of its checkpoints' samples.
  function scores() {
    const names = Object.keys(window.studio.runParts.SCORES).filter((name) => run.curves[name]);
    const steps = [...new Set(names.flatMap((name) => run.curves[name].map((point) => point[0])))].filter((step) => run.results.some((one) => one.step === step));
    if (!steps.length) return null;
    const at = (name, step) => run.curves[name].find((point) => point[0] === step)?.[1];
    const cell = (value) => value === undefined ? "" : `${Math.round(100 * value)} %`;
    return el("div", { class: "st-table", id: "sr-cmp-scores" }, el("table", {}, el("tbody", {}, el("tr", {}, el("th", { text: "Scores of the samples" }), ...names.map((name) => el("th", { text: name }))),
      ...steps.map((step) => el("tr", {}, el("th", { text: label(step) + (run.recommended?.step === step ? " ★" : "") }), ...names.map((name) => el("td", { text: cell(at(name, step)) })))))));
  }

  // ---- two pictures, one slider ---------------------------------------------------------------------------------
  // Everything that can be laid over one another: [{label, source}], cells of the grid first, then samples.
  function pictures() {
    const cells = (run.compared?.cells || []).map((cell) => ({ label: "Grid: " + cell.label, source: url("image/" + cell.image) }));
    const samples = Object.keys(run.samples).map(Number).sort((a, b) => a - b).flatMap((step) => run.samples[step].map((name) => ({ label: `Sample: step ${step} · ${run.said[name] || name}`, source: path("sample/" + name), place: name.replace(/^step-\d+-/, "") })));
    return [...cells, ...samples];
  }

  function slider() {
    const box = $("#sr-cmp-slider");
    const all = pictures();
    const key = JSON.stringify([run.id, all.map((one) => one.source)]);
    if (!box || box.dataset.key === key) return;
    box.dataset.key = key;
    if (all.length < 2) { box.replaceChildren(); return; }
    if (run.compared?.cells.length > 1 && run.compared.state === "done" && taken !== run.compared.plot) {  // a grid that was just made
      taken = run.compared.plot;
      pair = { left: all[0].source, right: all[run.compared.cells.length - 1].source };
    }
    const known = (source) => all.some((one) => one.source === source);
    const samples = all.filter((one) => one.place);
    const first = run.compared?.cells.length > 1 || samples.length < 2 ? all : samples;
    if (!known(pair.left)) pair.left = first[0].source;
    const like = first.filter((one) => !first[0].place || one.place === first[0].place);
    if (!known(pair.right) || pair.right === pair.left) pair.right = like[like.length - 1].source;
    const top = el("img", { class: "sr-over", alt: "A" }), under = el("img", { alt: "B" });
    const rule = el("div", { class: "sr-cut" });
    const range = el("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Left of it A, right of it B", oninput: () => cut(range.value) });
    const cut = (at) => { top.style.clipPath = `inset(0 ${100 - at}% 0 0)`; rule.style.left = at + "%"; };
    const select = (side) => {
      const node = el("select", { "aria-label": side === "left" ? "A" : "B", onchange: () => { pair[side] = node.value; shown(); } }, ...all.map((one) => el("option", { value: one.source, text: one.label })));
      node.value = pair[side];
      return node;
    };
    const shown = () => { top.src = pair.left; under.src = pair.right; };
    shown();
    cut(50);
    const stage = el("div", { class: "sr-stage" }, under, top, rule);
    const move = (event) => {
      if (event.type === "pointermove" && event.pointerType !== "mouse" && !event.buttons) return;
      const frame = stage.getBoundingClientRect();
      range.value = Math.min(100, Math.max(0, 100 * (event.clientX - frame.left) / frame.width));
      cut(range.value);
    };
    stage.addEventListener("pointermove", move);
    stage.addEventListener("pointerdown", move);
    fill(box, el("div", { class: "st-panel-title", text: "Two pictures" }), el("div", { class: "sr-fields" }, el("label", { class: "sr-field" }, el("span", { text: "A, left" }), select("left")), el("label", { class: "sr-field" }, el("span", { text: "B, right" }), select("right"))), stage, range);
  }

  // ---- votes ----------------------------------------------------------------------------------------------------
  async function vote(next, box, open) {
    run = next;
    const key = run.id + Object.keys(run.samples).join();
    if (!open || (box.dataset.key === key && box.children.length)) return;
    box.dataset.key = key;
    const answer = await fetch(path("votes"));
    if (answer.ok) { poll = await answer.json(); ballot(box); }
  }

  function ballot(box, before = null) {
    const give = (better) => async () => {
      const last = { better, steps: poll.steps };
      const answer = await call(`run/${encodeURIComponent(run.id)}/vote`, { left: poll.pair.left, right: poll.pair.right, better });
      $("#sr-problem").textContent = answer.error || "";
      if (answer.ok) { poll = answer; ballot(box, last); }
    };
    const image = (side, text) => el("figure", {}, el("img", { src: path("sample/" + poll.pair[side]), alt: text, onclick: give(side) }), button(text + " is better", "This picture is better than the other", give(side), { "data-vote": side }));
    const told = before && el("div", { class: "st-quiet", text: `That was step ${before.steps[0]} on the left and step ${before.steps[1]} on the right.` });
    const line = (one, i) => el("tr", {}, el("td", { text: `${i + 1}.` }), el("th", { text: "Step " + one.step }), el("td", { text: `${Math.round(100 * one.score)} %` }), el("td", { class: "st-quiet", text: `${one.won} won, ${one.lost} lost, ${one.same} as good` }));
    fill(box, 
      poll.pair ? el("p", { class: "st-quiet", text: "Two checkpoints, the same prompt and seed. Which step is which is told afterwards." }) : el("p", { class: "st-quiet", text: "There are no two samples of one prompt yet." }),
      poll.pair ? el("div", { class: "sr-prompt", text: poll.pair.prompt }) : null,
      poll.pair ? el("div", { class: "sr-pair" }, image("left", "Left"), image("right", "Right")) : null,
      poll.pair ? el("div", { class: "st-row" }, button("As good", "Neither is better", give("same"), { "data-vote": "same" })) : "", told,
      poll.ranking.length ? el("div", { class: "st-table" }, el("table", { id: "sr-ranking" }, el("tbody", {}, ...poll.ranking.map(line)))) : null);
  }

  return { draw, vote };
})();
