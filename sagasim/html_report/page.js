"use strict";
// A click or Enter on a head sorts by its column, a second one the other way round; what has no number comes last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
    const numeric = [...body.rows].some((row) => row.cells[column].dataset.value !== undefined);
    const keys = new Map([...body.rows].map((row) => {
      const cell = row.cells[column];
      return [row, numeric ? Number(cell.dataset.value ?? NaN) : cell.textContent];
    }));
    const compare = (a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      if (!numeric) return way * x.localeCompare(y, "en", { numeric: true });
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return way * (x - y);
    };
    body.append(...[...body.rows].sort(compare));
  }));
}
