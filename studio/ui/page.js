// The living parts of the page: progress, results, queue, gallery. Pictures and state come from plain routes; Gradio carries the form.
// Text from people is only ever set as textContent.
window.studio = (() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const store = { get: (key) => { try { return JSON.parse(localStorage.getItem(key)); } catch { return null; } },
                  set: (key, value) => localStorage.setItem(key, JSON.stringify(value)) };
  const base = () => (window.gradio_config?.root || "").replace(/\/$/, "");
  const url = (path) => base() + "/studio/" + path;
  let state = { version: -1, jobs: [], device: {}, waiting: 0 };
  let shown = null;      // id of the picture on the stage
  let myJob = null;      // the job that this page submitted last
  let pending = null;    // picture whose settings are being restored

  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (key === "text") node.textContent = value;
      else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.filter(Boolean));
    return node;
  };
  const button = (text, title, onclick, extra = {}) => el("button", { type: "button", class: "st-button", text, title, onclick, ...extra });

  async function call(path, body) {
    const answer = await fetch(url(path), { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    const value = await answer.json().catch(() => ({}));
    if (!answer.ok) {
      const message = value.error || "The server did not answer as expected (" + answer.status + ").";
      say(message);
      if ($("#sg-problem")) $("#sg-problem").textContent = message;
    }
    return { ...value, ok: answer.ok };
  }

  function say(message, quiet = false) {
    const box = $("#st-message");
    if (!box) return;
    box.textContent = message;
    box.classList.toggle("st-note", quiet);
    box.hidden = !message;
  }

  // ---- the form -------------------------------------------------------------------------------------------------
  function submitted(text) {
    document.querySelectorAll(".st-problem").forEach((node) => node.remove());
    const result = JSON.parse(text || "{}");
    if (result.error) {
      const field = result.field && $("#field-" + CSS.escape(result.field));
      const line = el("div", { class: "st-problem", role: "alert", text: result.error });
      if (field) {
        field.closest("details, .accordion")?.setAttribute("open", "");
        field.append(line);
        field.scrollIntoView({ block: "center", behavior: "smooth" });
      }
      say(field ? "" : result.error);
      if (field && !field.offsetParent) say(result.error);
      return;
    }
    say(result.note || "", true);
    myJob = result.job || myJob;
    if (result.job) {
      shown = null;
      if (innerWidth <= 760) $("#st-viewer").scrollIntoView({ behavior: "smooth" });
    }
  }

  function saveForm(names, values) {
    const form = Object.fromEntries(names.map((name, i) => [name, values[i]]));
    store.set("studio-form", form);
    markGroups(form);
    fit();
  }

  // A closed accordion tells that something inside is not as usual: `usual` is {group: {field: value}}, set by the page.
  function markGroups(form) {
    for (const [group, fields] of Object.entries(window.studioUsual || {})) {
      const active = Object.entries(fields).some(([name, value]) => name in form && JSON.stringify(form[name]) !== JSON.stringify(value));
      $("#group-" + group)?.classList.toggle("st-active", active);
    }
  }
  const restoreForm = (names, values) => {
    const saved = store.get("studio-form") || {};
    return names.map((name, i) => (name in saved ? saved[name] : values[i]));
  };

  // What a model cannot use is switched off and says why: `fits` is {none | image: {field: reason}}, without and with a picture.
  let fits = {};
  function fit(text) {
    if (text) fits = JSON.parse(text);
    const editor = $("#field-image");
    const pictured = editor && !$(".empty", editor);
    const off = { ...fits[pictured ? "image" : "none"] };
    if (pictured && store.get("studio-form")?.strength === 0) {  // nothing is drawn: the picture may be made larger
      for (const name of Object.keys(off)) if (name.startsWith("hires_")) delete off[name];
    }
    for (const node of document.querySelectorAll(".st-barred")) {
      if (node.id.slice("field-".length) in off) continue;
      node.inert = false;
      node.classList.remove("st-barred");
    }
    for (const [name, why] of Object.entries(off)) {
      const node = $("#field-" + name);
      if (!node) continue;
      node.inert = true;
      node.classList.add("st-barred");
      node.dataset.why = "This " + why + ".";
    }
  }
  // Gradio tells no script whether its editor holds a picture (what one drops it into is there only while it does not), and draws
  // an accordion's controls when it is first opened.
  let due = 0;
  new MutationObserver(() => { due ||= requestAnimationFrame(() => { due = 0; fit(); }); })
    .observe(document.documentElement, { childList: true, subtree: true });

  // ---- progress and result --------------------------------------------------------------------------------------
  const current = () => {
    const mine = state.jobs.filter((job) => job.mine);
    return mine.find((job) => job.state === "running") || mine.find((job) => job.id === myJob) ||
      mine.find((job) => job.images?.length && job.state !== "queued") || null;
  };

  function lineFor(job) {
    if (!job) return "";
    if (job.state === "queued") return job.place === 1 ? "Next in the queue" : `Place ${job.place} in the queue`;
    if (job.state === "failed") return job.error;
    if (job.state === "cancelled") return job.images.length ? "Interrupted; finished pictures are kept" : "Interrupted";
    if (job.state === "done") return (job.notices || []).join(" ");
    const p = job.progress;
    if (!p) { const note = job.note || "waiting"; return note.charAt(0).toUpperCase() + note.slice(1) + " …"; }
    const parts = [`Step ${p.step} of ${p.steps}`];
    if (p.images > 1) parts.push(`picture ${p.image + 1} of ${p.images}`);
    const own = state.jobs.find((other) => other.id === myJob);
    if (own?.state === "queued") parts.push(`yours is at place ${own.place}`);
    else if (p.seconds_left !== null) parts.push(`${p.seconds_left < 1 ? "less than 1" : Math.ceil(p.seconds_left)} s left`);
    return parts.join(" · ");
  }

  function fraction(job) {
    const p = job?.progress;
    return job?.state === "running" && p ? (p.image + Math.min(job.batch, p.images - p.image) * p.step / p.steps) / p.images : 0;
  }

  function render() {
    const viewer = $("#st-viewer");
    if (!viewer) return;
    const job = current();
    const images = job?.images || [];
    const drawing = job?.state === "running";
    if (!images.includes(shown)) shown = images.length ? images[images.length - 1] : null;
    const stage = $("#st-stage");
    const source = drawing && job.previews && (!shown || images.length < job.number) ? url(`preview/${job.id}?n=${job.previews}`)
      : shown ? url("image/" + shown) : "";
    const picture = $("#st-picture");
    if (source && picture.dataset.source !== source) {
      picture.dataset.source = source;
      picture.src = source;
      picture.alt = job.prompt;
      picture.classList.toggle("st-preview", source.includes("/preview/"));
      picture.style.aspectRatio = job.width ? `${job.width} / ${job.height}` : "";
    }
    picture.hidden = !source;
    stage.dataset.job = job?.id || "";
    stage.dataset.state = job?.state || "empty";
    $("#st-empty").hidden = Boolean(source) || Boolean(job && job.state !== "done");
    $("#st-line").textContent = lineFor(job);
    $("#st-line").classList.toggle("st-error", job?.state === "failed");
    $("#st-bar").style.width = Math.round(100 * fraction(job)) + "%";
    $("#st-bar").parentElement.setAttribute("aria-valuenow", Math.round(100 * fraction(job)));
    strip(images);
    actions(job, drawing);
    queue();
    device();
    document.title = drawing && job.progress ? `${Math.round(100 * fraction(job))} % · Studio` : window.studio.runs?.title() || "Studio";
    document.body.classList.toggle("st-drawing", drawing || state.jobs.some((other) => other.id === myJob && other.state === "queued"));
  }

  function strip(images) {
    const box = $("#st-strip");
    const key = images.join() + shown;
    if (box.dataset.key === key) return;
    box.dataset.key = key;
    box.replaceChildren(...(images.length > 1 ? images.map((id) =>
      el("button", { type: "button", class: "st-thumb" + (id === shown ? " st-on" : ""), title: "Show this picture", onclick: () => { shown = id; render(); } },
        el("img", { src: url("thumbnail/" + id), alt: "" }))) : []));
  }

  function actions(job, drawing) {
    const box = $("#st-actions");
    const key = `${shown}|${job?.state}|${job?.id}`;
    if (box.dataset.key === key) return;
    box.dataset.key = key;
    const list = [];
    if (shown && !drawing) {
      list.push(el("a", { class: "st-button", text: "Download", title: "Save the PNG with all its settings inside", href: url("image/" + shown), download: shown + ".png" }));
      list.push(button("Send to img2img", "Start the next picture from this one", () => startFrom(shown)));
      list.push(button("Send to Upscale", "Make this picture larger", () => enlarge(shown)));
      list.push(button("Reuse settings", "Put all settings of this picture into the form", () => restore(shown)));
      list.push(button("Details", "Show all that is known about this picture", () => details(shown, $("#st-details"))));
    }
    if (job && ["failed", "cancelled"].includes(job.state)) list.push(button("Run again", "Queue this job once more", () => call("job/retry", { job: job.id }).then((r) => { myJob = r.job || myJob; })));
    box.replaceChildren(...list);
    $("#st-details").replaceChildren();
  }

  async function details(id, box) {
    const facts = await (await fetch(url("metadata/" + id))).json();
    box.replaceChildren(el("pre", { text: facts.text || "" }), el("pre", { class: "st-json", text: JSON.stringify(facts.record, null, 1) }));
  }

  function opened(text) {
    submitted(text);
    const group = JSON.parse(text || "{}").open;
    const toggle = group && $("#" + group + " button");
    if (toggle && !toggle.classList.contains("open")) toggle.click();
    if (group) $("#" + group).scrollIntoView({ behavior: "smooth" });
  }

  function startFrom(id) {
    pending = id;
    $("#st-to-image").click();
  }

  function enlarge(id) {
    pending = id;
    $("#st-to-upscale").click();
  }

  function restore(id) {
    pending = id;
    $("#st-restore").click();
    window.scrollTo({ top: 0, behavior: "smooth" });
  }

  function queue() {
    const box = $("#st-queue");
    const jobs = state.jobs.filter((job) => job.state === "queued" || job.state === "running");
    const key = JSON.stringify(jobs.map((job) => [job.id, job.state, job.place, job.forever]));
    if (box.dataset.key === key) return;
    box.dataset.key = key;
    box.replaceChildren(...jobs.map((job) => el("li", {},
      el("span", { class: "st-place", text: job.state === "running" ? "now" : String(job.place) }),
      el("span", { class: "st-prompt", text: job.mine ? (job.prompt || "(no prompt)") + (job.number > 1 ? ` × ${job.number}` : "") + (job.forever ? " · forever" : "") : "another visitor" }),
      job.mine && job.state === "queued" && button("↑", "Earlier", () => call("job/move", { job: job.id, offset: -1 })),
      job.mine && job.state === "queued" && button("↓", "Later", () => call("job/move", { job: job.id, offset: 1 })),
      job.mine && button("✕", job.state === "running" ? "Interrupt" : "Take out of the queue", () => call("job/cancel", { job: job.id })))));
    $("#st-queue-empty").hidden = jobs.length > 0;
  }

  function device() {
    const chip = $("#st-device");
    const d = state.device;
    if (!chip || !d.state) return;
    const gib = (bytes) => (bytes / 2 ** 30).toFixed(1);
    const memory = d.memory_total ? ` · ${gib(d.memory_free)} of ${gib(d.memory_total)} GiB free` : "";
    const doing = { starting: "starting …", ready: "ready", drawing: "drawing", failed: "not usable", stopped: "stopped" }[d.state] || d.state;
    const trouble = d.problem ? ` · ${d.problem}` : "";
    chip.textContent = `${d.name || "Device"}${memory} · ${doing}` + (state.waiting ? ` · ${state.waiting} waiting` : "") + (window.studio.runs?.chip() || "") + trouble;
    chip.dataset.state = d.state;
    const again = $("#st-resume");
    again.hidden = d.state !== "stopped";
    again.onclick = () => call("job/resume", {});
  }

  async function follow() {
    for (;;) {
      try {
        const answer = await fetch(url(`state?since=${state.version}`));
        if (answer.status === 401) { location.reload(); return; }
        const next = await answer.json();
        if (next.version !== state.version || next.instance !== state.instance) {
          const before = new Set(state.jobs.flatMap((job) => job.images || []));
          state = next;
          document.body.classList.toggle("st-public", Boolean(state.public));
          try { window.studio.runs?.show(state); render(); window.studio.plots?.show(state.plots || []); } catch (error) { console.error(error); }
          if (state.jobs.some((job) => (job.images || []).some((id) => !before.has(id)))) gallery.stale = true;
        }
        $("#st-offline")?.setAttribute("hidden", "");
      } catch {
        $("#st-offline")?.removeAttribute("hidden");
        state.version = -1;
        await new Promise((done) => setTimeout(done, 2000));
      }
      if (document.hidden) await new Promise((done) => setTimeout(done, 1000));
    }
  }

  const own = () => state.jobs.find((job) => job.id === myJob && ["running", "queued"].includes(job.state)) || current();
  const interrupt = () => { const job = own(); if (job && ["running", "queued"].includes(job.state)) call("job/cancel", { job: job.id }); };
  const skip = () => { const job = own(); if (job?.state === "running") call("job/skip", { job: job.id }); };
  const lastSeed = async (seed) => {
    if (!shown) return seed;
    const facts = await (await fetch(url("metadata/" + shown))).json();
    return facts.record ? facts.record.seed : seed;
  };

  // ---- gallery --------------------------------------------------------------------------------------------------
  const gallery = {
    stale: true, next: null, turn: 0, picked: new Set(), trash: false,
    async open() { if (this.stale || !$("#sg-grid")?.children.length) await this.load(true); },
    async load(fresh) {
      const grid = $("#sg-grid");
      if (!grid) return;
      const wanted = new URLSearchParams({ words: $("#sg-words").value, model: $("#sg-model").value, day: $("#sg-day").value,
        starred: $("#sg-star").checked ? 1 : 0, trashed: this.trash ? 1 : 0 });
      if (!fresh && this.next) wanted.set("before", this.next);
      const turn = ++this.turn;
      const page = await (await fetch(url("gallery?" + wanted))).json();
      if (turn !== this.turn) return;  // a later question was asked meanwhile
      $("#sg-problem").textContent = "";
      if (fresh) { grid.replaceChildren(); this.picked.clear(); this.stale = false; }
      grid.append(...page.images.map((image) => this.card(image)));
      this.next = page.next;
      $("#sg-more").hidden = !page.next;
      $("#sg-none").hidden = grid.children.length > 0;
      if (page.usage) $("#sg-usage").textContent = page.usage;
      if (page.choices) {
        this.options($("#sg-model"), "All models", page.choices.models);
        this.options($("#sg-day"), "All days", page.choices.days);
      }
      this.bar();
    },
    options(select, all, values) {
      const chosen = select.value;
      select.replaceChildren(el("option", { value: "", text: all }), ...values.map((value) => el("option", { value, text: value })));
      select.value = chosen;
    },
    card(image) {
      const card = el("figure", { class: "sg-card", "data-id": image.id, title: image.prompt });
      const box = el("input", { type: "checkbox", "aria-label": "Select", onchange: () => { this.pick(image.id, box.checked); } });
      const star = button(image.starred ? "★" : "☆", "Star: a starred picture cannot be deleted", async () => {
        const done = await call("images", { action: image.starred ? "unstar" : "star", ids: [image.id] });
        if (done.ok) image.starred = !image.starred;
        star.textContent = image.starred ? "★" : "☆";
      });
      card.append(el("img", { src: url("thumbnail/" + image.id), alt: image.prompt, loading: "lazy", onclick: () => this.show(image) }), el("figcaption", {}, box, star));
      return card;
    },
    pick(id, on) { on ? this.picked.add(id) : this.picked.delete(id); this.bar(); },
    bar() {
      const number = this.picked.size;
      $("#sg-picked").textContent = number ? `${number} selected` : "";
      for (const id of ["#sg-zip", "#sg-delete"]) $(id).disabled = !number;
      $("#sg-delete").textContent = this.trash ? "Put back" : "Delete";
      $("#sg-empty").hidden = !this.trash;
      $("#sg-trash").textContent = this.trash ? "Back to the pictures" : "Trash";
    },
    show(image) {
      const box = $("#sg-detail");
      const close = () => box.close();
      const text = el("div", { class: "sg-text" });
      details(image.id, text);
      box.replaceChildren(el("img", { src: url("image/" + image.id), alt: image.prompt }),
        el("div", { class: "st-row" },
          el("a", { class: "st-button", text: "Download", href: url("image/" + image.id), download: image.id + ".png" }),
          button("Send to Generate", "Put all settings of this picture into the form", () => { close(); restore(image.id); }),
          button("Send to img2img", "Start the next picture from this one", () => { close(); startFrom(image.id); }),
          button("Send to Upscale", "Make this picture larger", () => { close(); enlarge(image.id); }),
          button("Close", "Close", close)), text);
      box.showModal();
    },
    async remove() {
      const ids = [...this.picked];
      const done = await call("images", { action: this.trash ? "restore" : "trash", ids });
      await this.load(true);
      if (done.number !== undefined && done.number < ids.length) $("#sg-usage").textContent += ` · ${ids.length - done.number} starred and kept`;
    },
    async emptyTrash() {
      if (!confirm("Delete everything in the trash for good?")) return;
      await call("images", { action: "empty", ids: [] });
      await this.load(true);
    },
    async zip() {
      const answer = await fetch(url("zip"), { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ids: [...this.picked] }) });
      if (!answer.ok) { $("#sg-usage").textContent = (await answer.json().catch(() => ({}))).error || "The zip could not be made."; return; }
      const link = el("a", { href: URL.createObjectURL(await answer.blob()), download: "pictures.zip" });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    },
    toggleTrash() { this.trash = !this.trash; this.load(true); },
  };

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); $("#st-generate")?.click(); }
    if (event.key === "Enter" && event.altKey) { event.preventDefault(); skip(); }
    if (event.key === "Escape" && !$("dialog[open]") && document.body.classList.contains("st-drawing")) interrupt();
  }, true);
  document.addEventListener("click", (event) => {
    const action = event.target.closest?.("[data-gallery]")?.dataset.gallery;
    if (action) gallery[action]?.(action === "load" ? event.target.dataset.fresh === "1" : undefined);
  });
  let typing;
  document.addEventListener("input", (event) => {
    if (!event.target.matches?.("#sg-words, #sg-model, #sg-day, #sg-star")) return;
    clearTimeout(typing);
    typing = setTimeout(() => gallery.load(true), event.target.id === "sg-words" ? 250 : 0);
  });
  const wait = setInterval(() => { if ($("#st-viewer")) { clearInterval(wait); follow(); } }, 50);

  return { el, button, call, url, store, submitted, opened, shown: () => shown, saveForm, restoreForm, fit, interrupt, skip, lastSeed, gallery, pending: () => pending };
})();
