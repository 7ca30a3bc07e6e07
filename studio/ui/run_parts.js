// One run: progress and buttons, curves, samples, files, log, settings. Each part is drawn anew only when what it shows changed.
window.studio.runParts = (() => {
  const { el, button, url, runs } = window.studio;
  const $ = (selector) => document.querySelector(selector);
  const SCORES = { subject: "#2563eb", prompt: "#16a34a", drift: "#d97706", memorisation: "#dc2626" };
  const PARTS = ["top", "curves", "samples", "results", "keep", "compare", "vote", "class", "log", "config"];
  const LIKE = "#st-train-like textarea, #st-train-like input";
  const OPEN = ["curves", "samples", "results"];
  const TITLES = { curves: "Curves", samples: "Samples", results: "Files", keep: "Keep it", compare: "Compare checkpoints", vote: "Which is better?", class: "Class pictures", log: "Log", config: "Settings" };
  const USES = { lora: "adds it to the prompt", embedding: "adds its word to the prompt", model: "chooses it as the model", wordless: "chooses it as the model", controlnet: "puts it into the first control unit" };
  let run = null;
  let mounted = null;
  let smooth = 0.8;
  let step = null;         // whose samples are large; null: the newest
  let keeping = null;      // step of the result that is being kept

  const path = (rest) => url(`run/${encodeURIComponent(run.id)}/${rest}`);
  const sample = (name, small = false) => path("sample/" + name + (small ? "?small=1" : ""));
  const fill = (box, ...children) => box.replaceChildren(...children.filter(Boolean));
  const part = (name) => $("#sr-" + name);
  const size = (bytes) => bytes >= 2 ** 30 ? (bytes / 2 ** 30).toFixed(2) + " GB" : (bytes / 2 ** 20).toFixed(1) + " MB";
  const label = (at) => at < 0 ? "Final result" : "Step " + at;

  const trainTab = () => [...document.querySelectorAll("button[role=tab]")].find((tab) => tab.textContent.trim() === "Train");

  // What is in a tab is in the document only when that was opened once.
  async function like() {
    const id = run.id;
    if (!$(LIKE)) trainTab()?.click();
    for (let i = 0; i < 50 && !$(LIKE); i++) await new Promise((done) => setTimeout(done, 100));
    if (!$(LIKE)) return;
    $(LIKE).value = "run:" + id;
    $(LIKE).dispatchEvent(new Event("input", { bubbles: true }));
  }

  function mount() {
    mounted = run.id;
    step = keeping = null;
    const section = (name) => name === "top" ? el("div", { id: "sr-top" })
      : el("details", { id: `sr-${name}-box`, class: "sr-box", open: OPEN.includes(name), ontoggle: () => redraw(name) }, el("summary", { text: TITLES[name] }), el("div", { id: "sr-" + name }));
    $("#sr-run").replaceChildren(...PARTS.map(section));
  }

  // Draw a part if what it shows changed, or it was just opened.
  function once(name, shown, make) {
    const box = part(name), frame = part(name + "-box");
    if (frame && !frame.open) { box.dataset.key = ""; return; }
    const key = JSON.stringify(shown);
    if (box.dataset.key === key) return;
    box.dataset.key = key;
    make(box);
  }

  const DRAWN = {
    top: () => once("top", [run.state, run.step, run.steps, run.seconds_left, run.note, run.error, run.loss, run.bytes, run.notices, run.prompts.length, run.recommended, run.device, run.after, runs.places(), runs.words(run)], top),
    curves: () => once("curves", [run.curves, smooth, part("curves").clientWidth, run.recommended], curves),
    samples: () => once("samples", [run.samples, run.grids, run.prompts, step], samples),
    results: () => once("results", [run.results, run.recommended, run.kept, run.state, run.bytes, run.card], results),
    keep: () => once("keep", [run.results.map((one) => one.step), run.kept, keeping, newest()], keep),
    compare: () => window.studio.runCompare.draw(run, part("compare"), part("compare-box").open),
    vote: () => window.studio.runCompare.vote(run, part("vote"), part("vote-box").open),
    class: () => once("class", run.class, (box) => {
      if (!run.class) return;
      const { number, pictures } = run.class;
      const said = `“${run.config.class_prompt}”, as the model drew it before it learnt: ${pictures.length} of ${number}. They are shown beside yours, so that the class stays as it is, and kept for later runs of this model, prompt and size.`;
      fill(box, el("p", { class: "st-quiet", text: said }), el("div", { class: "sr-class" }, ...pictures.map((name) => el("a", { href: path("class/" + name), target: "_blank" }, el("img", { src: path(`class/${name}?small=1`), alt: name, loading: "lazy" })))));
    }),
    log: () => once("log", run.log, (box) => {
      const text = el("pre", { text: run.log || "The run has said nothing yet." });
      fill(box, text);
      text.scrollTop = text.scrollHeight;
    }),
    config: () => once("config", [run.config, run.command], config),
  };
  const redraw = (name) => { if (run && part(name)) DRAWN[name](); };

  function draw(next) {
    run = next;
    if (mounted !== run.id || !part("top")) mount();
    const results = run.results.length;
    part("class-box").hidden = !run.class;
    part("keep-box").hidden = !results;
    part("compare-box").hidden = !results || run.results[0].kind === "wordless";
    part("vote-box").hidden = Object.keys(run.samples).length < 2;
    part("curves-box").hidden = !Object.keys(run.curves).length;
    part("samples-box").hidden = !run.prompts.length && !steps().length && run.method === "unconditional";
    for (const name of PARTS) DRAWN[name]();  // last: what is hidden has no width, which a chart wants to know
  }
  addEventListener("resize", () => redraw("curves"));

  // ---- progress and buttons -------------------------------------------------------------------------------------
  function top(box) {
    const alive = runs.ALIVE.includes(run.state);
    const ask = (name) => () => runs.act(run.id, name);
    const on = { sample: run.state === "running" && (run.prompts.length > 0 || run.method === "unconditional"), save: run.state === "running", pause: run.state === "running" || run.state === "yielded" };
    const resting = ["new", "stopped", "failed", "interrupted"].includes(run.state);
    const resume = run.state === "paused" ? button("Resume", "Go on with the next step", ask("resume")) : button(runs.startWord(run), runs.startHelp(run), ask("start"), { disabled: !resting });
    const stop = run.state === "queued" ? button("Take out of the queue", "It does not begin; nothing is lost", ask("cancel"))
      : button("Stop", "Finish the step, save a checkpoint and end; it can be resumed", ask("cancel"), { disabled: !alive && run.state !== "starting" });
    const share = runs.percent(run);
    const told = run.notices.filter((line) => !/^(pause|resume|stop|save|sample) \(\d+\) is heard$/.test(line));
    const facts = [run.loss !== null && `loss ${window.studio.charts.short(run.loss)}`, run.checkpoints && `${run.checkpoints} checkpoint${run.checkpoints > 1 ? "s" : ""}`, `${size(run.bytes)} on disk`, run.folder];
    const train = $(LIKE) || trainTab();
    const places = resting || run.state === "queued" ? runs.places() : [];
    const device = el("select", { id: "sr-device", onchange: () => runs.act(run.id, "device", { device: device.value }) }, ...places.map(([name, text]) => el("option", { value: name, text, selected: name === run.device })));
    const begin = el("input", { type: "time", id: "sr-after", value: run.after ? runs.clock(run.after) : "", onchange: () => runs.act(run.id, "hold", { after: runs.moment(begin.value) }) });
    fill(box, 
      el("div", { class: "sr-name" }, el("h3", { text: run.id }), el("span", { class: "st-quiet", text: runs.kind(run) })),
      el("div", { id: "sr-state", class: run.state === "failed" ? "st-bad" : "", "aria-live": "polite", "data-state": run.state, text: runs.words(run) }),
      el("div", { class: "st-track", role: "progressbar", "aria-label": "Progress of " + run.id, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": share }, el("div", { class: "st-fill", style: `width:${share}%` })),
      el("div", { class: "st-row", id: "sr-buttons" },
        button("Sample now", run.prompts.length || run.method === "unconditional" ? "Save a checkpoint and draw the sample prompts with it" : "There are no sample prompts; write some under Samples", ask("sample"), { disabled: !on.sample }),
        button("Save now", "Save a checkpoint", ask("save"), { disabled: !on.save }),
        button("Pause", "Rest after this step and leave the device to others", ask("pause"), { disabled: !on.pause }),
        resume, stop,
        train && button("Train like this", "Fill the Train tab with the settings of this run", like)),
      places.length > 0 && el("label", { class: "st-quiet sr-slider", title: "On which it works when it begins or goes on" }, "Device ", device),
      run.state === "queued" && el("label", { class: "st-quiet sr-slider", title: "It begins when this time has come and the device is free; empty: when its turn comes" }, "Not before ", begin),
      el("div", { class: "st-quiet sr-facts", text: facts.filter(Boolean).join(" · ") }),
      run.recommended && el("div", { class: "sr-recommended" }, el("b", { text: `★ Take step ${run.recommended.step}. ` }), run.recommended.reason),
      told.length > 0 && el("details", { class: "st-quiet" }, el("summary", { text: told[told.length - 1] }), ...told.slice(0, -1).reverse().map((line) => el("div", { text: line }))));
  }

  // ---- curves ---------------------------------------------------------------------------------------------------
  function curves(box) {
    if (!$("#sr-smooth")) {
      const slider = el("input", { type: "range", id: "sr-smooth", min: 0, max: 0.99, step: 0.01, value: smooth, oninput: () => { smooth = Number(slider.value); redraw("curves"); } });
      fill(box, el("label", { class: "st-quiet sr-slider" }, "Smoothing ", slider, el("output", { text: smooth })), ...["loss", "scores", "rate", "norm", "memory"].map((name) => el("div", { class: "sr-chart", id: "sr-chart-" + name })));
    }
    $("#sr-smooth").nextElementSibling.textContent = smooth;
    const { curves: told } = run;
    const common = { weight: smooth, marks: run.results.map((one) => one.step).filter((at) => at >= 0), best: run.recommended?.step ?? null, steps: run.steps };
    const chart = (name, title, series, more = {}) => window.studio.charts.draw($("#sr-chart-" + name), { title, series, ...common, ...more });
    chart("loss", "Loss", [{ name: "training", points: told.loss, colour: "#2563eb", smooth: true }, { name: "held-out pictures", points: told.held_out_loss, colour: "#d97706", dots: true }]);
    const scores = Object.keys(told).filter((name) => name in SCORES);
    chart("scores", "Scores of the samples", scores.map((name) => ({ name, points: told[name], colour: SCORES[name], dots: true })), { low: 0, high: 1 });
    chart("rate", "Learning rate", [{ name: "learning rate", points: told.learning_rate, colour: "#7c3aed" }]);
    chart("memory", "Memory, GiB", [{ name: "held by the run", points: told.memory, colour: "#64748b" }], { low: 0 });
    chart("norm", "Gradient norm", [{ name: "norm", points: told.grad_norm, colour: "#0d9488", smooth: true }]);
  }

  // ---- samples --------------------------------------------------------------------------------------------------
  const steps = () => [...new Set([...Object.keys(run.samples), ...Object.keys(run.grids)].map(Number))].sort((a, b) => a - b);
  const newest = () => steps().at(-1) ?? null;

  // The rows of the grid: [{prompt, at: {step: name}}], one a prompt and picture.
  function places() {
    const found = new Map();
    const put = (key, prompt, at, name) => {
      if (!found.has(key)) found.set(key, { prompt, at: {} });
      Object.assign(found.get(key), { prompt }).at[at] = name;
    };
    for (const at of steps()) {
      for (const name of run.samples[at] || []) put(name.replace(/^step-\d+-|\.png$/g, ""), run.said[name] || "", at, name);
      if (run.grids[at]) put("grid", "", at, run.grids[at]);
    }
    return [...found.values()];
  }

  function samples(box) {
    const at = steps();
    const now = at.includes(step) ? step : newest();
    const slider = at.length > 1 && el("input", { type: "range", id: "sr-step", min: 0, max: at.length - 1, step: 1, value: at.indexOf(now), "aria-label": "Step",
      oninput: () => { const place = Number(slider.value); step = place === at.length - 1 ? null : at[place]; redraw("samples"); $("#sr-step")?.focus(); } });
    const waits = run.prompts.length ? "The first samples appear with the first checkpoint." : "There are no sample prompts. Write some below: they are drawn at each checkpoint.";
    const rows = places().map((row) => el("div", { class: "sr-sample" },
      row.at[now] ? el("img", { class: "sr-large", src: sample(row.at[now]), alt: `${row.prompt}, step ${now}`, onclick: () => big(row, now) }) : el("div", { class: "sr-large st-quiet", text: "not drawn at this step" }),
      el("div", { class: "sr-strip-box" }, el("div", { class: "sr-prompt", text: row.prompt }),
        el("div", { class: "sr-strip" }, ...at.filter((one) => row.at[one]).map((one) => el("figure", { class: one === now ? "st-on" : "" },
          el("img", { src: sample(row.at[one], true), alt: "", loading: "lazy", title: "Step " + one, onclick: () => { step = one === newest() ? null : one; redraw("samples"); } }), el("figcaption", { text: one })))))));
    const scrolled = [...box.querySelectorAll(".sr-strip")].map((strip) => strip.scrollLeft);
    const editing = box.querySelector("#sr-prompts");
    const text = editing?.dataset.changed ? editing.value : run.prompts.join("\n");
    const wasOpen = box.querySelector("#sr-prompts-box")?.open;
    const area = el("textarea", { id: "sr-prompts", rows: Math.max(2, run.prompts.length + 1), "aria-label": "Sample prompts, one a line", oninput: () => { area.dataset.changed = "1"; } });
    area.value = text;
    if (editing?.dataset.changed) area.dataset.changed = "1";
    const save = button("Save prompts", "They are drawn from the next checkpoint on", async () => {
      const prompts = area.value.split("\n").map((line) => line.trim()).filter(Boolean);
      delete area.dataset.changed;
      if (!(await runs.act(run.id, "prompts", { prompts })).ok) area.dataset.changed = "1";
    });
    fill(box, ...(slider ? [el("label", { class: "st-quiet sr-slider" }, "Step ", slider, el("output", { text: now }))] : []), ...(rows.length ? rows : [el("p", { class: "st-quiet", text: waits })]),
      ...(run.method === "unconditional" ? [] : [el("details", { id: "sr-prompts-box", open: wasOpen || (!rows.length && !run.prompts.length) }, el("summary", { text: "Sample prompts" }),
        el("div", { class: "st-quiet", text: "One a line. A change counts from the next checkpoint on, also while the run works." }), area, el("div", { class: "st-row" }, save))]));
    box.querySelectorAll(".sr-strip").forEach((strip, i) => {
      strip.scrollLeft = scrolled[i] ?? strip.scrollWidth;
      const on = strip.querySelector(".st-on");
      if (on && (on.offsetLeft < strip.scrollLeft || on.offsetLeft + on.offsetWidth > strip.scrollLeft + strip.clientWidth)) strip.scrollLeft = on.offsetLeft - strip.clientWidth / 2;
    });
  }

  function big(row, at) {
    const box = $("#sr-big");
    const order = steps().filter((one) => row.at[one]);
    const turn = (by) => { const next = order[order.indexOf(at) + by]; if (next !== undefined) big(row, next); };
    fill(box, el("img", { src: sample(row.at[at]), alt: row.prompt }), el("div", { class: "sr-prompt", text: `Step ${at}` + (row.prompt ? ` · ${row.prompt}` : "") }),
      el("div", { class: "st-row" }, button("←", "Earlier step", () => turn(-1), { disabled: order[0] === at }), button("→", "Later step", () => turn(1), { disabled: order.at(-1) === at }),
        el("a", { class: "st-button", text: "Download", title: "Save the PNG with all its settings inside", href: sample(row.at[at]), download: `${run.id}-${row.at[at]}` }), button("Close", "Close", () => box.close())));
    box.onkeydown = (event) => { if (event.key === "ArrowLeft") turn(-1); if (event.key === "ArrowRight") turn(1); };
    if (!box.open) box.showModal();
  }

  // ---- files ----------------------------------------------------------------------------------------------------
  function results(box) {
    const row = (one) => {
      const kept = run.kept.filter((other) => other.step === one.step).map((other) => other.name);
      return el("tr", { "data-step": one.step },
        el("td", {}, el("b", { text: label(one.step) }), run.recommended?.step === one.step && el("span", { class: "sr-star", text: " ★ recommended", title: run.recommended.reason })),
        el("td", {}, el("span", { text: one.name }), kept.length > 0 && el("div", { class: "st-quiet", text: "kept as " + kept.join(", ") })), el("td", { text: size(one.bytes) }),
        el("td", {}, el("div", { class: "sr-row" },
          button("Use in Generate", `Opens Generate and ${USES[one.kind]}`, () => runs.use(run.id, one.step)),
          el("a", { class: "st-button", text: one.file ? "Download" : "Download zip", title: "Save it on this computer", href: path("file/" + (one.step < 0 ? "final" : one.step)), download: true }),
          one.kohya && el("a", { class: "st-button", text: "Kohya keys", title: "The same LoRA for A1111 and kohya's tools", href: path(`file/${one.step < 0 ? "final" : one.step}?keys=kohya`), download: true }),
          button("Keep …", "Copy it into the library, so that it stays when the run goes", () => { keeping = one.step; part("keep-box").open = true; redraw("keep"); part("keep-box").scrollIntoView({ behavior: "smooth", block: "nearest" }); }))));
    };
    const rest = !["running", "paused", "yielded", "starting"].includes(run.state);
    const clean = button("Clean up", "Remove what only a resumed run would need; results and samples stay", async () => {
      const done = await runs.act(run.id, "clean");
      if (done.ok) part("freed").textContent = `${size(done.bytes)} freed.`;
    }, { disabled: run.state !== "finished" });
    const remove = button("Remove …", rest ? "Move the run and all its files into the trash" : "Stop it first", async () => {
      if (confirm(`Move the run ${run.id} with its checkpoints and samples into the trash? What you kept stays.`)) await runs.act(run.id, "remove");
    }, { disabled: !rest });
    fill(box, run.results.length ? el("div", { class: "st-table" }, el("table", {}, el("tbody", {}, ...[...run.results].reverse().map(row)))) : el("p", { class: "st-quiet", text: "The first checkpoint appears here, and in Generate, as soon as it is saved." }),
      el("div", { class: "st-row" }, clean, remove, el("span", { class: "st-quiet", text: `The run takes ${size(run.bytes)}.` }), el("span", { id: "sr-freed", class: "st-quiet" })),
      ...(run.card ? [el("details", {}, el("summary", { text: "Model card" }), el("pre", { text: run.card }))] : []));
  }

  // ---- keep -----------------------------------------------------------------------------------------------------
  function keep(box) {
    if (!run.results.length) { box.replaceChildren(); return; }
    const of = run.results.find((one) => one.step === keeping) || run.results.find((one) => one.step === run.recommended?.step) || run.results.at(-1);
    const lora = of.kind === "lora";
    const field = (text, input) => el("label", { class: "sr-field" }, el("span", { text }), input);
    const which = el("select", { id: "sr-keep-step", onchange: () => { keeping = Number(which.value); redraw("keep"); } }, ...[...run.results].reverse().map((one) => el("option", { value: one.step, text: label(one.step) + (run.recommended?.step === one.step ? " ★" : ""), selected: one.step === of.step })));
    const name = el("input", { id: "sr-keep-name", value: run.id + "-v" + (run.kept.length + 1) });
    const words = el("input", { id: "sr-keep-words", value: run.config.trigger_word || "", placeholder: "sks heart" });
    const weight = el("input", { id: "sr-keep-weight", type: "number", step: 0.05, value: run.config.recommended_weight ?? 1 });
    const notes = el("textarea", { id: "sr-keep-notes", rows: 2 });
    const pictures = run.samples[of.step < 0 ? newest() : of.step] || [];
    const cover = el("select", { id: "sr-keep-cover" }, el("option", { value: "", text: "None" }), ...pictures.map((one, i) => el("option", { value: one, text: `${i + 1}: ${(run.said[one] || one).slice(0, 60)}`, selected: i === 0 })));
    const look = el("img", { class: "sr-cover", alt: "" });
    const shown = () => { look.hidden = !cover.value; if (cover.value) look.src = sample(cover.value, true); };
    cover.addEventListener("change", shown);
    shown();
    const said = el("span", { id: "sr-kept", class: "st-quiet", text: run.kept.length ? `Kept so far: ${run.kept.map((one) => `${one.name} (${label(one.step).toLowerCase()})`).join(", ")}.` : "" });
    const go = button(lora ? "Keep as LoRA" : "Keep", "Copy it into the library under this name", async () => {
      const card = lora ? { words: words.value, weight: weight.value === "" ? null : Number(weight.value), notes: notes.value, cover: cover.value } : {};
      await runs.act(run.id, "keep", { step: of.step, name: name.value, ...card });
    }, { id: "sr-keep-go" });
    fill(box, el("p", { class: "st-quiet", text: "A copy in the library, with a name of its own: it stays when the run is removed." }),
      el("div", { class: "sr-fields" }, field("Result", which), field("Name", name), ...(lora ? [field("Trigger words", words), field("Recommended weight", weight), field("Notes", notes), field("Cover", cover), look] : [])), el("div", { class: "st-row" }, go, said));
  }

  // ---- settings -------------------------------------------------------------------------------------------------
  function config(box) {
    const shown = (value) => value === null || value === "" ? "—" : typeof value === "object" ? JSON.stringify(value) : String(value);
    const copy = button("Copy", "Copy the command line", async () => {
      try { await navigator.clipboard.writeText(run.command); copy.textContent = "Copied"; }
      catch { getSelection().selectAllChildren(part("command")); copy.textContent = "Press Ctrl+C"; }
      setTimeout(() => { copy.textContent = "Copy"; }, 2000);
    });
    fill(box, el("div", { class: "st-quiet", text: "What a shell would say to begin this run:" }), el("pre", { id: "sr-command", text: run.command }), el("div", { class: "st-row" }, copy),
      el("div", { class: "st-table sr-config" }, el("table", {}, el("tbody", {}, ...Object.entries(run.config).map(([name, value]) => el("tr", {}, el("th", { text: name }), el("td", { text: shown(value) })))))));
  }

  return { draw, label, size, SCORES };
})();
