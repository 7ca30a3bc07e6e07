// The prompts: a token counter while typing, what the model really gets one click away, and names that a click inserts.
window.studio.prompts = (() => {
  const { el, url } = window.studio;
  const $ = (selector, root = document) => root.querySelector(selector);
  const FIELDS = ["prompt", "negative_prompt"];
  const TITLES = { prompt: "Prompt", negative_prompt: "Negative prompt" };
  const FORM = ["styles", "guidance_scale", "true_cfg_scale", "num_inference_steps", "seed"];
  const UNKNOWN = { lora: "There is no LoRA", embedding: "There is no embedding", wildcard: "There is no wildcard", style: "There is no style" };
  let asked = "", report = null, busy = false, open = false, last = "prompt";

  const box = (name) => $(`#field-${name} textarea`);

  function wanted() {
    let form = {};
    try { form = JSON.parse(localStorage.getItem("studio-form")) || {}; } catch { /* as usual */ }
    const values = { model: form.model || $("#st-report")?.dataset.model };
    for (const name of FORM) if (name in form) values[name] = form[name];
    for (const name of FIELDS) values[name] = box(name)?.value || "";
    return values;
  }

  async function look() {
    if (busy || document.hidden || !box("prompt") || !$("#st-report")) return;
    const key = JSON.stringify(wanted());
    if (key === asked && $(".st-count")) return;
    busy = true;
    try {
      const answer = await fetch(url("prompt-report"), { method: "POST", headers: { "Content-Type": "application/json" }, body: key });
      const value = await answer.json();
      report = answer.ok ? value : { problems: [value.error || ""], notes: [] };
      asked = key;
      draw();
    } catch { /* the server is away; the page says so elsewhere */ }
    busy = false;
  }

  function draw() {
    for (const name of FIELDS) {
      const field = $("#field-" + name);
      const text = report?.[name];
      let count = $(".st-count", field);
      if (!count) {
        count = el("button", { type: "button", class: "st-count", title: "Tokens of the longest moment; click to see what the model gets", onclick: toggle });
        field.append(count);
      }
      count.textContent = text?.limit ? `${text.tokens}/${text.limit}` : "–";
      count.classList.toggle("st-bad", Boolean(report?.problems?.length) && name === "prompt");
      count.setAttribute("aria-expanded", open);
    }
    const place = $("#st-report");
    place.hidden = !open;
    if (open && report) place.replaceChildren(...lines());
  }

  function toggle(event) {
    event.preventDefault();
    open = !open;
    draw();
  }

  function lines() {
    const told = [];
    const line = (kind, text) => told.push(el("div", { class: kind, text }));
    for (const why of report.problems || []) line("st-problem", why);
    for (const [kind, names] of Object.entries(report.unknown || {})) line("st-problem", `${UNKNOWN[kind]}: ${names.join(", ")}`);
    for (const note of report.notes || []) line("st-quiet", note);
    if (report.unknown_words?.length) line("st-quiet", `Words that this model does not know: ${report.unknown_words.join(", ")}`);
    for (const name of FIELDS) if (report[name]?.text) told.push(...about(name, report[name]));
    if (report.loras?.length) line("st-quiet", `LoRA: ${report.loras.join(", ")}`);
    if (report.embeddings?.length) line("st-quiet", `Embeddings: ${report.embeddings.join(", ")}`);
    return told.length ? told : [el("div", { class: "st-quiet", text: "Write a prompt to see what the model gets of it." })];
  }

  function about(name, text) {
    const told = [el("div", { class: "st-panel-title", text: TITLES[name] })];
    if (text.moments.length > 1) told.push(el("div", { class: "st-quiet", text: text.moments.map(([start, said]) => `${Math.round(100 * start)} %: ${said}`).join(" → ") }));
    const same = new Set();
    for (const encoder of text.encoders) {
      const key = JSON.stringify([encoder.chunks, encoder.cut, encoder.problem]);
      if (same.has(key)) continue;  // the two encoders of SDXL mostly get the same
      same.add(key);
      if (encoder.problem) { told.push(el("div", { class: "st-quiet", text: encoder.problem })); continue; }
      encoder.chunks.forEach((chunk, place) => told.push(el("div", { class: "st-tokens" },
        el("span", { class: "st-quiet", text: `${encoder.kind === "t5" ? "T5" : "CLIP"} ${encoder.chunks.length > 1 ? place + 1 + " " : ""}${chunk.length}` }), ...chunk.map(token))));
      if (encoder.cut) told.push(el("div", { class: "st-problem", text: `Not read: ${encoder.cut}` }));
    }
    return told;
  }

  function token(one) {
    const weighed = one.weight !== 1;
    return el("span", { class: "st-token" + (weighed ? " st-weighed" : "") + (one.embedding ? " st-embedding" : ""), title: weighed ? `counts ${Number(one.weight.toFixed(3))} times` : null,
      text: one.text + (weighed ? ` ×${Number(one.weight.toFixed(2))}` : "") });
  }

  function insert(text) {
    const area = box(last);
    const [from, to] = [area.selectionStart, area.selectionEnd];
    const before = area.value.slice(0, from), after = area.value.slice(to);
    const lead = before && !/[\s(\[{|]$/.test(before) ? " " : "", trail = after && !/^[\s,.)\]}|:]/.test(after) ? " " : "";
    area.value = before + lead + text + trail + after;
    area.dispatchEvent(new Event("input", { bubbles: true }));
    area.setSelectionRange((before + lead + text).length, (before + lead + text).length);
    area.focus();
  }

  document.addEventListener("focusin", (event) => { for (const name of FIELDS) if (event.target === box(name)) last = name; });
  document.addEventListener("click", (event) => {
    const text = event.target.closest?.("[data-insert]")?.dataset.insert;
    if (text) insert(text);
  });
  setInterval(look, 350);

  return { look };
})();
