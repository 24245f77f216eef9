"use strict";
// Everything is readable without this: it lays pictures over each other and lights up ancestors.

function lightAncestors(charts) {
  const readout = charts.parentElement.querySelector(".readout");
  const standing = readout.textContent;
  const parents = new Map();
  for (const dot of charts.querySelectorAll("circle[data-id]")) parents.set(dot.dataset.id, dot.dataset.parent);
  function clear() {
    for (const lit of charts.querySelectorAll(".on")) lit.classList.remove("on");
    readout.textContent = standing;
  }
  function show(event) {
    const dot = event.target.closest("circle[data-id]");
    clear();
    if (!dot) return;
    readout.textContent = dot.querySelector("title").textContent;
    for (let id = dot.dataset.id, left = parents.size; id !== undefined && left > 0; id = parents.get(id), left--)
      for (const lit of charts.querySelectorAll(`[data-id="${id}"], [data-to="${id}"]`)) lit.classList.add("on");
  }
  charts.addEventListener("pointerover", show);
  charts.addEventListener("click", show);
  charts.addEventListener("pointerleave", clear);
}

function layOver(slider) {
  const pictures = new Map();
  for (const figure of slider.querySelectorAll("figure[data-name]")) {
    const image = figure.querySelector("img");
    if (image) pictures.set(figure.dataset.name, image);
  }
  const names = [...pictures.keys()].filter((name) => name !== "output");
  if (!pictures.has("output") || !names.length) return;
  const make = (tag, kind, text) => {
    const made = document.createElement(tag);
    made.className = kind;
    made.textContent = text || "";
    return made;
  };
  const stage = make("div", "stage");
  const under = pictures.get(names[0]).cloneNode();
  const over = pictures.get("output").cloneNode();
  over.classList.add("over");
  const left = make("span", "tag left");
  const range = make("input", "");
  range.type = "range";
  range.value = 50;
  range.setAttribute("aria-label", "where the output begins");
  range.addEventListener("input", () => stage.style.setProperty("--cut", `${range.value}%`));
  stage.append(under, over, make("span", "edge"), left, make("span", "tag right", "output"), range);
  const choose = make("div", "choose");
  const show = (name) => {
    under.src = pictures.get(name).src;
    under.alt = left.textContent = name;
  };
  for (const name of names) {
    const label = make("label", "");
    const button = make("input", "");
    button.type = "radio";
    button.name = "before";
    button.checked = name === names[0];
    button.addEventListener("change", () => show(name));
    label.append(button, ` ${name}`);
    choose.append(label);
  }
  show(names[0]);
  slider.before(choose, stage);
  slider.parentElement.classList.add("js");
}

document.querySelectorAll(".lineage").forEach(lightAncestors);
document.querySelectorAll(".slider").forEach(layOver);
