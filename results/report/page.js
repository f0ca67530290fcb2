
"use strict";
// Sorting, differences and tooltips. Text goes into the page as textContent only: no name becomes markup.
(() => {
  const Z = 1.96; // standard errors in half of a 95 % interval
  const data = JSON.parse(document.getElementById("data").textContent);
  const body = document.querySelector("#grid tbody");
  const rows = [...body.rows];
  const usual = new Map(); // what a cell shows before any baseline is chosen
  for (const cell of body.querySelectorAll("td")) {
    usual.set(cell, { nodes: [...cell.childNodes], kind: cell.className });
  }
  let base = "";
  let sorted = { column: null, way: 0 };
  document.documentElement.classList.add("js");

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const signed = (value) => (value < 0 ? "-" : "+") + Math.abs(value).toFixed(1);

  function shown(row, column) {
    if (base === "") return data.cells[row][column].value ?? null;
    const gap = data.differences[base][row][column];
    return gap ? gap[0] : null;
  }

  function show() {
    for (const line of rows) {
      const row = Number(line.dataset.row);
      for (const cell of line.querySelectorAll("td")) {
        const before = usual.get(cell);
        const gap = base === "" ? null : data.differences[base][row][Number(cell.dataset.column)];
        if (base === "") {
          cell.replaceChildren(...before.nodes);
          cell.className = before.kind;
        } else if (gap) {
          const half = gap[1] === null ? null : Z * gap[1];
          const parts = [element("span", signed(gap[0]), "number")];
          if (half !== null) parts.push(element("small", "± " + half.toFixed(1)));
          cell.replaceChildren(...parts);
          cell.className = half !== null && Math.abs(gap[0]) > half ? "best" : "";
        } else {
          cell.replaceChildren(row === Number(base) && data.cells[row][Number(cell.dataset.column)].value !== undefined ? "0" : "");
          cell.className = "word";
        }
      }
    }
    order();
  }

  function order() {
    const { column, way } = sorted;
    const names = new Intl.Collator("en", { numeric: true });
    const place = (line) => Number(line.dataset.row);
    const lines = [...rows];
    if (way && column === -1) {
      lines.sort((a, b) => -way * names.compare(data.rows[place(a)], data.rows[place(b)]) || place(a) - place(b));
    } else if (way) {
      lines.sort((a, b) => {
        const own = shown(place(a), column);
        const other = shown(place(b), column);
        if (own === null || other === null) return (own === null) - (other === null) || place(a) - place(b);
        return way * (other - own) || place(a) - place(b);
      });
    }
    body.replaceChildren(...lines);
    for (const button of document.querySelectorAll("#grid thead button")) {
      const heading = button.closest("th");
      if (way && Number(button.dataset.column) === column) {
        const falls = column === -1 ? way < 0 : way > 0;
        heading.setAttribute("aria-sort", falls ? "descending" : "ascending");
      } else heading.removeAttribute("aria-sort");
    }
  }

  document.querySelector("#grid thead").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const column = Number(button.dataset.column);
    const first = column === -1 ? -1 : 1; // names rise first, numbers fall first; the third click gives the first order
    const way = sorted.column !== column ? first : sorted.way === first ? -first : 0;
    sorted = { column: way ? column : null, way };
    order();
  });
  document.getElementById("base").addEventListener("change", (event) => {
    base = event.target.value;
    show();
  });
  document.getElementById("from")?.addEventListener("change", (event) => {
    for (const panels of document.querySelectorAll(".panels[data-base]")) {
      panels.hidden = panels.dataset.base !== event.target.value;
    }
  });

  const tip = document.getElementById("tip");
  let kept = null; // the cell whose tooltip stays until something else is touched

  function tell(cell) {
    const row = Number(cell.closest("tr").dataset.row);
    const column = Number(cell.dataset.column);
    const own = data.cells[row][column];
    const half = typeof own.error === "number" ? ` ± ${(Z * own.error).toFixed(2)} (95 %)` : "";
    const text = own.value === undefined ? own.text : own.value.toFixed(2) + half;
    const list = document.createElement("dl");
    for (const [name, value] of own.facts) {
      const line = document.createElement("div");
      const told = document.createElement("dd");
      told.append(["command", "record"].includes(name) ? element("code", value) : value);
      line.append(element("dt", name), told);
      list.append(line);
    }
    tip.replaceChildren(element("b", `${data.rows[row]}, ${data.columns[column]}: ${text}`), list);
    tip.hidden = false;
    const at = cell.getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    tip.style.left = Math.max(12, Math.min(at.left, innerWidth - size.width - 12)) + "px";
    tip.style.top = Math.max(12, at.bottom + size.height + 8 < innerHeight ? at.bottom + 4 : at.top - size.height - 4) + "px";
  }
  function hide() {
    kept = null;
    tip.hidden = true;
  }
  const cellOf = (event) => event.target.closest?.("#grid td[tabindex]");
  body.addEventListener("mouseover", (event) => {
    const cell = cellOf(event);
    if (cell && !kept) tell(cell);
  });
  body.addEventListener("mouseleave", () => kept || hide());
  body.addEventListener("focusin", (event) => cellOf(event) && tell(cellOf(event)));
  document.addEventListener("click", (event) => {
    if (tip.contains(event.target)) return; // its command can be copied
    const cell = cellOf(event);
    if (cell) {
      kept = cell;
      tell(cell);
    } else hide();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  addEventListener("scroll", () => kept || hide(), { passive: true });
})();
