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
  for (const part of record.differences) {
    line(list, `Δ ${part.metric}`, `${digits(part.value)}, 95 % interval ${digits(part.low)} to ` +
      `${digits(part.high)}; p ${digits(part.p)}, ${digits(part.p_corrected)} corrected for ` +
      `${part.comparisons} rows; reference ${part.reference}`);
  }
}
function show(key) {
  const record = records[key];
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
