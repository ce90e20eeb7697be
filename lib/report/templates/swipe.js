"use strict";
const reach = () => {
  for (const box of document.querySelectorAll(".scroll, pre[tabindex]")) {
    box.tabIndex = box.scrollWidth > box.clientWidth ? 0 : -1;
  }
};
addEventListener("resize", reach);
document.addEventListener("toggle", reach, true);
reach();
for (const scene of document.querySelectorAll(".scene")) {
  const pictures = [...scene.querySelectorAll(".strip img")];
  const swipe = scene.querySelector(".swipe"), stage = scene.querySelector(".stage");
  const sides = [...stage.querySelectorAll("img")], [left, right] = swipe.querySelectorAll("select");
  const slider = swipe.querySelector("input");
  if (pictures.length < 2) continue;
  const titles = [...left.options].map(option => option.textContent);
  const at = title => titles.findIndex(own => own.startsWith(title));
  left.value = Math.max(0, at("truth"));
  right.value = at("prediction") < 0 ? pictures.length - 1 : at("prediction");
  const show = () => [left, right].forEach((choice, side) => {
    sides[side].src = pictures[choice.value].src;
    sides[side].alt = (side ? "right: " : "left: ") + pictures[choice.value].alt;
  });
  const divide = () => {
    stage.style.setProperty("--at", slider.value + "%");
    slider.setAttribute("aria-valuetext", slider.value + " percent " + titles[left.value]);
  };
  left.addEventListener("change", show);
  right.addEventListener("change", show);
  slider.addEventListener("input", divide);
  stage.addEventListener("pointermove", event => {
    if (event.buttons || event.pointerType === "mouse" && event.ctrlKey) {
      const box = stage.getBoundingClientRect();
      slider.value = Math.round(100 * (event.clientX - box.left) / box.width);
      divide();
    }
  });
  show();
  divide();
  swipe.hidden = false;
}
