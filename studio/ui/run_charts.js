// Curves of a training run as small SVG pictures: smoothed lines with the raw ones behind, values under the pointer.
window.studio.charts = (() => {
  const { el } = window.studio;
  const SPACE = "http://www.w3.org/2000/svg";
  const HEIGHT = 190, LEFT = 56, RIGHT = 12, TOP = 10, BOTTOM = 24;

  const svg = (tag, attributes = {}, ...children) => {
    const node = document.createElementNS(SPACE, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };

  // Exponential moving average without the pull towards its first value; the farther apart two steps, the less the old ones count.
  function smoothed(points, weight) {
    let sum = 0, total = 0;
    return points.map(([step, value]) => {
      sum = sum * weight + value;
      total = total * weight + 1;
      return [step, sum / total];
    });
  }

  const short = (value) => {
    const size = Math.abs(value);
    return size !== 0 && (size < 0.001 || size >= 10000) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  };

  function ticks(low, high, number) {
    const rough = (high - low) / number || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= rough);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(at);
    return found;
  }

  const nearest = (points, step) => points.reduce((best, point) => Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best, points[0]);

  // series: [{name, points: [[step, value]], colour, smooth: whether the slider counts, dots}], marks: steps with a checkpoint.
  function draw(box, { title, series, weight = 0, marks = [], best = null, low = null, high = null, steps = 0 }) {
    const lines = series.filter((one) => one.points?.length).map((one) => ({ ...one, shown: one.smooth ? smoothed(one.points, weight) : one.points }));
    box.hidden = !lines.length;
    if (!lines.length) return;
    const width = Math.max(260, box.clientWidth || 600);
    const values = lines.flatMap((one) => [...one.shown, ...(one.smooth ? trimmed(one.points) : [])].map((point) => point[1]));
    const all = lines.flatMap((one) => one.points.map((point) => point[0]));
    let [bottom, top] = [low ?? Math.min(...values), high ?? Math.max(...values)];
    if (bottom === top) [bottom, top] = [bottom - (Math.abs(bottom) || 1) / 2, top + (Math.abs(top) || 1) / 2];
    const first = Math.min(...all), last = Math.max(steps, ...all, first + 1);
    const x = (step) => LEFT + (step - first) / (last - first) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (top - Math.min(top, Math.max(bottom, value))) / (top - bottom) * (HEIGHT - TOP - BOTTOM);
    const path = (points) => points.map(([step, value], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    const root = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": title });
    for (const at of ticks(bottom, top, 4)) {
      const label = svg("text", { x: LEFT - 6, y: y(at) + 4, "text-anchor": "end" });
      label.textContent = short(at);
      root.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(at), y2: y(at), class: "sr-rule" }), label);
    }
    for (const at of ticks(first, last, Math.max(3, Math.floor(width / 110))).filter(Number.isInteger)) {
      const label = svg("text", { x: x(at), y: HEIGHT - 6, "text-anchor": "middle" });
      label.textContent = at;
      root.append(label);
    }
    for (const step of marks) root.append(svg("line", { x1: x(step), x2: x(step), y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 5, class: "sr-mark" }));
    if (best !== null && best >= first && best <= last) root.append(svg("line", { x1: x(best), x2: x(best), y1: TOP, y2: HEIGHT - BOTTOM, class: "sr-best" }));
    for (const one of lines) {
      if (one.smooth && weight > 0) root.append(svg("path", { d: path(one.points), stroke: one.colour, class: "sr-line sr-raw" }));
      root.append(svg("path", { d: path(one.shown), stroke: one.colour, class: "sr-line" }));
      if (one.dots || one.shown.length === 1) for (const [step, value] of one.shown) root.append(svg("circle", { cx: x(step), cy: y(value), r: 3, fill: one.colour }));
    }
    const cursor = svg("line", { x1: 0, x2: 0, y1: TOP, y2: HEIGHT - BOTTOM, class: "sr-cursor", visibility: "hidden" });
    root.append(cursor);
    const legend = el("div", { class: "sr-legend" });
    const tell = (step) => legend.replaceChildren(el("b", { text: title + (step === null ? "" : ` · step ${step}`) }), ...lines.map((one) => {
      const [, value] = step === null ? one.shown[one.shown.length - 1] : nearest(one.shown, step);
      return el("span", {}, el("i", { style: `background:${one.colour}` }), `${one.name} ${short(value)}`);
    }));
    tell(null);
    const move = (event) => {
      const frame = root.getBoundingClientRect();
      const at = first + ((event.clientX - frame.left) * width / frame.width - LEFT) / (width - LEFT - RIGHT) * (last - first);
      const step = nearest(lines[0].shown, at)[0];
      cursor.setAttribute("x1", x(step));
      cursor.setAttribute("x2", x(step));
      cursor.setAttribute("visibility", "visible");
      tell(step);
    };
    root.addEventListener("pointermove", move);
    root.addEventListener("pointerdown", move);
    root.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); tell(null); });
    box.replaceChildren(legend, root);
  }

  // Without the highest twentieth of a noisy curve, which would flatten the rest.
  function trimmed(points) {
    if (points.length < 20) return points;
    const limit = points.map((point) => point[1]).sort((a, b) => a - b)[Math.floor(points.length * 0.98)];
    return points.filter((point) => point[1] <= limit);
  }

  return { draw, smoothed, short };
})();
