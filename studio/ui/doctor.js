// The dataset doctor: which finding's button was clicked; the hidden button takes it to the server.
window.studio.doctor = (() => {
  let place = "";
  document.addEventListener("click", (event) => {
    const clicked = event.target.closest?.("[data-fix]");
    if (!clicked) return;
    place = clicked.dataset.fix;
    document.querySelector("#sd-doctor-fix")?.click();
  });
  return { fixing: () => place };
})();
