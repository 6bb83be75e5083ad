"use strict";
const records = JSON.parse(document.getElementById("records").textContent);
const root = document.documentElement;

document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

function sortBy(header) {
  const table = header.closest("table");
  const place = [...header.parentNode.children].indexOf(header);
  const falling = header.ariaSort === "ascending";
  for (const other of header.parentNode.children) other.ariaSort = "none";
  header.ariaSort = falling ? "descending" : "ascending";
  const body = table.tBodies[0];
  const value = (row) => row.children[place].dataset.value;
  const lines = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const numbers = !isNaN(x) && !isNaN(y);
    const order = numbers ? Number(x) - Number(y) : x.localeCompare(y);
    return falling ? -order : order;
  });
  body.append(...lines);
}
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

for (const button of document.querySelectorAll("button.columns")) {
  button.addEventListener("click", () => {
    const few = button.parentNode.querySelector("table").classList.toggle("short");
    button.textContent = few ? "More columns" : "Fewer columns";
  });
}

const dialog = document.getElementById("provenance");
function line(list, name, value) {
  const term = document.createElement("dt");
  const text = document.createElement("dd");
  term.textContent = name;
  text.textContent = value;
  list.append(term, text);
}
const digits = (value) => Number(value.toPrecision(4)).toString();
function intervals(list, record) {
  for (const [name, value] of Object.entries(record)) {
    const [low, high] = [record[`${name}_low`], record[`${name}_high`]];
    if ([value, low, high].every((part) => typeof part === "number")) {
      line(list, name, `${digits(value)}, 95 % interval ${digits(low)} to ${digits(high)}`);
    }
  }
  for (const part of record.differences || []) {
    line(list, `Δ ${part.metric}`, `${digits(part.value)}, 95 % interval ${digits(part.low)} to ` +
      `${digits(part.high)}; p ${digits(part.p)}, ${digits(part.p_corrected)} corrected for ` +
      `${part.comparisons} rows; reference ${part.reference}`);
  }
}
const told = (value) => (typeof value === "number" ? digits(value) : "not known");
function showClaim(record) {
  dialog.querySelector("h3").textContent = `${record.method}: ${record.verdict}`;
  const list = dialog.querySelector("dl");
  list.replaceChildren();
  const { reading, test } = record;
  line(list, "claim", record.statement);
  line(list, "source", record.source);
  line(list, "shown", record.evidence);
  line(list, "compared", `${record.quantity.replaceAll("_", " ")} ${reading.where}, ${record.predictor}`);
  line(list, "expected", `ours ${record.expected}` +
    (record.margin === null ? "" : `; the least that matters is ${told(record.margin)}`));
  if (test) {
    line(list, "difference", `${told(test.value)}, 95 % interval ${told(test.low)} to ${told(test.high)}`);
    line(list, "t", `${told(test.t)}, ${test.units - 1} degrees of freedom`);
    line(list, "p", `${told(record.p)}; within the family ${record.family}: ${told(record.p_corrected)}`);
    line(list, "p against", `${told(record.p_against)}; within the family: ${told(record.p_against_corrected)}`);
    reading.units.forEach((unit, place) => line(list, `unit ${unit}`,
      `${record.ours} ${told(reading.ours[place])}, ${record.theirs} ${told(reading.theirs[place])}`));
  }
  dialog.querySelector("pre").textContent = JSON.stringify(record, null, 1);
  dialog.showModal();
}
function show(key) {
  const record = records[key];
  if (record.kind === "claim") return showClaim(record);
  const where = record.provenance;
  dialog.querySelector("h3").textContent = `${record.sweep}: ${record.method}`;
  const list = dialog.querySelector("dl");
  list.replaceChildren();
  line(list, "predictor", record.predictor);
  line(list, "record", record.key);
  line(list, "computed", `${where.created}, ${where.wall_seconds} s in all`);
  line(list, "code", (where.commits || [where.commit]).join(", ") + (where.dirty ? " (changed files)" : ""));
  const machine = where.hardware;
  line(list, "machine", `${machine.cpu}, ${machine.cores} cores, ${machine.memory_gib} GiB` +
    (machine.accelerator ? `, ${machine.accelerator}` : ", no accelerator"));
  line(list, "packages", Object.entries(where.packages).map(([k, v]) => `${k} ${v}`).join(", "));
  if (where.feature_extractor) {
    line(list, "FID", `${where.samples_per_fid} samples per seed, features of ${where.feature_extractor}`);
  }
  if (record.units) line(list, "units", record.units.join(", "));
  if (record.seeds) line(list, "training seeds", record.seeds.join(", "));
  intervals(list, record);
  for (const part of record.per_seed || []) {
    const { seed, ...rest } = part;
    line(list, `seed ${seed}`, Object.entries(rest)
      .map(([k, v]) => `${k} ${typeof v === "number" ? digits(v) : v}`).join(", "));
  }
  line(list, "command", `python -m ablations show ${record.key}`);
  dialog.querySelector("pre").textContent = JSON.stringify(where.configuration, null, 1);
  dialog.showModal();
}
for (const row of document.querySelectorAll("tr[data-key]")) {
  row.addEventListener("click", () => show(row.dataset.key));
}
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});

for (const select of document.querySelectorAll("select.classes")) {
  select.addEventListener("change", () => {
    for (const crop of select.closest("section").querySelectorAll(".crop")) {
      const image = crop.firstElementChild;
      const pitch = image.clientHeight / Number(crop.dataset.rows);
      const all = select.value === "all";
      crop.style.height = all ? "" : `${pitch}px`;
      image.style.marginTop = all ? "" : `${-pitch * Number(select.value)}px`;
    }
  });
}
