// The Runs tab: the list of runs, the chosen one, who goes first, what the browser's title and the device chip tell of training.
// Text from people is only ever set as textContent.
window.studio.runs = (() => {
  const { el, button, call, url, store } = window.studio;
  const $ = (selector) => document.querySelector(selector);
  const EVERY = 2000;  // milliseconds between two looks at one run
  const ENDED_SHOWN = 20;
  const ALIVE = ["running", "paused", "yielded"];
  const METHODS = { lora: "LoRA", dreambooth: "DreamBooth", "textual-inversion": "Textual inversion", full: "Full fine-tuning", controlnet: "ControlNet", unconditional: "Unconditional" };
  const FIRST = [["pictures", "Pictures first", "A run lets pictures go between two steps"], ["training", "Training first", "Pictures wait until no run needs the device"], ["ask", "Ask me", "Pictures wait until you let them go"]];
  let told = { runs: [], places: [], place: "", first: "pictures", once: false, jobs: [] };
  let rows = [];          // all runs as the server last listed them
  let chosen = store.get("studio-run");
  let handed = "";        // what another tab chose last
  let details = null;     // of the chosen run
  let ended = "";         // what the title says until somebody looks
  let asked = {};         // run -> what was asked of it and is not done yet
  let all = false;        // whether all ended runs are listed
  let wanted = null;      // what Generate shall use
  let last = 0, timer = 0;

  const visible = () => Boolean($("#sr")?.offsetParent) && !document.hidden;
  const percent = (run) => run.steps ? Math.round(100 * run.step / run.steps) : 0;
  const working = () => told.runs.filter((run) => ALIVE.includes(run.state) || run.state === "starting");

  function duration(seconds) {
    if (seconds < 60) return seconds < 1 ? "less than 1 s" : `${Math.ceil(seconds)} s`;
    const minutes = Math.round(seconds / 60);
    return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }

  // A moment as the clock of this browser shows it: 22:00.
  const clock = (seconds) => new Date(seconds * 1000).toTimeString().slice(0, 5);
  // The next time at which the clock shows hours and minutes, in seconds since 1970; null for "".
  function moment(text) {
    if (!text) return null;
    const [hours, minutes] = text.split(":").map(Number);
    const at = new Date();
    at.setHours(hours, minutes, 0, 0);
    if (at <= new Date()) at.setDate(at.getDate() + 1);
    return at / 1000;
  }

  // What a run is doing, in words.
  function words(run) {
    const at = run.steps ? `step ${run.step} of ${run.steps}` : "";
    const hope = { stop: "stopping after this step …", pause: "pausing …", save: "saving …", sample: "drawing samples …" }[asked[run.id]?.what];
    if (hope && ALIVE.includes(run.state)) return [hope, at].filter(Boolean).join(" ");
    if (run.state === "new") return "not started";
    if (run.state === "queued" && run.after * 1000 > Date.now()) return `waits until ${clock(run.after)}`;
    if (run.state === "queued") return run.place === 1 ? "waits, next" : `waits, place ${run.place}`;
    if (run.state === "starting") return "starting …";
    if (run.state === "running" && (!run.steps || run.note)) return (run.note || "getting ready") + " …";
    if (run.state === "running") return `training, ${at}` + (run.seconds_left !== null && run.step < run.steps ? `, ${duration(run.seconds_left)} left` : "");
    if (run.state === "paused") return `paused, ${at}`;
    if (run.state === "yielded") return `lets pictures go first, ${at}`;
    if (run.state === "finished") return `finished, ${run.step} steps`;
    if (run.state === "stopped") return `stopped at ${at}`;
    if (run.state === "interrupted") return `was cut off${at ? " at " + at : ""}: resume`;
    return run.error || "failed";
  }

  const kind = (run) => [METHODS[run.method] || run.method, run.device && "on " + run.device].filter(Boolean).join(" · ");

  // On which devices a run can work: [name, label], the app's own first and named "".
  function places() {
    const label = (place) => place.title + (place.memory ? `, ${Math.round(place.memory / 2 ** 30)} GiB` : "");
    const here = told.places.find((place) => place.name === told.place);
    const others = told.places.filter((place) => place !== here);
    return others.length ? [["", "That of the app" + (here ? ` (${label(here)})` : "")], ...others.map((place) => [place.name, place.name === "cpu" ? label(place) : `${place.name}: ${label(place)}`])] : [];
  }

  const made = (run) => run ? run.checkpoints + "|" + Object.values(run.samples).flat().length : "";

  async function act(id, action, body = {}) {
    const answer = await call(`run/${encodeURIComponent(id)}/${action}`, body);
    if ($("#sr-problem")) $("#sr-problem").textContent = answer.error || "";
    if (answer.ok && ["pause", "save", "sample"].includes(action)) asked[id] = { what: action, made: made(details), at: Date.now() };
    if (answer.ok && action === "cancel") asked[id] = { what: "stop" };
    if (answer.ok && ["resume", "start"].includes(action)) delete asked[id];
    await list();
    await load();
    return answer;
  }

  // ---- the list -------------------------------------------------------------------------------------------------
  async function list() {
    const answer = await fetch(url("runs"));
    if (!answer.ok) return;
    rows = (await answer.json()).runs;
    drawList();
  }

  const merged = () => {
    const now = new Map(told.runs.map((run) => [run.id, run]));
    return rows.map((run) => now.get(run.id) || run);
  };

  function drawList() {
    const box = $("#sr-list");
    if (!box) return;
    const runs = merged();
    $("#sr-none").hidden = runs.length > 0;
    $("#sr-head").hidden = !runs.length;
    const key = JSON.stringify([chosen, all, asked, runs]);
    if (box.dataset.key === key) return;
    box.dataset.key = key;
    const live = runs.filter((run) => ALIVE.includes(run.state) || run.state === "starting");
    const waiting = runs.filter((run) => run.state === "queued").sort((a, b) => a.place - b.place);
    const over = runs.filter((run) => !live.includes(run) && !waiting.includes(run));
    const group = (title, some) => some.length ? [el("div", { class: "st-panel-title", text: title }), ...some.map(card)] : [];
    const more = over.length > ENDED_SHOWN && !all;
    box.replaceChildren(...group("Working", live), ...group("Waiting", waiting), ...group("Ended", more ? over.slice(0, ENDED_SHOWN) : over),
      ...(more ? [button(`Show all ${over.length}`, "Show the older ones too", () => { all = true; drawList(); })] : []));
  }

  function card(run) {
    const stop = (action) => (event) => { event.stopPropagation(); action(); };
    const place = run.state === "queued";
    const again = ["stopped", "failed", "interrupted", "new"].includes(run.state);
    return el("div", { class: "sr-card" + (run.id === chosen ? " st-on" : ""), "data-run": run.id, "data-state": run.state, tabindex: 0, role: "button",
      onclick: () => choose(run.id), onkeydown: (event) => { if (event.key === "Enter" && event.target === event.currentTarget) choose(run.id); } },
      el("div", { class: "sr-name" }, el("b", { text: run.id }), el("span", { class: "st-quiet", text: kind(run) })),
      el("div", { class: "sr-words" + (run.state === "failed" ? " st-bad" : ""), text: words(run) }),
      run.steps && run.state !== "finished" && el("div", { class: "st-track" }, el("div", { class: "st-fill", style: `width:${percent(run)}%` })),
      (place || again) && el("div", { class: "sr-row" },
        place && button("↑", "Earlier", stop(() => act(run.id, "move", { offset: -1 })), { disabled: run.place === 1 }),
        place && button("↓", "Later", stop(() => act(run.id, "move", { offset: 1 })), { disabled: !merged().some((other) => other.place > run.place) }),
        place && button("✕", "Take out of the queue", stop(() => act(run.id, "cancel"))),
        again && button(startWord(run), startHelp(run), stop(() => act(run.id, "start")))));
  }

  const startWord = (run) => run.state === "new" ? "Start" : run.state === "failed" ? "Try again" : "Resume";
  const startHelp = (run) => run.checkpoints ? "Go on from the newest checkpoint, when those before it have ended" : "Begin, when those before it have ended";

  function choose(id) {
    if (!id) return;
    if (id !== chosen) details = null;
    chosen = id;
    store.set("studio-run", id);
    if ($("#sr-problem")) $("#sr-problem").textContent = "";
    if (!$("#sr")?.offsetParent) return;
    drawList();
    if (innerWidth <= 760) $("#sr-run").scrollIntoView({ behavior: "smooth" });
    load();
  }

  // ---- one run --------------------------------------------------------------------------------------------------
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(() => { if (visible()) load(); }, Math.max(0, last + EVERY - Date.now()));
  };

  async function load() {
    if (!chosen || !$("#sr-run")) return;
    clearTimeout(timer);
    last = Date.now();
    const id = chosen;
    const answer = await fetch(url("run/" + encodeURIComponent(id)));
    if (id !== chosen) return;
    if (!answer.ok) {  // it was removed
      chosen = details = null;
      $("#sr-run").replaceChildren();
      drawList();
      return;
    }
    details = await answer.json();
    const hope = asked[id];
    const over = { stop: false, pause: details.state === "paused" }[hope?.what] ?? (made(details) !== hope?.made || Date.now() - hope.at > 60000);
    if (hope && (over || ![...ALIVE, "starting"].includes(details.state))) delete asked[id];
    drawList();
    window.studio.runParts.draw(details);
  }

  async function open() {
    if (!$("#sr")) return;
    const other = $("#st-run-chosen textarea, #st-run-chosen input")?.value || "";
    if (other && other !== handed) { handed = other; chosen = other; details = null; }
    drawFirst();
    await list();
    if (!rows.some((run) => run.id === chosen)) chosen = null;
    chosen ||= (working()[0] || rows[0])?.id || null;
    drawList();
    await load();
  }

  // ---- who goes first -------------------------------------------------------------------------------------------
  function drawFirst() {
    const box = $("#sr-first");
    if (!box || box.dataset.key === told.first) return;
    box.dataset.key = told.first;
    box.replaceChildren(...FIRST.map(([name, label, help]) => el("button", { type: "button", class: "st-button" + (told.first === name ? " st-on" : ""), role: "radio",
      "aria-checked": String(told.first === name), "data-first": name, title: help, text: label, onclick: () => call("priority/" + name, {}) })));
    const notify = $("#sr-notify");
    if (!notify.dataset.bound) {
      notify.dataset.bound = "1";
      $("#sr-notify-label").hidden = !("Notification" in window);
      notify.checked = Boolean(store.get("studio-notify")) && window.Notification?.permission === "granted";
      notify.addEventListener("change", async () => {
        if (notify.checked) notify.checked = (await Notification.requestPermission()) === "granted";
        store.set("studio-notify", notify.checked);
        if (!notify.checked && Notification.permission === "denied") $("#sr-problem").textContent = "This browser does not allow notifications from this address; its settings can change that.";
      });
    }
  }

  // In Generate: pictures that a run holds up, and the way out.
  function drawHeld() {
    const box = $("#st-held");
    if (!box) return;
    const run = working().find((one) => one.state === "running");
    const waits = (told.jobs || []).some((job) => job.mine && (job.state === "queued" || (job.state === "running" && !job.progress)));
    const held = Boolean(run) && waits && told.first !== "pictures" && !told.once;
    box.hidden = !held;
    const key = held ? run.id + told.first : "";
    if (!held || box.dataset.key === key) { box.dataset.key = key; return; }
    box.dataset.key = key;
    const why = told.first === "ask" ? "asks you first" : "goes first";
    box.replaceChildren(el("span", { text: `Waits for the run ${run.id}, which ${why}. ` }),
      button("Draw now", "Let the pictures that wait now go first, once", () => call("priority/once", {})),
      button("Runs", "Show the run, and who goes first", () => go(run.id)));
  }

  // ---- what all of the page hears -------------------------------------------------------------------------------
  function show(state) {
    const before = told;
    told = { runs: state.runs || [], places: state.device?.places || [], place: state.device?.place || "", first: state.first || "pictures", once: Boolean(state.once), jobs: state.jobs || [], plots: state.plots || [] };
    drawHeld();
    drawFirst();
    const states = (some) => JSON.stringify(some.runs.map((run) => [run.id, run.state, run.place]));
    const changed = states(before) !== states(told);
    const gone = before.runs.filter((run) => run.state !== "queued" && !told.runs.some((other) => other.id === run.id));
    if (gone.length) end(gone.map((run) => run.id));
    if (!visible()) return;
    if (changed && !gone.length) list(); else drawList();
    const row = (some) => JSON.stringify([some.runs.find((run) => run.id === chosen), (some.plots || []).find((plot) => plot.id === details?.compared?.plot)]);
    if (row(before) !== row(told)) soon();
  }

  async function end(ids) {
    await list();
    const marks = { finished: "✓", failed: "✗", stopped: "■", interrupted: "✗" };
    for (const run of rows.filter((one) => ids.includes(one.id) && one.state in marks)) {
      ended = `${marks[run.state]} ${run.id}`;
      if (store.get("studio-notify") && window.Notification?.permission === "granted") new Notification(`${marks[run.state]} ${run.id}`, { body: words(run), tag: "studio-" + run.id });
    }
    document.title = title() || document.title;
    if (visible() && ids.includes(chosen)) soon();
  }

  function title() {
    const run = working().find((one) => one.steps);
    if (run) return `${percent(run)} % · ${run.id}`;
    return ended;
  }
  const seen = () => { if (ended && !document.hidden) { ended = ""; document.title = title() || "Studio"; } };
  for (const event of ["pointerdown", "keydown"]) document.addEventListener(event, seen, true);
  document.addEventListener("visibilitychange", () => { if (visible()) open(); });

  function chip() {
    const run = working()[0];
    const node = $("#st-device");
    node.classList.toggle("st-link", Boolean(run));
    node.title = run ? "Show the run" : "";
    node.onclick = run ? () => go(run.id) : null;
    node.onkeydown = run ? (event) => { if (event.key === "Enter") go(run.id); } : null;
    if (run) { node.tabIndex = 0; node.setAttribute("role", "link"); } else { node.removeAttribute("tabindex"); node.removeAttribute("role"); }
    return run ? ` · training ${run.id}` + (run.steps ? `, step ${run.step} of ${run.steps}` : "") : "";
  }

  function go(id) {
    if (id !== chosen) details = null;
    chosen = id;
    store.set("studio-run", id);
    $("#st-to-runs")?.click();
  }

  function use(run, step) {
    wanted = { run, step };
    $("#st-run-use").click();
    window.scrollTo({ top: 0, behavior: "smooth" });
  }

  return { show, open, choose, go, title, chip, use, using: () => JSON.stringify(wanted), act, words, percent, load, places, clock, moment, kind, startWord, startHelp, METHODS, ALIVE };
})();
