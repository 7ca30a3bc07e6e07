// The Datasets tab: upload, grid, captions, crops, changes of all captions. Every change goes to a route at once; the disk holds the truth.
// Text from people is only ever set as textContent or as a value.
window.studio.datasets = (() => {
  const { el, button, url } = window.studio;
  const $ = (selector) => document.querySelector(selector);
  const PIECE = 8 * 2 ** 20;      // bytes in a request
  const TOLD = 50;                // sentences shown
  const rows = new Map();         // name of a picture -> what is known of it, with its card
  let name = "";                  // of the dataset shown
  let turn = 0;
  let own = false;                // whether a person chose the size of the buckets
  let usual = null;               // the size of the chosen model, once another was chosen
  let soon = 0;
  let undoable = null;            // what can be undone
  let uploading = null;           // {stop} while files are being sent

  const remember = (value) => { try { localStorage.setItem("studio-dataset", value || ""); } catch { /* private window */ } };
  const remembered = () => { try { return localStorage.getItem("studio-dataset") || ""; } catch { return ""; } };
  const place = (path, dataset = name) => url("datasets/" + encodeURIComponent(dataset) + path);
  const asked = () => `resolution=${$("#sd-resolution").value || 0}&step=${$("#sd-step").value || 0}`;
  const thumbnail = (row, large) => place("/thumbnail/" + row.name.split("/").map(encodeURIComponent).join("/")) + `?v=${row.stamp}` + (large ? "&large=1" : "");

  // ---- what is said ---------------------------------------------------------------------------------------------
  let sentences = [];
  function tell(lines, quiet = false) {
    sentences = sentences.concat(lines.map((text) => ({ text, quiet })));
    const box = $("#sd-told");
    if (!box) return;
    const shown = sentences.slice(0, TOLD);
    box.replaceChildren(...shown.map((one) => el("li", { class: one.quiet ? "st-quiet" : "st-bad", text: one.text })),
      sentences.length > TOLD && el("li", { class: "st-quiet", text: `… and ${sentences.length - TOLD} more` }) || "",
      sentences.length ? el("li", {}, button("Clear", "Hide these lines", () => { sentences = []; tell([]); })) : "");
    box.hidden = !sentences.length;
  }

  async function ask(path, body, dataset = name, more = {}) {
    try {
      const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), ...more };
      const answer = await fetch(place(path, dataset), options);
      const value = await answer.json().catch(() => ({}));
      return answer.ok ? value : { error: value.error || `The server did not answer as expected (${answer.status}).` };
    } catch {
      return { error: "There is no connection to Studio; try again." };
    }
  }

  async function act(path, body) {
    const answer = await ask(path, body);
    if (answer.error) tell([answer.error]);
    await load();
    return answer;
  }

  // ---- the grid -------------------------------------------------------------------------------------------------
  function show(chosen) {
    chosen = chosen || "";
    remember(chosen);
    if (chosen !== name) {
      flush();
      name = chosen;
      rows.clear();
      sentences = [];
      tell([]);
      $("#sd-grid")?.replaceChildren();
    }
    return load();
  }

  const loadSoon = () => { clearTimeout(soon); soon = setTimeout(load, 1200); };

  async function load() {
    clearTimeout(soon);
    if (!$("#sd")) return;
    window.studio.datasetTrash.first();
    fit();
    $("#sd-none").hidden = Boolean(name);
    $("#sd-body").hidden = !name;
    if ($("#sd-train")) $("#sd-train").hidden = !name;
    if (!name) return;
    const mine = ++turn;
    const dataset = name;
    const found = await ask("?" + asked());
    if (mine !== turn || dataset !== name) return;  // a later question was asked meanwhile
    if (found.error) { tell([found.error]); return; }
    $("#sd-size-problem").textContent = found.size_problem;
    draw(found);
  }

  function draw(found) {
    const names = new Set(found.pictures.map((one) => one.name));
    for (const [key, row] of rows) if (!names.has(key)) { row.card.remove(); rows.delete(key); }
    let before = null;
    for (const facts of found.pictures) {
      let row = rows.get(facts.name);
      facts.bucket ??= null;
      if (!row) { row = { dataset: name }; rows.set(facts.name, row); Object.assign(row, facts); make(row); }
      Object.assign(row, facts);
      fill(row);
      if (row.card.previousSibling !== before || row.card.parentNode !== $("#sd-grid")) {
        before ? before.after(row.card) : $("#sd-grid").prepend(row.card);
      }
      before = row.card;
    }
    bar(found);
    tags(found.tags);
    buckets(found.buckets);
    filter();
  }

  function make(row) {
    row.image = el("img", { alt: "", loading: "lazy" });
    row.shade = el("div", { class: "sd-shade" });
    row.frame = el("button", { type: "button", class: "sd-picture", title: "Crop by hand", onclick: () => crop(row) }, row.image, row.shade);
    row.title = el("div", { class: "sd-name" });
    row.line = el("div", { class: "st-quiet sd-line" });
    row.box = el("textarea", { rows: 3, placeholder: "Caption: what is to be seen", "aria-label": "Caption", oninput: () => typed(row), onblur: () => save(row) });
    row.mark = el("span", { class: "st-quiet sd-mark", role: "status" });
    row.leave = button("", "", () => act("/edit", { picture: row.name, left_out: !row.left_out }));
    row.card = el("figure", { class: "sd-card", "data-name": row.name }, row.frame,
      el("figcaption", {}, row.title, row.line, row.box,
        el("div", { class: "st-row" }, row.leave, button("Crop", "Choose the part that counts", () => crop(row)),
          button("Remove", "Move it to the trash", () => remove(row)), row.mark)));
  }

  function fill(row) {
    const source = row.problem && !row.size ? "" : thumbnail(row);
    if (row.source !== source) { row.source = source; source ? row.image.setAttribute("src", source) : row.image.removeAttribute("src"); }
    row.frame.style.aspectRatio = row.size ? `${row.size[0]} / ${row.size[1]}` : "1";
    row.frame.disabled = !row.size;
    row.shade.hidden = !row.crop;
    if (row.crop) inset(row.shade, row.crop);
    row.title.textContent = row.name;
    row.title.title = row.name;
    row.line.textContent = row.problem || facts(row);
    row.line.classList.toggle("st-bad", Boolean(row.problem));
    row.card.classList.toggle("sd-left-out", row.left_out);
    row.leave.textContent = row.left_out ? "Put back" : "Leave out";
    row.leave.title = row.left_out ? "Train with it again" : "Keep the file, but do not train with it";
    if (row.words && !row.caption) row.box.placeholder = row.words;
    if (row.unsaved === undefined && document.activeElement !== row.box) row.box.value = row.caption ?? "";
  }

  function facts(row) {
    const parts = [`${row.size[0]} x ${row.size[1]}`];
    if (row.crop) parts.push("cropped");
    if (row.mask) parts.push("mask");
    if (row.repeats > 1) parts.push(`shown ${row.repeats} times`);
    if (row.left_out) parts.push("left out");
    else if (row.bucket) parts.push("→ " + row.bucket.join(" x ") + (row.enlarged ? ", enlarged" : ""));
    return parts.join(" · ");
  }

  function inset(node, [left, top, right, bottom]) {
    const part = (value) => (100 * value).toFixed(3) + "%";
    Object.assign(node.style, { left: part(left), top: part(top), width: part(right - left), height: part(bottom - top) });
  }

  function bar(found) {
    const used = found.pictures.filter((one) => !one.left_out);
    const captions = used.filter((one) => one.caption).length;
    const out = found.pictures.length - used.length;
    $("#sd-count").textContent = found.pictures.length
      ? `${used.length} pictures, ${captions} with a caption` + (out ? ` · ${out} left out` : "") : "No pictures yet: drop some above.";
    $("#sd-restore").hidden = !found.removed;
    $("#sd-restore").textContent = found.removed > 1 ? `Put back what was removed (${found.removed})` : "Put back what was removed";
    $("#sd-empty").hidden = !found.removed;
    $("#sd-undo").disabled = !found.undo;
    $("#sd-undo").title = found.undo ? `Undo “${found.undo}”` : "There is nothing to undo";
    if (undoable !== null && undoable !== found.undo) $("#sd-doctor-again")?.click();  // the doctor's button says it too
    undoable = found.undo;
    for (const id of ["#sd-tools", "#sd-filter"]) $(id).hidden = !found.pictures.length;
  }

  function filter() {
    const wanted = $("#sd-filter").value;
    const fits = { all: () => true, bare: (row) => !row.caption && !row.left_out, out: (row) => row.left_out, bad: (row) => row.problem, small: (row) => row.enlarged && !row.left_out };
    for (const row of rows.values()) row.card.hidden = !fits[wanted](row);
  }

  async function remove(row) {
    await act("/remove", { picture: row.name });
  }

  // ---- captions -------------------------------------------------------------------------------------------------
  function typed(row) {
    row.unsaved = row.box.value;
    row.mark.textContent = "…";
    clearTimeout(row.timer);
    row.timer = setTimeout(() => save(row), 300);
  }

  async function save(row) {
    clearTimeout(row.timer);
    if (row.unsaved === undefined || row.sending) return;
    row.sending = true;
    let answer = {};
    while (row.unsaved !== undefined) {  // what was typed while the last one was on its way
      const text = row.unsaved;
      answer = await ask("/caption", { picture: row.name, text }, row.dataset);
      if (answer.error) break;
      row.caption = answer.caption || null;
      if (row.unsaved === text) row.unsaved = undefined;
    }
    row.sending = false;
    row.mark.textContent = answer.error ? "" : "saved";
    row.line.textContent = answer.error || row.problem || facts(row);
    row.line.classList.toggle("st-bad", Boolean(answer.error || row.problem));
    if (answer.error) row.timer = setTimeout(() => save(row), 3000);  // it stays in the box and is tried again
    else loadSoon();
  }

  function flush() {
    for (const row of rows.values()) {
      if (row.unsaved === undefined) continue;
      ask("/caption", { picture: row.name, text: row.unsaved }, row.dataset, { keepalive: true });
    }
  }
  addEventListener("pagehide", flush);
  document.addEventListener("visibilitychange", () => { if (document.hidden) flush(); });

  async function change(edit, texts) {
    flush();
    const answer = await act("/captions", { edit, texts });
    if (!answer.error) tell([`${answer.number} captions changed.`], true);
  }

  function tags(list) {
    $("#sd-tags").replaceChildren(...list.map(([tag, number]) =>
      button(`${tag} × ${number}`, "Remove this from every caption", () => { if (confirm(`Remove “${tag}” from ${number} captions?`)) change("remove_tag", [tag]); }, { class: "st-button sd-tag" })));
    $("#sd-no-tags").hidden = list.length > 0;
  }

  function buckets(list) {
    const row = (cells, tag) => el("tr", {}, ...cells.map((text) => el(tag, { text })));
    $("#sd-bucket-rows").replaceChildren(row(["Size", "Pictures", "Enlarged", "Cut off"], "th"), ...list.map((one) =>
      row([one.size.join(" x "), String(one.pictures), String(one.enlarged || ""), Math.floor(100 * one.cut) + " %"], "td")));
  }

  // ---- crop -----------------------------------------------------------------------------------------------------
  function crop(row) {
    const box = $("#sd-crop");
    const [width, height] = row.size;
    let now = row.crop || [0, 0, 1, 1];
    const stage = el("div", { class: "sd-stage" });
    const rect = el("div", { class: "sd-shade" });
    stage.append(el("img", { src: thumbnail(row, true), alt: row.name, draggable: "false" }), rect);
    const line = el("div", { class: "st-quiet", role: "status" });
    const sides = [["Left", width], ["Top", height], ["Right", width], ["Bottom", height]];
    const inputs = sides.map(([label, most], i) => el("input", { type: "number", min: 0, max: most, step: 1, "aria-label": label + ", pixels", oninput: () => {
      const next = [...now];
      next[i] = Math.min(1, Math.max(0, Number(inputs[i].value) / most));
      if (next[0] < next[2] && next[1] < next[3]) { now = next; drawn(false); }
    } }));
    let question = 0;
    async function measured() {
      const mine = ++question;
      const size = [Math.round(now[2] * width) - Math.round(now[0] * width), Math.round(now[3] * height) - Math.round(now[1] * height)];
      const found = await ask(`/bucket?width=${Math.max(1, size[0])}&height=${Math.max(1, size[1])}&${asked()}`);
      if (mine !== question) return;
      line.textContent = found.error || `${size.join(" x ")} pixels → bucket ${found.bucket.join(" x ")}` + (found.enlarged ? ", enlarged" : "") + (found.cut ? `, ${found.cut} % cut off` : "");
    }
    function drawn(numbers) {
      inset(rect, now);
      if (numbers) inputs.forEach((input, i) => { input.value = Math.round(now[i] * sides[i][1]); });
      clearTimeout(box.timer);
      box.timer = setTimeout(measured, 120);
    }
    let start = null;
    const spot = (event) => {
      const area = stage.getBoundingClientRect();
      const clamp = (value) => Math.min(1, Math.max(0, value));
      return [clamp((event.clientX - area.left) / area.width), clamp((event.clientY - area.top) / area.height)];
    };
    stage.addEventListener("pointerdown", (event) => { event.preventDefault(); start = spot(event); stage.setPointerCapture(event.pointerId); });
    stage.addEventListener("pointermove", (event) => {
      if (!start) return;
      const [x, y] = spot(event);
      const next = [Math.min(start[0], x), Math.min(start[1], y), Math.max(start[0], x), Math.max(start[1], y)];
      if ((next[2] - next[0]) * width < 8 || (next[3] - next[1]) * height < 8) return;
      now = next;
      drawn(true);
    });
    for (const kind of ["pointerup", "pointercancel"]) stage.addEventListener(kind, () => { start = null; });
    async function done(value) {
      const answer = await ask("/edit", { picture: row.name, crop: value }, row.dataset);
      if (answer.error) { line.textContent = answer.error; return; }
      box.close();
      load();
    }
    box.replaceChildren(el("div", { class: "sd-name", text: row.name }),
      el("div", { class: "st-quiet", text: "Drag over the part that counts, or write its edges in pixels. The file stays as it is." }),
      el("div", { class: "sd-middle" }, stage), line,
      el("div", { class: "sd-edges" }, ...inputs.map((input, i) => el("label", {}, sides[i][0], input))),
      el("div", { class: "st-row" }, button("Save crop", "Train with this part only", () => done(now)),
        button("Whole picture", "Train with all of it", () => done(null)), button("Close", "Change nothing", () => box.close())));
    drawn(true);
    box.showModal();
  }

  // ---- upload ---------------------------------------------------------------------------------------------------
  async function walk(entry, into) {
    if (entry.isFile) {
      into.push({ path: entry.fullPath.replace(/^\//, ""), file: await new Promise((done, failed) => entry.file(done, failed)) });
    } else if (entry.isDirectory) {
      const reader = entry.createReader();
      for (;;) {
        const part = await new Promise((done, failed) => reader.readEntries(done, failed));
        if (!part.length) break;
        for (const one of part) await walk(one, into);
      }
    }
  }

  async function dropped(transfer) {
    const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const files = [];
    if (!entries.length) files.push(...[...transfer.files].map((file) => ({ path: file.name, file })));
    for (const entry of entries) {
      try { await walk(entry, files); } catch { tell([`${entry.name} cannot be read by the browser.`]); }
    }
    await send(files);
  }

  // A picture goes with what belongs to it; a folder that tells of its pictures in one file goes as a whole.
  function groups(files) {
    const made = new Map();
    const whole = files.some(({ path }) => /(^|\/)(metadata\.jsonl$|conditioning\/)/.test(path));
    for (const one of files) {
      const stem = one.path.replace(/\.[^./]*$/, "").replace(/-masklabel$|\.edit$/, "");
      const key = /\.zip$/i.test(one.path) ? "zip " + one.path : whole ? "whole" : "stem " + stem;
      made.set(key, [...(made.get(key) || []), one]);
    }
    return [...made.values()];
  }

  const random = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

  async function sendGroup(group, dataset) {
    const upload = random();
    for (let i = 0; i < group.length; i++) {
      const { file, path } = group[i];
      let at = 0;
      do {
        const piece = file.slice(at, at + PIECE);
        try {
          const answer = await fetch(place(`/piece?upload=${upload}&file=${i}&at=${at}`, dataset), { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: piece });
          const value = await answer.json().catch(() => ({}));
          if (!answer.ok) return { refused: [`${path}: ${value.error || "the server did not take it"}`] };
        } catch {
          return { refused: [`${path} could not be sent: there is no connection to Studio, or the file has changed; bring it again`] };
        }
        at += piece.size;
      } while (at < file.size && !uploading?.stop);
    }
    const answer = await ask("/add", { upload, names: group.map((one) => one.path) }, dataset);
    return answer.error ? { refused: [`${group[0].path}: ${answer.error}`] } : answer;
  }

  async function send(files) {
    if (!files.length || !name) return;
    if (uploading) { tell(["Files are still being sent; wait until that is done."]); return; }
    const dataset = name;
    const list = groups(files);
    uploading = { stop: false };
    let added = 0;
    const watch = setInterval(() => { if (dataset === name) load(); }, 3000);
    $("#sd-progress").hidden = false;
    for (let i = 0; i < list.length && !uploading.stop; i++) {
      $("#sd-progress-line").textContent = list.length > 1 ? `${i + 1} of ${list.length}: ${list[i][0].path}` : `${list[i][0].path} …`;
      $("#sd-progress-bar").style.width = Math.round(100 * (i + 0.5) / list.length) + "%";
      const answer = await sendGroup(list[i], dataset);
      added += answer.pictures?.length || 0;
      if (dataset === name) tell(answer.refused || []), tell(answer.notes || [], true);
    }
    const stopped = uploading.stop;
    uploading = null;
    clearInterval(watch);
    $("#sd-progress").hidden = true;
    if (dataset === name) tell([`${added} ${added === 1 ? "picture" : "pictures"} added${stopped ? "; the rest was stopped" : ""}.`], true);
    await load();
  }
  addEventListener("beforeunload", (event) => { if (uploading) event.preventDefault(); });

  // ---- events ---------------------------------------------------------------------------------------------------
  const field = (id) => $(id).value;
  const actions = {
    prefix: () => change("prefix", [field("#sd-text")]),
    suffix: () => change("suffix", [field("#sd-text")]),
    trigger: () => change("trigger", [field("#sd-text")]),
    replace: () => change("replace", [field("#sd-search"), field("#sd-replacement")]),
    undo: async () => {
      const answer = await act("/undo", {});
      if (answer.error) return;
      tell([`“${answer.title}” is undone: ${answer.number} as before.`], true);
      if (answer.changed_since.length) tell([`Not touched, because they were changed since: ${answer.changed_since.join(", ")}.`], true);
    },
    empty: async () => {
      if (!confirm("Delete the removed pictures of this dataset for good? They cannot be put back then.")) return;
      const answer = await act("/empty", {});
      if (!answer.error) tell([`${answer.number} removed ${answer.number === 1 ? "picture is" : "pictures are"} deleted for good.`], true);
    },
    restore: () => act("/restore", { all: true }),
    stop: () => { if (uploading) uploading.stop = true; },
    discard: async () => {
      if (!confirm(`Move the dataset “${name}” with all its pictures to the trash folder?`)) return;
      const answer = await ask("/discard", {});
      if (answer.error) { tell([answer.error]); return; }
      rows.clear();
      name = "";
      remember("");
      $("#sd-grid").replaceChildren();
      $("#sd-refresh").click();
      window.studio.datasetTrash.load();
    },
  };
  document.addEventListener("click", (event) => { actions[event.target.closest?.("[data-dataset]")?.dataset.dataset]?.(); });
  document.addEventListener("change", (event) => {
    const box = event.target;
    if (box.id === "sd-files" || box.id === "sd-folder") {
      send([...box.files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));
      box.value = "";
    }
    if (box.id === "sd-filter") filter();
    if (box.id === "sd-resolution" || box.id === "sd-step") { own = true; load(); }
  });
  const over = (event) => event.target.closest?.("#sd-body");
  document.addEventListener("dragover", (event) => { if (over(event)) { event.preventDefault(); $("#sd-drop").classList.add("st-on"); } });
  document.addEventListener("dragleave", (event) => { if (over(event)) $("#sd-drop").classList.remove("st-on"); });
  document.addEventListener("drop", (event) => {
    if (!over(event)) return;
    event.preventDefault();
    $("#sd-drop").classList.remove("st-on");
    dropped(event.dataTransfer);
  });

  // Another model was chosen: its buckets are shown, unless a person chose a size. The frame may not be there yet.
  function sized(sizes) {
    usual = sizes;
    if ($("#sd")?.offsetParent) load();
  }

  function fit() {
    if (own || !usual) return;
    $("#sd-resolution").value = usual.resolution;
    $("#sd-step").value = usual.step;
  }

  return { show, load, remembered, remember, sized };
})();
