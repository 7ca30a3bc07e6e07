// The Train tab: what is typed is kept in this browser and followed by the prompts and the command line; mistakes stand beside their field.
window.studio.train = (() => {
  const { el } = window.studio;
  const $ = (selector) => document.querySelector(selector);
  const KEY = "studio-train";
  const WAIT = 500;  // ms after the last key
  let timer = 0;
  let restored = false;

  // Before the form of an earlier visit is shown, what changes is only what the page begins with.
  function changed(names, values) {
    if (!restored) return;
    localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(names.map((name, i) => [name, values[i]]))));
    clearTimeout(timer);
    timer = setTimeout(() => $("#train-refresh")?.click(), WAIT);
  }

  function saved() {
    if (restored) return "";
    restored = true;
    return localStorage.getItem(KEY) || "";
  }

  // Another tab fills the form: what this browser kept of it counts no more.
  function claimed(values) {
    restored = true;
    return values;
  }

  function say(message, bad) {
    const box = $("#train-message");
    if (!box) return;
    box.textContent = message || "";
    box.hidden = !message;
    box.className = bad ? "st-bad" : "";
  }

  // Gradio draws an accordion's controls when it is first opened.
  async function opened(home, field) {
    for (const id of home) {
      const toggle = $(`#${id} > button`);
      if (toggle && !toggle.classList.contains("open")) toggle.click();
      for (let i = 0; i < 40 && !$(`#${id} [id^="train-"]`); i++) await new Promise((done) => setTimeout(done, 50));
    }
    for (let i = 0; i < 40 && !$("#train-" + field); i++) await new Promise((done) => setTimeout(done, 50));
    return $("#train-" + field);
  }

  async function told(text) {
    const result = JSON.parse(text || "{}");
    if (!Object.keys(result).length) return;
    document.querySelectorAll(".train-problem").forEach((node) => node.remove());
    if (result.error) {
      const node = result.field && (result.quiet ? $("#train-" + result.field) : await opened(result.home || [], result.field));
      const line = node && el("div", { class: "st-problem train-problem", role: "alert", text: result.error });
      if (node) node.append(line);
      if (node && !result.quiet) node.scrollIntoView({ block: "center", behavior: "smooth" });
      if (!result.quiet) say(result.error, true);
      return;
    }
    if (result.run || result.note) say(result.note, false);
    else if ($("#train-message")?.classList.contains("st-bad")) say("");
    if (result.run) chooseRun(result.run);
  }

  // The queue's tab may just be opening.
  async function chooseRun(id) {
    const find = () => $("#st-run-chosen textarea, #st-run-chosen input");
    for (let i = 0; i < 60 && !find() && $("[data-tab-id=runs]"); i++) await new Promise((done) => setTimeout(done, 50));
    const box = find();
    if (!box) return;
    box.value = id;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  }

  // What the chosen model cannot be taught: its cards are off and say why.
  function bar(text) {
    const { cards = [], problem = "" } = JSON.parse(text || "{}");
    document.querySelectorAll("#train-method label").forEach((card, i) => {
      card.classList.toggle("train-off", Boolean(cards[i]));
      card.title = cards[i] || "";
      const input = card.querySelector("input");
      if (input) input.disabled = Boolean(cards[i]) && !input.checked;
    });
    const line = $("#train-refused");
    if (line) { line.textContent = problem; line.hidden = !problem; }
    const start = $("#train-start");
    if (start) start.disabled = Boolean(problem);
  }

  return { changed, saved, claimed, told, bar };
})();
