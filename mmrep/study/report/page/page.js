"use strict";
(() => {
  const make = (name, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(name), properties);
    node.append(...children);
    return node;
  };

  // Theme: what the system prefers, then light, then dark.
  const themes = ["auto", "light", "dark"];
  const remembered = () => { try { return localStorage.getItem("mmrep-theme"); } catch { return null; } };
  const toggle = make("button", { type: "button", className: "theme" });
  const dress = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    toggle.textContent = `Colours: ${theme}`;
    toggle.value = theme;
    try { localStorage.setItem("mmrep-theme", theme); } catch { /* no storage: the choice lasts for this page */ }
  };
  toggle.addEventListener("click", () => dress(themes[(themes.indexOf(toggle.value) + 1) % 3]));
  dress(themes.includes(remembered()) ? remembered() : "auto");
  document.getElementById("tools").append(toggle);

  // Sorting: numbers by value, text by alphabet, missing values last.
  const compared = (a, b, down) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const numbers = [Number(a), Number(b)];
    const order = numbers.some(Number.isNaN) ? a.localeCompare(b, "en", { numeric: true }) : numbers[0] - numbers[1];
    return down ? -order : order;
  };
  const sortBy = (table, index, head) => {
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of table.tHead.rows[0].cells) {
      other.removeAttribute("aria-sort");
      other.querySelector("button.sort").textContent = "↕";
    }
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    head.querySelector("button.sort").textContent = down ? "↓" : "↑";
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => compared(a.cells[index].dataset.v, b.cells[index].dataset.v, down)));
  };
  for (const table of document.querySelectorAll(".sortable table")) {
    [...table.tHead.rows[0].cells].forEach((head, index) => {
      const label = `Sort by ${head.textContent.trim().replace(/\s+/g, " ")}`;
      const button = make("button", { type: "button", className: "sort", textContent: "↕", title: label });
      button.setAttribute("aria-label", label);
      button.addEventListener("click", () => sortBy(table, index, head));
      head.append(button);
    });
  }

  // Filtering: rows that contain every word.
  for (const box of document.querySelectorAll(".filtered")) {
    const rows = [...box.querySelectorAll("tbody tr")];
    const words = rows.map((row) => row.textContent.toLowerCase());
    const count = make("span", { textContent: `${rows.length} rows` });
    count.setAttribute("role", "status");
    const input = make("input", { type: "search", placeholder: "words, such as ggem better", autocomplete: "off" });
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row, i) => { row.hidden = !wanted.every((word) => words[i].includes(word)); });
      count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
    });
    box.before(make("label", { className: "filter" }, "Show rows with ", input, count));
  }

  // Copying.
  const copied = async (text) => {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* not allowed for files in some browsers */ }
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  for (const block of document.querySelectorAll(".code")) {
    const button = make("button", { type: "button", className: "copy", textContent: "Copy" });
    const name = block.previousElementSibling.textContent;
    button.setAttribute("aria-label", `Copy: ${name}`);
    button.addEventListener("click", async () => {
      button.textContent = (await copied(block.querySelector("pre").textContent)) ? "Copied" : "Press Ctrl+C";
      setTimeout(() => { button.textContent = "Copy"; }, 1800);
    });
    block.append(button);
  }

  // Definitions on hover and focus. Without this script, the links lead to the glossary.
  const tip = make("div", { id: "tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  const hide = () => { tip.hidden = true; };
  const show = (term) => {
    tip.textContent = document.querySelector(`${term.getAttribute("href")} dd`).textContent;
    tip.hidden = false;
    const place = term.getBoundingClientRect();
    const left = Math.min(Math.max(8, place.left), document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${place.bottom + 8 + scrollY}px`;
  };
  for (const term of document.querySelectorAll("a.term")) {
    term.setAttribute("aria-describedby", "tip");
    term.addEventListener("mouseenter", () => show(term));
    term.addEventListener("focus", () => show(term));
    term.addEventListener("mouseleave", hide);
    term.addEventListener("blur", hide);
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  // Explanations of badges are part of the printed page.
  addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details")) each.open = true; });
})();
