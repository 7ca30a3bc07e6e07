// Datasets that were removed: put back, or deleted for good.
window.studio.datasetTrash = (() => {
  const { el, button, call, url } = window.studio;
  const $ = (selector) => document.querySelector(selector);
  const size = (bytes) => bytes >= 2 ** 30 ? (bytes / 2 ** 30).toFixed(2) + " GB" : (bytes / 2 ** 20).toFixed(1) + " MB";

  async function load() {
    const answer = await fetch(url("discarded"));
    if (answer.ok) draw((await answer.json()).discarded);
  }

  // Once a page: whether there is anything to show.
  function first() {
    const box = $("#sd-discarded");
    if (!box || box.dataset.asked) return;
    box.dataset.asked = "1";
    load();
  }

  async function act(row, action) {
    const answer = await call(`discarded/${encodeURIComponent(row.id)}/${action}`, {});
    if (answer.ok && action === "recall") {
      window.studio.datasets.remember(answer.name);
      $("#sd-refresh").click();
    }
    await load();
    if (!answer.ok) $("#sd-discarded-rows").prepend(el("div", { class: "st-bad", role: "alert", text: answer.error }));
  }

  function draw(rows) {
    const box = $("#sd-discarded"), list = $("#sd-discarded-rows");
    if (!box) return;
    if (rows.length) box.hidden = false;
    list.replaceChildren(rows.length ? el("table", {}, el("tbody", {}, ...rows.map((row) => el("tr", { "data-name": row.name },
      el("td", {}, el("b", { text: row.name })), el("td", { class: "st-quiet", text: `${row.day}, ${size(row.bytes)}` }),
      el("td", {}, el("div", { class: "st-row" }, button("Put back", "It is a dataset again", () => act(row, "recall")),
        button("Delete for good", "It cannot be put back then", () => { if (confirm(`Delete the dataset “${row.name}” of ${row.day} for good?`)) act(row, "erase"); })))))))
      : el("div", { class: "st-quiet", text: list.dataset.none }));
  }

  return { first, load };
})();
