"use strict";
// Sorts a table by the column whose title is clicked; empty cells always come last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort");
      const first = button.dataset.first || (head.classList.contains("number") ? "descending" : "ascending");
      const now = was === "none" ? first : was === "ascending" ? "descending" : "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", now);
      const sign = now === "ascending" ? 1 : -1;
      const value = (row) => {
        const cell = row.cells[column];
        if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
        return head.classList.contains("number") ? null : cell.textContent.trim();
      };
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter((row) => !row.classList.contains("kind")).map((row) => [value(row), row]);
        rows.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
        });
        body.append(...rows.map(([, row]) => row));
      }
    });
  });
}

const main = document.querySelector("#main");
const tools = document.querySelector(".tools");
const models = () => [...main.querySelectorAll("tbody tr[data-name]")];
tools.hidden = false;
tools.addEventListener("submit", (event) => event.preventDefault());

// Shows the models whose name, family or kind contains the words.
document.querySelector("#filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/);
  for (const row of models()) row.hidden = !words.every((word) => row.dataset.words.toLowerCase().includes(word));
  for (const body of main.tBodies) {
    const title = body.querySelector(".kind");
    if (title) title.hidden = [...body.querySelectorAll("tr[data-name]")].every((row) => row.hidden);
  }
});

// Shows and hides the columns of a group.
const groups = [...main.tHead.rows[0].cells].slice(1);
const groupOf = groups.flatMap((head, index) => Array(head.colSpan).fill(index));
for (const box of document.querySelectorAll(".picker input")) {
  box.addEventListener("change", () => {
    const index = Number(box.value);
    groups[index].hidden = !box.checked;
    for (const row of [main.tHead.rows[1], ...models()]) {
      groupOf.forEach((group, column) => {
        if (group === index) row.cells[column + 1].hidden = !box.checked;
      });
    }
  });
}

// Shows every model as its difference to one of them, by the page's own paired tests where there is one.
const tests = new Map();
for (const row of document.querySelectorAll("table.tests tbody tr")) {
  const { evaluation, metric, variant, first, second } = row.dataset;
  const { value, from, to, scale } = row.querySelector("[data-test=difference]").dataset;
  const differs = row.querySelector("[data-test=p_holm] b") !== null;
  const of = { value: Number(value), low: Number(from), high: Number(to), scale: Number(scale), differs };
  const key = (a, b) => [evaluation, metric, variant, a, b].join("\n");
  tests.set(key(first, second), of);
  tests.set(key(second, first), { ...of, value: -of.value, low: -of.high, high: -of.low });
}
const signed = (value, digits) => {
  const text = Math.abs(value).toFixed(digits);
  return (Number(text) === 0 ? "±" : value < 0 ? "−" : "+") + text;
};
document.querySelector("#baseline").addEventListener("change", (event) => {
  const baseline = event.target.value;
  for (const row of models()) {
    for (const cell of row.querySelectorAll("td[data-metric]")) {
      const [shown, interval] = [cell.querySelector(".value"), cell.querySelector(".interval")];
      shown.dataset.own ??= shown.textContent;
      interval.dataset.own ??= interval.textContent;
      const { evaluation, metric, variant, model } = cell.dataset;
      const test = tests.get([evaluation, metric, variant, model, baseline].join("\n"));
      const own = !baseline || model === baseline;
      const digits = (shown.dataset.own.split(".")[1] || "").length;
      const text = (value) => signed(test.scale * value, digits);
      shown.textContent = own ? shown.dataset.own : test ? text(test.value) : "?";
      interval.textContent = own ? interval.dataset.own : test ? `${text(test.low)} to ${text(test.high)}` : "";
      cell.classList.toggle("real", Boolean(!own && test && test.differs));
      cell.classList.toggle("level", Boolean(!own && !(test && test.differs)));
    }
  }
  main.classList.toggle("differences", Boolean(baseline));
  document.querySelector("#compared").textContent = baseline
    ? `Every other model as its difference to ${baseline}, with its 95 % interval; grey where a paired test ` +
      "(Holm-corrected) finds no significant difference, ? where there is no test."
    : "";
});

// The visible part of the table, for export. Against a baseline the columns are differences, and titled so; the
// baseline's own row is empty. Cost is never a difference.
const table = () => {
  const baseline = document.querySelector("#baseline").value;
  const cells = (row) => [...row.cells].filter((cell) => !cell.hidden);
  const shownRows = models().filter((row) => !row.hidden);
  const isCompared = (place) => baseline && shownRows.some((row) => row.cells[place].dataset.model);
  const titles = cells(main.tHead.rows[1]).slice(1).map((head) => {
    const title = `${groups[groupOf[head.cellIndex - 1]].textContent}: ${head.textContent.trim()}`;
    return isCompared(head.cellIndex) ? `${title}, difference to ${baseline}` : title;
  });
  const rows = shownRows.map((row) => [
    row.dataset.name,
    ...cells(row).slice(1).map((cell) => {
      const [shown, interval] = [cell.querySelector(".value"), cell.querySelector(".interval")];
      const own = row.dataset.name === baseline && isCompared(cell.cellIndex);
      return shown && !own ? [shown.textContent, interval.textContent] : ["", ""];
    }),
  ]);
  return [titles, rows];
};
const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
const plain = (text) => text.replaceAll("−", "-");
const tex = (text) => plain(text).replaceAll("\\", "\\textbackslash ").replace(/[&%$#_{}]/g, "\\$&")
  .replaceAll("^", "\\textasciicircum{}").replaceAll("~", "\\textasciitilde{}")
  .replaceAll("∞", "$\\infty$").replaceAll("≤", "$\\leq$").replaceAll("σ", "$\\sigma$").replaceAll("±", "$\\pm$")
  .replaceAll(" ↓", "").replaceAll("–", "--");
const formats = {
  csv: (titles, rows) => [
    ["model", ...titles.flatMap((title) => [title, `${title}, 95 % interval`])].map(quoted).join(","),
    ...rows.map(([name, ...cells]) => [quoted(name), ...cells.flat().map((text) => quoted(plain(text)))].join(",")),
  ],
  tex: (titles, rows) => [
    `\\begin{tabular}{l${"r".repeat(titles.length)}}`, "\\hline",
    `${["model", ...titles].map(tex).join(" & ")} \\\\ \\hline`,
    ...rows.map(([name, ...cells]) =>
      `${[tex(name), ...cells.map(([value, interval]) => `${tex(value)}${interval && ` {\\scriptsize ${tex(interval)}}`}`)].join(" & ")} \\\\`),
    "\\hline", "\\end{tabular}",
  ],
  md: (titles, rows) => {
    const bar = (cells) => `| ${cells.map((text) => text.replaceAll("|", "\\|")).join(" | ")} |`;
    return [
      bar(["model", ...titles]), `|--|${"--:|".repeat(titles.length)}`,
      ...rows.map(([name, ...cells]) => bar([name, ...cells.map(([value, interval]) => value && (interval ? `${value} (${interval})` : value))])),
    ];
  },
};
for (const button of document.querySelectorAll("[data-format]")) {
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    const text = formats[button.dataset.format](...table()).join("\n") + "\n";
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = `robustgen.${button.dataset.format}`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

const theme = document.querySelector("#theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = getComputedStyle(root).colorScheme === "light dark"
    ? matchMedia("(prefers-color-scheme: dark)").matches : root.style.colorScheme === "dark";
  root.style.colorScheme = dark ? "light" : "dark";
});
