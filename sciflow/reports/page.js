(() => {
  "use strict";
  const cards = [...document.querySelectorAll(".card")];
  cards.forEach(card => card.addEventListener("click", () => {
    cards.forEach(c => c.classList.toggle("chosen", c === card));
    document.dispatchEvent(new CustomEvent("sciflow:show", {detail: Number(card.dataset.at)}));
  }));
  document.querySelectorAll("table.sortable").forEach(table => {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    const value = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent;
    heads.forEach((head, i) => {
      const sort = () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach(h => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...body.rows].sort((a, b) => {
          const p = value(a, i), q = value(b, i);
          if (p === "" || q === "") return (p === "") - (q === "");
          const order = isNaN(p) || isNaN(q) ? p.localeCompare(q) : p - q;
          return up ? order : -order;
        });
        body.append(...rows);
      };
      head.tabIndex = 0;
      head.addEventListener("click", sort);
      head.addEventListener("keydown", e => e.key === "Enter" && sort());
    });
  });
})();
