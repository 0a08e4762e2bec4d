"use strict";
(() => {
  /* Filtering across the boards of the index: words that a model's row must have, and one threat or all. */
  const form = document.getElementById("filters");
  const words = document.getElementById("words");
  const threat = document.getElementById("threat");
  const count = document.getElementById("count");
  const boards = [...document.querySelectorAll("[data-threat]")];
  for (const board of boards) threat.append(new Option(board.dataset.threat, board.dataset.threat));

  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    let all = 0;
    for (const board of boards) {
      const chosen = threat.value === "" || threat.value === board.dataset.threat;
      let found = 0;
      for (const row of board.querySelectorAll("tbody tr")) {
        const text = row.textContent.toLowerCase();
        row.hidden = !wanted.every((word) => text.includes(word));
        found += !row.hidden;
        all += 1;
      }
      board.hidden = !chosen || (wanted.length > 0 && found === 0);
      if (chosen) shown += found;
    }
    count.value = `${shown} of ${all} entries`;
  };

  form.addEventListener("input", apply);
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
})();
