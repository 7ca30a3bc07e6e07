// The Lab in two dimensions: films of particles, and points drawn by hand. Coordinates are those of a square, y upwards.
(() => {
  const films = new WeakMap(), playing = new WeakMap();
  const colour = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();

  function opened(canvas, ratio) {
    const wide = canvas.clientWidth || 240, scale = window.devicePixelRatio || 1;
    canvas.width = wide * scale;
    canvas.height = wide * ratio * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    return [pen, wide, wide * ratio];
  }

  function square(canvas, film, cloud) {
    const [pen, side] = opened(canvas, 1);
    const at = ([x, y]) => [(x / film.reach + 1) * side / 2, (1 - y / film.reach) * side / 2];
    const cell = side / film.cells;
    pen.fillStyle = colour("--color-accent");
    cloud.density.forEach((value, place) => {
      if (!value) return;
      pen.globalAlpha = value / 99 * .55;
      pen.fillRect(place % film.cells * cell, side - (Math.floor(place / film.cells) + 1) * cell, cell + .5, cell + .5);
    });
    pen.globalAlpha = .55;
    pen.strokeStyle = colour("--body-text-color-subdued");
    const gap = side / film.field;
    pen.beginPath();
    cloud.arrows.forEach(([dx, dy], place) => {
      const x = (place % film.field + .5) * gap, y = side - (Math.floor(place / film.field) + .5) * gap;
      const long = Math.hypot(dx, dy) || 1, reach = gap * .42 * Math.min(1, long), turn = Math.atan2(-dy, dx);
      const [ex, ey] = [x + reach * Math.cos(turn), y + reach * Math.sin(turn)];
      pen.moveTo(x, y);
      pen.lineTo(ex, ey);
      for (const side of [2.6, -2.6]) {
        pen.moveTo(ex, ey);
        pen.lineTo(ex + 3.5 * Math.cos(turn + side), ey + 3.5 * Math.sin(turn + side));
      }
    });
    pen.stroke();
    pen.globalAlpha = .9;
    pen.fillStyle = colour("--body-text-color");
    for (const point of cloud.points) {
      const [x, y] = at(point);
      pen.fillRect(x - 1, y - 1, 2, 2);
    }
  }

  function along(canvas, film, now) {
    const [pen, wide, high] = opened(canvas, .5), last = film.clouds.length - 1;
    const column = wide / film.clouds.length, cell = high / film.cells;
    pen.fillStyle = colour("--color-accent");
    film.clouds.forEach((cloud, moment) => cloud.along.forEach((value, place) => {
      pen.globalAlpha = value / 99 * .55;
      pen.fillRect(moment * column, high - (place + 1) * cell, column + .5, cell + .5);
    }));
    pen.strokeStyle = colour("--body-text-color");
    pen.globalAlpha = .5;
    pen.lineWidth = .8;
    for (let particle = 0; particle < Math.min(40, film.clouds[0].points.length); particle++) {
      pen.beginPath();
      for (let moment = 0; moment <= now; moment++) {
        pen.lineTo((moment + .5) * column, (1 - film.clouds[moment].points[particle][0] / film.reach) * high / 2);
      }
      pen.stroke();
    }
    if (now < last) {
      pen.globalAlpha = 1;
      pen.fillRect((now + .5) * column, 0, 1.5, high);
    }
  }

  function show(box) {
    const told = films.get(box), now = Number(box.querySelector("input").value);
    box.querySelectorAll("figure").forEach((figure, place) => {
      square(figure.querySelector(".lab-square"), told[place], told[place].clouds[now]);
      along(figure.querySelector(".lab-along"), told[place], now);
    });
    box.querySelector(".lab-caption").textContent = told[0].clouds[now].caption;
  }

  function play(box) {
    const slider = box.querySelector("input"), last = Number(slider.max);
    clearInterval(playing.get(box));
    slider.value = 0;
    show(box);
    playing.set(box, setInterval(() => {
      slider.value = Number(slider.value) + 1;
      if (box.isConnected) show(box);
      if (Number(slider.value) >= last || !box.isConnected) clearInterval(playing.get(box));
    }, 90));
  }

  function prepareFilm(box) {
    films.set(box, JSON.parse(box.dataset.films));
    box.dataset.ready = "1";
    delete box.dataset.films;
    box.querySelector("input").addEventListener("input", () => { clearInterval(playing.get(box)); show(box); });
    box.querySelector("button").addEventListener("click", () => play(box));
    new ResizeObserver(() => show(box)).observe(box);
  }

  function prepareDrawing(box) {
    const canvas = box.querySelector("canvas"), told = box.querySelector("span"), words = told.textContent;
    const reach = Number(box.dataset.reach), most = Number(box.dataset.most);
    let points = [], down = false;
    box.dataset.ready = "1";
    function redraw() {
      const [pen, side] = opened(canvas, 1);
      pen.strokeStyle = colour("--border-color-primary");
      pen.strokeRect(0, side / 2, side, 0);
      pen.strokeRect(side / 2, 0, 0, side);
      pen.fillStyle = colour("--color-accent");
      for (const [x, y] of points) pen.fillRect((x / reach + 1) * side / 2 - 2, (1 - y / reach) * side / 2 - 2, 4, 4);
      told.textContent = words.replace("0", points.length);
    }
    function keep() {
      const field = document.querySelector(`#${box.dataset.into} textarea, #${box.dataset.into} input`);
      field.value = JSON.stringify(points);
      field.dispatchEvent(new Event("input", { bubbles: true }));
    }
    function add(event) {
      const area = canvas.getBoundingClientRect();
      const x = ((event.clientX - area.left) / area.width * 2 - 1) * reach;
      const y = (1 - (event.clientY - area.top) / area.height * 2) * reach;
      if (Math.max(Math.abs(x), Math.abs(y)) > reach || points.length >= most) return;
      points.push([Math.round(x * 100) / 100, Math.round(y * 100) / 100]);
      redraw();
    }
    canvas.addEventListener("pointerdown", (event) => { down = true; canvas.setPointerCapture(event.pointerId); add(event); });
    canvas.addEventListener("pointermove", (event) => { if (down) (event.getCoalescedEvents?.() ?? [event]).forEach(add); });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { if (down) keep(); down = false; });
    box.querySelector("button").addEventListener("click", () => { points = []; redraw(); keep(); });
    new ResizeObserver(redraw).observe(canvas);
  }

  let due = 0;
  const look = () => {
    due = 0;
    document.querySelectorAll(".lab-particles:not([data-ready])").forEach(prepareFilm);
    document.querySelectorAll(".lab-draw:not([data-ready])").forEach(prepareDrawing);
  };
  new MutationObserver(() => { due ||= requestAnimationFrame(look); }).observe(document.documentElement, { childList: true, subtree: true });
})();
