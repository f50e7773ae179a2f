"""Script of the study's report: choice of the ratio, and the table of all results."""

from __future__ import annotations

SCRIPT = """
"use strict";
document.documentElement.classList.add("script");
const buttons = [...document.querySelectorAll("button[data-ratio]")];
function choose(ratio) {
  for (const button of buttons)
    button.setAttribute("aria-pressed", String(button.dataset.ratio === ratio));
  for (const table of document.querySelectorAll("[data-table]"))
    table.hidden = table.dataset.table !== ratio;
}
for (const button of buttons)
  button.addEventListener("click", () => choose(button.dataset.ratio));
const first = buttons.find(button => button.dataset.first !== undefined) || buttons[0];
if (first) choose(first.dataset.ratio);

for (const cell of document.querySelectorAll(".heat td")) {
  cell.tabIndex = 0;
  const show = () => {
    cell.closest("[data-table]").querySelector(".detail").textContent = cell.title;
  };
  cell.addEventListener("click", show);
  cell.addEventListener("focus", show);
}

const data = JSON.parse(document.getElementById("data").textContent);
const body = document.querySelector("#all tbody");
const heads = [...document.querySelectorAll("#all thead th")];
const search = document.getElementById("search");
const selects = [...document.querySelectorAll("select[data-column]")];
const more = document.getElementById("more");
const PAGE = 100;
let sorted = null, down = false, shown = PAGE;

function format(value, kind) {
  if (value === null) return kind === "text" ? "" : "–";
  if (kind === "text") return String(value);
  if (kind === "yes") return value ? "visible" : "hidden";
  if (kind === "int") return value.toLocaleString("en");
  if (kind === "share") return String(Math.round(value * 1e4) / 1e4);
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
}
for (const select of selects) {
  const column = Number(select.dataset.column), kind = data.kinds[column];
  const values = [...new Set(data.rows.map(row => row[column]))];
  values.sort((a, b) => typeof a === "string" ? a.localeCompare(b) : a - b);
  for (const value of values) select.add(new Option(format(value, kind), JSON.stringify(value)));
}
function compare(a, b) {
  const x = a[sorted], y = b[sorted];
  if (x === null || y === null) return (x === null) - (y === null);
  const order = typeof x === "string" ? x.localeCompare(y) : x - y;
  return down ? -order : order;
}
function draw() {
  const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let rows = data.rows.filter(row => {
    for (const select of selects)
      if (select.value && JSON.stringify(row[Number(select.dataset.column)]) !== select.value)
        return false;
    if (!words.length) return true;
    const text = row.map((v, i) => format(v, data.kinds[i])).join(" ").toLowerCase();
    return words.every(word => text.includes(word));
  });
  if (sorted !== null) rows = [...rows].sort(compare);
  body.replaceChildren(...rows.slice(0, shown).map(row => {
    const line = document.createElement("tr");
    row.forEach((value, i) => {
      const cell = line.insertCell();
      cell.textContent = format(value, data.kinds[i]);
      cell.className = data.classes[i];
    });
    return line;
  }));
  const seen = Math.min(shown, rows.length);
  document.getElementById("count").textContent =
    `${seen.toLocaleString("en")} of ${rows.length.toLocaleString("en")} lines`;
  more.hidden = seen >= rows.length;
}
heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
  down = sorted === i ? !down : false;
  sorted = i;
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  draw();
}));
function restart() { shown = PAGE; draw(); }
search.addEventListener("input", restart);
for (const select of selects) select.addEventListener("change", restart);
more.addEventListener("click", () => { shown += 5 * PAGE; draw(); });
draw();
"""
