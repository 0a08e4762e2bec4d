"use strict";
(() => {
  /* Sorting: a button in every heading; entries without a value stay last in both directions. */
  const orderOf = (row, column) => row.cells[column].dataset.order;

  const compare = (a, b, numeric, descending) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const difference = numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    return (descending ? -1 : 1) * (difference || 0);
  };

  const sort = (table, column) => {
    const heading = table.tHead.rows[0].cells[column];
    const numeric = heading.classList.contains("number");
    const first = numeric && heading.textContent.trim() !== "Rank" ? "descending" : "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    const direction = heading.getAttribute("aria-sort") === first ? second : first;
    for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
    const body = table.tBodies[0];
    const rows = [...body.rows];
    rows.sort((a, b) => compare(orderOf(a, column), orderOf(b, column), numeric, direction === "descending"));
    body.append(...rows);
  };

  const makeSortable = (table) => {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      button.addEventListener("click", () => sort(table, column));
      heading.replaceChildren(button);
    });
  };

  /* Filtering: a search field, and a list of values for the columns that offer one. */
  const labelled = (text, control) => {
    const label = document.createElement("label");
    const name = document.createElement("span");
    name.textContent = text;
    label.append(name, control);
    return label;
  };

  const makeChoice = (table, heading, column) => {
    const select = document.createElement("select");
    const values = [...new Set([...table.tBodies[0].rows].map((row) => row.cells[column].textContent.trim()))];
    if (values.length < 2) return null;
    select.append(new Option("all", ""));
    for (const value of values.sort((a, b) => a.localeCompare(b, "en", { numeric: true }))) {
      select.append(new Option(value, value));
    }
    select.dataset.column = column;
    return labelled(heading.textContent.trim(), select);
  };

  const makeFilterable = (holder, table) => {
    const bar = document.createElement("form");
    bar.className = "filters";
    bar.setAttribute("role", "search");
    bar.setAttribute("aria-label", `Filter: ${table.caption.textContent}`);
    const search = document.createElement("input");
    search.type = "search";
    search.autocomplete = "off";
    bar.append(labelled("Search", search));
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const choice = "choice" in heading.dataset ? makeChoice(table, heading, column) : null;
      if (choice) bar.append(choice);
    });
    const count = document.createElement("output");
    bar.append(count);
    const apply = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const choices = [...bar.querySelectorAll("select")].filter((select) => select.value);
      let shown = 0;
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        const keep =
          words.every((word) => text.includes(word)) &&
          choices.every((select) => row.cells[select.dataset.column].textContent.trim() === select.value);
        row.hidden = !keep;
        shown += keep;
      }
      count.value = `${shown} of ${table.tBodies[0].rows.length} rows`;
    };
    bar.addEventListener("input", apply);
    bar.addEventListener("change", apply);
    bar.addEventListener("submit", (event) => event.preventDefault());
    holder.prepend(bar);
    apply();
  };

  /* Choosing columns: on a narrow screen the first four are shown until a reader asks for more. */
  const FIRST = 4;
  const show = (table, column, shown) => {
    for (const row of table.rows) if (row.cells[column]) row.cells[column].hidden = !shown;
  };

  const makeSelectable = (holder, table) => {
    const narrow = window.matchMedia("(max-width: 40rem)").matches;
    const choice = document.createElement("details");
    choice.className = "columns";
    const name = document.createElement("summary");
    name.textContent = "Columns";
    const boxes = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = `Columns of: ${table.caption.textContent}`;
    boxes.append(legend);
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      if (heading.classList.contains("heading")) return;
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = !narrow || column < FIRST;
      box.addEventListener("change", () => show(table, column, box.checked));
      const label = document.createElement("label");
      label.append(box, ` ${heading.textContent.trim().replace(/\s+/g, " ")}`);
      boxes.append(label);
      if (!box.checked) show(table, column, false);
    });
    choice.append(name, boxes);
    holder.prepend(choice);
  };

  for (const holder of document.querySelectorAll("[data-table]")) {
    const table = holder.querySelector("table");
    if ("selectable" in holder.dataset) makeSelectable(holder, table);
    if ("filterable" in holder.dataset) makeFilterable(holder, table);
    if (table.tBodies[0].rows.length > 1) makeSortable(table);
  }
})();
