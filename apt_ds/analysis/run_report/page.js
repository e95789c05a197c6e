"use strict";
(() => {
  const LIGHT = {"@paper": "#ffffff", "@ink": "#1c2128", "@muted": "#57606a", "@grid": "#d8dee4",
                 "@first": "#0072b2", "@second": "#d55e00", "@third": "#009e73"};
  const DARK = {"@paper": "#14181d", "@ink": "#e6eaef", "@muted": "#a5b0bc", "@grid": "#38414b",
                "@first": "#56b4e9", "@second": "#e69f00", "@third": "#2fc39a"};
  const SPECS = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const print = window.matchMedia("print");

  const coloured = (value, theme) => {
    if (typeof value === "string") return theme[value] || value;
    if (Array.isArray(value)) return value.map((each) => coloured(each, theme));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, coloured(each, theme)]));
  };

  const draw = (paper) => {
    const theme = dark.matches && !paper ? DARK : LIGHT;
    for (const plot of document.querySelectorAll(".plot")) {
      const spec = coloured(SPECS[Number(plot.dataset.figure)], theme);
      Plotly.react(plot, spec.data, spec.layout, {displayModeBar: false, responsive: true});
    }
  };

  // a sheet of paper is white, and shows what is folded on the screen
  const onPaper = (paper) => {
    for (const details of document.querySelectorAll("details")) {
      if (paper) details.open = true;
    }
    draw(paper);
  };

  const shown = (cell) => ("value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent);
  const compared = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    // numbers come before cells without one
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a.localeCompare(b, "en", {numeric: true});
  };

  const sort = (table, header) => {
    const next = {none: "ascending", ascending: "descending", descending: "none"}[header.getAttribute("aria-sort")];
    for (const each of table.tHead.rows[0].cells) each.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", next);
    table.classList.toggle("sorted", next !== "none");
    const body = table.tBodies[0], sign = next === "descending" ? -1 : 1;
    const rows = [...body.rows].sort((a, b) => a.dataset.order - b.dataset.order);
    if (next !== "none") {
      rows.sort((a, b) => sign * compared(shown(a.cells[header.cellIndex]), shown(b.cells[header.cellIndex])));
    }
    body.append(...rows);
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tBodies[0].rows].forEach((row, order) => { row.dataset.order = order; });
    for (const header of table.tHead.rows[0].cells) {
      header.querySelector("button").addEventListener("click", () => sort(table, header));
    }
  }

  dark.addEventListener("change", () => draw(print.matches));
  window.addEventListener("beforeprint", () => onPaper(true));
  window.addEventListener("afterprint", () => onPaper(false));
  draw(print.matches);
})();
