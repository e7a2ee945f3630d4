for (const section of document.querySelectorAll(".subject")) {
  const body = section.querySelector(".results tbody");
  const search = section.querySelector("input[type=search]");
  const boxes = [...section.querySelectorAll("input[type=checkbox]")];
  const show = () => {
    const wanted = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of body.rows) {
      const text = (row.textContent + row.cells[1].title).toLowerCase();
      row.hidden = !wanted.has(row.dataset.status) || !words.every((word) => text.includes(word));
    }
  };
  search.addEventListener("input", show);
  boxes.forEach((box) => box.addEventListener("change", show));
  section.querySelectorAll(".results thead th").forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") === "descending";
    section.querySelectorAll(".results thead th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const order = (a, b) => head.classList.contains("number") ? key(a) - key(b) : key(b).localeCompare(key(a));
    [...body.rows].sort((a, b) => (up ? 1 : -1) * order(a, b)).forEach((row) => body.append(row));
  }));
}
