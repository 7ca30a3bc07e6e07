// The Lab's films: a slider over moments, whose pictures are plain routes.
document.addEventListener("input", (event) => {
  const film = event.target.closest?.(".lab-film");
  if (!film) return;
  const frame = JSON.parse(film.dataset.frames)[Number(event.target.value)];
  const figures = film.querySelector(".st-figures");
  frame.pictures.forEach(([name, id], place) => {
    const figure = figures.children[place] ?? figures.appendChild(figures.firstElementChild.cloneNode(true));
    const picture = figure.querySelector("img");
    picture.src = `studio/tool/${id}`;
    picture.alt = name;
    figure.querySelector("figcaption").textContent = name;
  });
  while (figures.children.length > frame.pictures.length) figures.lastElementChild.remove();
  film.querySelector(".lab-caption").textContent = frame.caption;
});
