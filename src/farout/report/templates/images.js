"use strict";
(() => {
  const panel = document.querySelector(".panel");
  if (!panel) return;
  const shots = [...document.querySelectorAll(".shot")];
  const list = document.querySelector(".shots");
  const part = (name) => document.getElementById(name);

  // a slider uncovers the image from the right: at 100 all of the heat is there, at 0 none
  const wipe = (shot, value) => shot.style.setProperty("--bare", `${100 - value}%`);

  for (const shot of shots) {
    const own = shot.querySelector(".wipe");
    if (!own) continue;
    own.hidden = false;
    own.addEventListener("input", () => wipe(shot, own.value));
  }

  const heat = part("heat");
  if (heat) heat.addEventListener("input", () => list.style.setProperty("--heat", heat.value / 100));
  const boxes = part("boxes");
  if (boxes) boxes.addEventListener("change", () => list.classList.toggle("unboxed", !boxes.checked));

  const wanted = {
    "": () => true,
    rang: (shot) => shot.classList.contains("rang"),
    under: (shot) => !shot.classList.contains("rang"),
    missed: (shot) => shot.dataset.wrong === "missed",
    false: (shot) => shot.dataset.wrong === "false alarm",
  };
  const show = part("show");
  const filter = () => {
    const choice = show.value;
    const test = choice.startsWith("kind:") ? (shot) => shot.dataset.kind === choice.slice(5) : wanted[choice];
    let count = 0;
    for (const shot of shots) count += !(shot.hidden = !test(shot));
    part("count").textContent = `${count} of ${shots.length} images`;
  };
  show.addEventListener("change", filter);
  addEventListener("hashchange", () => {
    const shot = part(location.hash.slice(1));
    if (shot && shot.hidden) { show.value = ""; filter(); shot.scrollIntoView(); }
  });
  panel.addEventListener("submit", (event) => event.preventDefault());
  panel.hidden = false;
  filter();
})();
