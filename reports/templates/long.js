"use strict";
(() => {
  /* Long tables: the page shows the first rows and the marked ones; here the others are searched, sorted and shown. */
  const STEP = 100;
  const [TEXT, NOTE, ORDER, TONE, LINK, BAR] = [0, 1, 2, 3, 4, 5];
  const SVG = "http://www.w3.org/2000/svg";

  const drawn = (name, attributes) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };

  const bar = ([value, low, high]) => {
    const svg = drawn("svg", { class: "bar", viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" });
    svg.append(
      drawn("rect", { class: "track", x: 0, y: 4, width: 100, height: 4 }),
      drawn("rect", { class: "fill", x: 0, y: 4, width: value, height: 4 }),
      drawn("path", { class: "whisker", d: `M ${low} 1 V 11 M ${high} 1 V 11 M ${low} 6 H ${high}` }),
    );
    return svg;
  };

  const element = (name, classes, text = "") => {
    const found = document.createElement(name);
    found.className = classes;
    found.textContent = text;
    return found;
  };

  const cellOf = (column, entry) => {
    const cell = document.createElement(column.heading ? "th" : "td");
    if (column.heading) cell.scope = "row";
    const text = entry[TEXT] ?? "";
    const classes = [column.number && "number", column.heading && "heading", text.length <= 28 && "short", entry[TONE]];
    cell.className = classes.filter(Boolean).join(" ");
    const parts = [element("span", "value", entry[LINK] ? "" : text)];
    if (entry[LINK]) {
      const link = element("a", "", text);
      link.href = entry[LINK];
      parts[0].append(link);
    }
    if (entry[NOTE]) parts.push(" ", element("small", "", entry[NOTE]));
    if (!entry[BAR]?.length) {
      cell.append(...parts);
    } else {
      const [measured, inner] = [element("span", "measured"), document.createElement("span")];
      inner.append(...parts);
      measured.append(bar(entry[BAR]), inner);
      cell.append(measured);
    }
    return cell;
  };

  const compare = (a, b, numeric, descending) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const difference = numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    return (descending ? -1 : 1) * (difference || 0);
  };

  class LongTable {
    constructor(holder) {
      this.table = holder.querySelector("table");
      this.more = holder.querySelector(".more");
      const { columns, shown } = JSON.parse(holder.querySelector('script[type="application/json"]').textContent);
      this.columns = columns;
      this.size = columns[0].rows.length;
      this.first = shown;
      this.words = [];
      this.choices = new Map();
      this.sorting = null;
      this.room = shown.length;
      for (const column of columns) {
        column.texts = column.entries.map((entry) => `${entry[TEXT] ?? ""} ${entry[NOTE] ?? ""}`.toLowerCase());
      }
      this.button = element("button", "", "Show more");
      this.button.type = "button";
      this.button.addEventListener("click", () => {
        this.room += STEP;
        this.show();
      });
      this.found = this.first;
      this.show();
    }

    matches(row) {
      for (const [column, value] of this.choices) if (this.columns[column].rows[row] !== value) return false;
      if (!this.words.length) return true;
      const text = this.columns.map((column) => column.texts[column.rows[row]]).join(" ");
      return this.words.every((word) => text.includes(word));
    }

    /* The rows at their places in the whole table that are asked for; without a question those that the page came with. */
    look() {
      const asked = this.words.length || this.choices.size || this.sorting;
      const rows = asked ? [...Array(this.size).keys()].filter((row) => this.matches(row)) : this.first;
      if (this.sorting) {
        const { column: place, descending } = this.sorting;
        const { rows: own, entries, number } = this.columns[place];
        const order = (row) => entries[own[row]][ORDER] ?? "";
        rows.sort((a, b) => compare(order(a), order(b), number, descending));
      }
      this.found = rows;
      this.room = asked ? STEP : this.first.length;
      this.show();
    }

    asked() {
      return this.found === this.first ? [...Array(this.size).keys()] : this.found;
    }

    show() {
      const rows = this.found.slice(0, Math.max(this.room, STEP)).map((row) => {
        const line = document.createElement("tr");
        line.append(...this.columns.map((column) => cellOf(column, column.entries[column.rows[row]])));
        return line;
      });
      this.table.tBodies[0].replaceChildren(...rows);
      const total = this.size.toLocaleString("en");
      const said = this.found === this.first ? "the first ones and those that are marked" : `${this.found.length.toLocaleString("en")} found`;
      this.more.replaceChildren(`${rows.length.toLocaleString("en")} of ${total} rows: ${said}. `);
      if (this.found.length > rows.length) this.more.append(this.button);
    }

    sort(place) {
      const heading = this.table.tHead.rows[0].cells[place];
      const { number } = this.columns[place];
      const first = number && heading.textContent.trim() !== "Rank" ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const direction = heading.getAttribute("aria-sort") === first ? second : first;
      for (const cell of this.table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", direction);
      this.sorting = { column: place, descending: direction === "descending" };
      this.look();
    }
  }

  const labelled = (text, control) => {
    const label = document.createElement("label");
    label.append(element("span", "", text), control);
    return label;
  };

  const choice = (long, heading, place) => {
    const select = document.createElement("select");
    const texts = long.columns[place].entries.map((entry, value) => [entry[TEXT] ?? "", value]);
    if (texts.length < 2) return null;
    texts.sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
    select.append(new Option("all", ""), ...texts.map(([text, value]) => new Option(text, value)));
    select.addEventListener("change", () => {
      if (select.value === "") long.choices.delete(place);
      else long.choices.set(place, Number(select.value));
      long.look();
    });
    return labelled(heading.textContent.trim(), select);
  };

  const wordsOf = (input) => input.value.toLowerCase().split(/\s+/).filter(Boolean);

  const searchable = (holder, long) => {
    const bar = element("form", "filters");
    bar.setAttribute("role", "search");
    bar.setAttribute("aria-label", `Search all rows: ${long.table.caption.textContent}`);
    const search = document.createElement("input");
    search.type = "search";
    search.autocomplete = "off";
    search.addEventListener("input", () => {
      long.words = wordsOf(search);
      long.look();
    });
    bar.append(labelled("Search all rows", search));
    [...long.table.tHead.rows[0].cells].forEach((heading, place) => {
      const select = "choice" in heading.dataset ? choice(long, heading, place) : null;
      if (select) bar.append(select);
    });
    bar.addEventListener("submit", (event) => event.preventDefault());
    holder.prepend(bar);
  };

  const sortable = (long) => {
    [...long.table.tHead.rows[0].cells].forEach((heading, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      button.addEventListener("click", () => long.sort(place));
      heading.replaceChildren(button);
    });
  };

  const all = [...document.querySelectorAll("[data-long]")].map((holder) => {
    const long = new LongTable(holder);
    searchable(holder, long);
    sortable(long);
    return long;
  });

  /* On the index of a site one field searches all boards. It looked at the rows that are shown; the count is of all. */
  const form = document.getElementById("filters");
  if (form) {
    const [words, threat, count] = ["words", "threat", "count"].map((name) => document.getElementById(name));
    const counted = () => {
      let [shown, total] = [0, 0];
      for (const board of document.querySelectorAll("[data-threat]")) {
        const long = all.filter((one) => board.contains(one.table));
        const rows = [...board.querySelectorAll("[data-table] tbody tr")];
        const found = long.reduce((sum, one) => sum + one.asked().length, rows.filter((row) => !row.hidden).length);
        total += long.reduce((sum, one) => sum + one.size, rows.length);
        const chosen = threat.value === "" || threat.value === board.dataset.threat;
        board.hidden = !chosen || (wordsOf(words).length > 0 && found === 0);
        if (chosen) shown += found;
      }
      count.value = `${shown} of ${total} entries`;
    };
    const look = () => {
      for (const long of all) {
        long.words = wordsOf(words);
        long.look();
      }
      counted();
    };
    form.addEventListener("input", look);
    form.addEventListener("change", look);
    counted();
  }
})();
