// The atlas: a filter and a sort for the table of its page. It reads the table that is there; without it, all rows show.
(() => {
  "use strict";
  const table = document.querySelector(".atlas table");
  if (!table) return;
  const head = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  // The text before MathJax rewrites it: this runs while the page is still being read.
  const rows = [...body.rows].map((row, order) => ({
    row, order, cells: [...row.cells].map((cell) => cell.textContent.trim()),
  }));
  const TEXTS = 1, IS = 3, NUMBERS = [4, 5];

  const make = (tag, attributes, text) => {
    const element = Object.assign(document.createElement(tag), attributes);
    if (text) element.textContent = text;
    return element;
  };
  const bar = make("div", { className: "atlas-bar" });
  bar.setAttribute("role", "search");
  const label = make("label", {}, "Filter ");
  const box = make("input", { type: "search", placeholder: "GRPO, TRL, k3, …" });
  label.append(box);
  bar.append(label);

  const isKind = (text) => (text.startsWith("only") ? "only if" : text);
  const chosen = { [TEXTS]: "", [IS]: "" };
  const chips = (column, title, values) => {
    const group = make("span", { className: "atlas-chips" });
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", title);
    group.append(make("span", { className: "atlas-title" }, title + " "));
    const buttons = values.map((value) => {
      const button = make("button", { type: "button", className: "atlas-chip" }, value || "all");
      button.setAttribute("aria-pressed", String(!value));
      button.addEventListener("click", () => {
        chosen[column] = value;
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
        filter();
      });
      return button;
    });
    group.append(...buttons);
    bar.append(group);
  };
  chips(TEXTS, "texts", ["", ...new Set(rows.map((r) => r.cells[TEXTS]))]);
  chips(IS, "is it p*?", ["", ...new Set(rows.map((r) => isKind(r.cells[IS])))]);
  const count = make("span", { className: "atlas-count" });
  count.setAttribute("role", "status");
  bar.append(count);

  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { row, cells } of rows) {
      const text = cells.join(" ").toLowerCase();
      const fits = words.every((word) => text.includes(word))
        && (!chosen[TEXTS] || cells[TEXTS] === chosen[TEXTS])
        && (!chosen[IS] || isKind(cells[IS]) === chosen[IS]);
      row.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    count.textContent = shown + " of " + rows.length + " rows";
  };
  box.addEventListener("input", filter);

  // A row without a number comes last, whichever way.
  const compare = (column, sign) => (a, b) => {
    const [x, y] = [a.cells[column], b.cells[column]];
    if (NUMBERS.includes(column)) {
      const [p, q] = [parseFloat(x), parseFloat(y)];
      if (isNaN(p) || isNaN(q)) return isNaN(p) - isNaN(q) || a.order - b.order;
      return sign * (p - q) || a.order - b.order;
    }
    return sign * x.localeCompare(y) || a.order - b.order;
  };
  head.forEach((cell, column) => {
    const button = make("button", { type: "button", className: "atlas-sort" });
    button.append(...cell.childNodes);
    cell.append(button);
    cell.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[cell.getAttribute("aria-sort")];
      for (const other of head) other.setAttribute("aria-sort", "none");
      cell.setAttribute("aria-sort", next);
      const order = next === "none" ? (a, b) => a.order - b.order : compare(column, next === "ascending" ? 1 : -1);
      body.append(...[...rows].sort(order).map(({ row }) => row));
    });
  });

  // A link to a row that is filtered out shows it again.
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && table.contains(target) && target.closest("tr").hidden) {
      box.value = "";
      for (const chip of bar.querySelectorAll(".atlas-chips")) chip.querySelector("button").click();
      target.scrollIntoView();
    }
  };
  window.addEventListener("hashchange", reveal);

  table.closest(".atlas").prepend(bar);
  filter();
})();
