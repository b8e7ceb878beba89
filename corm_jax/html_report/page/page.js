"use strict";

const FIRST_CLASSES = 12; // rows of the table of classes at first
const TILES = 8; // in a line, at most
const NOT_SHOWN = {
  swapped_background: "no partner of another class",
  tiled_object: "no strip to tile with",
};
const NEAR = 16; // pixels from the pointer to a point

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const table = $("ranking");
const rows = [...table.tBodies[0].rows];
const rowOf = new Map(rows.map((row) => [row.dataset.row, row]));

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Missing values come last, whichever the direction.
function compare(a, b, descending) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
  return descending ? -order : order;
}

// Returns whether to sort descending now, and says so in the head.
function turn(head, descendingFirst) {
  const before = head.getAttribute("aria-sort");
  const descending = before ? before === "ascending" : descendingFirst;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  return descending;
}

// --- The ranking.

const heads = [...table.tHead.rows[0].cells].filter((head) => head.querySelector("button"));

function sortRanking(head) {
  const text = "text" in head.dataset;
  const descending = turn(head, !text && !("lower" in head.dataset));
  const value = (row) => {
    const cell = row.cells[head.cellIndex];
    if (text) return row.querySelector(".label").textContent;
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  rows.sort((a, b) => compare(value(a), value(b), descending));
  table.tBodies[0].append(...rows);
}

heads.forEach((head) => head.querySelector("button").addEventListener("click", () => sortRanking(head)));

function pressedSeries() {
  return new Set([...document.querySelectorAll(".chip[aria-pressed=true]")].map((c) => c.dataset.series));
}

function filter() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const series = pressedSeries();
  let count = 0;
  for (const row of rows) {
    const shown = words.every((word) => row.dataset.text.includes(word))
      && (!series.size || series.has(row.dataset.series));
    row.hidden = !shown;
    count += shown;
  }
  document.querySelectorAll(".point").forEach((point) =>
    point.classList.toggle("out", rowOf.get(point.dataset.row).hidden));
  $("count").textContent = `${count} of ${rows.length} models`;
}

$("filter").addEventListener("input", filter);
document.querySelectorAll(".chip").forEach((chip) => chip.addEventListener("click", () => {
  const pressed = chip.getAttribute("aria-pressed") !== "true";
  document.querySelectorAll(`.chip[data-series="${chip.dataset.series}"]`).forEach((same) =>
    same.setAttribute("aria-pressed", pressed));
  filter();
}));

document.querySelectorAll("input[name=over]").forEach((radio) => radio.addEventListener("change", () => {
  table.className = `over-${radio.value}`;
}));

$("chooser").addEventListener("change", (event) => {
  const { column } = event.target.dataset;
  table.querySelectorAll(`[data-column="${column}"]`).forEach((cell) => (cell.hidden = !event.target.checked));
});

// --- Marks: a row and its points in the figures.

const pinned = new Set();

function mark(number = null) {
  const lit = new Set(pinned);
  if (number !== null) lit.add(number);
  document.querySelector(".figures").classList.toggle("marked", lit.size > 0);
  document.querySelectorAll(".point").forEach((point) =>
    point.classList.toggle("lit", lit.has(point.dataset.row)));
  rows.forEach((row) => row.classList.toggle("lit", lit.has(row.dataset.row)));
}

for (const row of rows) {
  const label = row.querySelector(".label");
  const button = make("button", { type: "button", className: "label" }, ...label.childNodes);
  button.setAttribute("aria-pressed", "false");
  label.replaceWith(button);
  button.addEventListener("click", () => {
    const { row: number } = row.dataset;
    if (!pinned.delete(number)) pinned.add(number);
    button.setAttribute("aria-pressed", pinned.has(number));
    mark();
  });
  row.addEventListener("pointerenter", () => mark(row.dataset.row));
  row.addEventListener("pointerleave", () => mark());
}

function nearest(figure, x, y) {
  let found = null;
  let least = NEAR;
  for (const use of figure.querySelectorAll(".point:not(.out) use")) {
    const box = use.getBoundingClientRect();
    const distance = Math.hypot(box.x + box.width / 2 - x, box.y + box.height / 2 - y);
    if (distance < least) [found, least] = [use.closest(".point").dataset.row, distance];
  }
  return found;
}

function describe(figure, number) {
  const row = rowOf.get(number);
  const lines = [data.rows[number]];
  for (const column of figure.dataset.columns.split(",").filter(Boolean)) {
    const cell = row.querySelector(`[data-column="${column}"]`);
    const title = document.querySelector(`#chooser [data-column="${column}"] + span b`).textContent;
    const interval = cell.querySelector(".images")?.textContent ?? "";
    lines.push(`${title} ${cell.querySelector("b").textContent} ${interval}`);
  }
  return lines.join("\n");
}

document.querySelectorAll(".figures figure").forEach((figure) => {
  figure.addEventListener("pointermove", (event) => {
    const number = nearest(figure, event.clientX, event.clientY);
    mark(number);
    const tip = $("tip");
    tip.hidden = number === null;
    if (number === null) return;
    tip.textContent = describe(figure, number);
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const above = event.clientY + 18 + tip.offsetHeight > innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18}px`;
  });
  figure.addEventListener("pointerleave", () => {
    $("tip").hidden = true;
    mark();
  });
});

// --- Classes.

const classes = data.classes;
const CLASS_COLUMNS = [
  { title: "Images", value: (model, place) => classes.images[place], format: String, descending: true },
  ...classes.outcomes.map(({ title }, outcome) => ({
    title,
    value: (model, place) => classes.models[model][outcome]?.[place] ?? null,
    format: percent,
    descending: false, // the worst first
  })),
];
const outcome = (name) => classes.outcomes.findIndex((one) => one.name === name);
const [CLEAN, SWAPPED] = [outcome("clean"), outcome("swapped_background")];
if (CLEAN >= 0 && SWAPPED >= 0) {
  CLASS_COLUMNS.push({
    title: "Lost by swap",
    value: (model, place) => {
      const pair = [CLEAN, SWAPPED].map((one) => classes.models[model][one]?.[place] ?? null);
      return pair.includes(null) ? null : pair[0] - pair[1];
    },
    format: percent,
    descending: true,
  });
}
let classSort = { column: null, descending: false }; // null: by name
let allClasses = false;

function percent(perMille) {
  return (perMille / 10).toFixed(1).replace("-", "−");
}

function showClasses() {
  const model = Number($("class-model").value);
  const word = $("class-filter").value.toLowerCase().trim();
  const value = (place) =>
    classSort.column ? classSort.column.value(model, place) : classes.names[place];
  const places = [...classes.names.keys()].filter((place) => classes.names[place].toLowerCase().includes(word));
  places.sort((a, b) => compare(value(a), value(b), classSort.descending));
  const shown = allClasses ? places : places.slice(0, FIRST_CLASSES);
  $("class-table").tBodies[0].replaceChildren(...shown.map((place) => {
    const name = make("th", { className: "name", scope: "row" }, classes.names[place]);
    const cells = CLASS_COLUMNS.map((column) => {
      const found = column.value(model, place);
      return make("td", {}, found === null ? "" : column.format(found));
    });
    return make("tr", {}, name, ...cells);
  }));
  $("class-count").textContent = `${shown.length} of ${classes.names.length} classes`;
  $("class-more").hidden = places.length <= FIRST_CLASSES;
  $("class-more").textContent = allClasses ? `Show ${FIRST_CLASSES}` : `Show all ${places.length}`;
}

function setUpClasses() {
  if (!classes.outcomes.length) {
    $("classes").hidden = true;
    return;
  }
  fill($("class-model"), (number) => classes.models[number].some(Boolean));
  const head = (title, column, className = "") => {
    const button = make("button", { type: "button" }, title);
    const cell = make("th", { scope: "col", className }, button);
    button.addEventListener("click", () => {
      classSort = { column, descending: turn(cell, column?.descending ?? false) };
      showClasses();
    });
    return cell;
  };
  const cells = [head("Class", null, "name"), ...CLASS_COLUMNS.map((c) => head(c.title, c))];
  $("class-table").tHead.append(make("tr", {}, ...cells));
  const first = cells[CLASS_COLUMNS.findIndex((c) => c.title === "Lost by swap") + 1];
  (first === cells[0] ? cells[2] : first).querySelector("button").click();
  $("class-model").addEventListener("change", showClasses);
  $("class-filter").addEventListener("input", showClasses);
  $("class-more").addEventListener("click", () => {
    allClasses = !allClasses;
    showClasses();
  });
}

// Offers the models, in the order of the ranking.
function fill(select, has) {
  for (const { dataset } of rows) {
    if (has(dataset.row)) select.append(make("option", { value: dataset.row }, data.rows[dataset.row]));
  }
}

// --- Images.

const { panels } = data;

function tile(view, pictures, said, label) {
  const place = pictures
    ? make("div", { className: "under" }, ...pictures.map((src) => make("img", { src, alt: "" })))
    : make("div", { className: "none" }, NOT_SHOWN[view] ?? "no core mask");
  const figure = make("figure", { className: "tile" }, place, make("figcaption", {}, panels.titles[view]));
  if (said) {
    const right = said[0] === label;
    const name = data.classNames[said[0]];
    const text = `${right ? "✓" : "✗"} ${Math.round(said[1])} % ${name}`;
    figure.append(make("p", { className: `said ${right ? "right" : "wrong"}`, title: name }, text));
  }
  return figure;
}

function showPanels() {
  const model = panels.models[$("panel-model").value];
  const set = panels.sets[model.set];
  $("panel-list").replaceChildren(...set.labels.map((label, place) => {
    const tiles = Object.entries(set.views).map(([view, urls]) =>
      tile(view, urls[place] && [urls[place]], model.said[view]?.[place], label));
    for (const [method, urls] of Object.entries(model.saliency)) {
      tiles.push(tile(method, [set.views.image[place], urls[place]]));
    }
    const grid = make("div", { className: "tiles" }, ...tiles);
    const lines = Math.ceil(tiles.length / TILES);
    grid.style.setProperty("--columns", Math.ceil(tiles.length / lines));
    return make("article", { className: "panel" }, make("h3", {}, data.classNames[label]), grid);
  }));
}

function setUpPanels() {
  if (!panels.sets.length) {
    $("panels").hidden = true;
    return;
  }
  fill($("panel-model"), (number) => panels.models[number] !== null);
  $("panel-model").addEventListener("change", showPanels);
  showPanels();
}

setUpClasses();
setUpPanels();
