// Without this script a picture and its reconstruction stand side by side; with it, a difference and a slider too.
"use strict";
(() => {
  const section = document.getElementById("pictures");
  if (!section) return;

  const overlaid = (stage) => {
    const over = document.createElement("div");
    over.className = "over";
    for (const image of stage.querySelectorAll("figure > img")) over.append(image.cloneNode());
    return over;
  };
  const figure = (name, over, ...texts) => {
    const element = document.createElement("figure");
    element.className = name;
    const caption = document.createElement("figcaption");
    for (const text of texts) caption.append(Object.assign(document.createElement("span"), { textContent: text }));
    element.append(over, caption);
    return element;
  };

  for (const stage of section.querySelectorAll(".stage")) {
    const difference = figure("difference", overlaid(stage), "difference");
    const slider = figure("slider", overlaid(stage), "original", "decoded");
    const range = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 100, value: 50 });
    range.setAttribute("aria-label", "how much of the original to show");
    const cut = (percent) => slider.style.setProperty("--cut", `${percent}%`);
    range.addEventListener("input", () => cut(range.value));
    const over = slider.querySelector(".over");
    over.addEventListener("pointermove", (event) => {
      if (event.pointerType === "touch" && !event.isPrimary) return;
      const box = over.getBoundingClientRect();
      range.value = Math.round((100 * (event.clientX - box.left)) / box.width);
      cut(range.value);
    });
    slider.querySelector("figcaption").before(range);
    stage.append(difference, slider);
  }

  const show = (view) => {
    section.dataset.view = view;
    section.querySelector(`input[value="${view}"]`).checked = true;
  };
  for (const input of section.querySelectorAll('input[name="view"]'))
    input.addEventListener("change", () => show(input.value));
  const amplify = section.querySelector('input[name="amplify"]');
  amplify.addEventListener("input", () => {
    section.style.setProperty("--amplify", amplify.value);
    section.querySelector("output").textContent = amplify.value;
  });
  section.querySelector(".controls").hidden = false;
  show(window.matchMedia("(max-width: 600px)").matches ? "slider" : "side");
})();
