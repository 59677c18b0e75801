const form = document.getElementById("find");
const body = document.querySelector("#board tbody");
const rows = [...body.rows];
const heads = [...document.querySelectorAll("#board thead th")];
const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

const show = () => {
  const asked = new FormData(form);
  const words = asked.get("text").toLowerCase().split(/\s+/).filter(Boolean);
  const named = ["data", "ipc", "protocol"].filter((name) => asked.get(name));
  let count = 0;
  for (const row of rows) {
    const fits = words.every((word) => texts.get(row).includes(word))
      && named.every((name) => row.dataset[name] === asked.get(name))
      && !(asked.get("reliable") && "unreliable" in row.dataset);
    row.hidden = !fits;
    count += fits;
  }
  document.getElementById("count").textContent = `${count} of ${rows.length} rows`;
  document.getElementById("none").hidden = count > 0;
};

const key = (row, k) => {
  const cell = row.cells[k];
  if (cell.classList.contains("n")) return cell.dataset.at === undefined ? null : Number(cell.dataset.at);
  return (cell.querySelector("summary") || cell).textContent.trim();
};

const sort = (k) => {
  const number = heads[k].classList.contains("n");
  const up = heads[k].getAttribute("aria-sort") === (number ? "descending" : "none") || (!number && heads[k].getAttribute("aria-sort") === "descending");
  heads.forEach((head) => head.setAttribute("aria-sort", "none"));
  heads[k].setAttribute("aria-sort", up ? "ascending" : "descending");
  const keys = new Map(rows.map((row) => [row, key(row, k)]));
  rows.sort((a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    const order = number ? x - y : x.localeCompare(y, "en", { numeric: true });
    return up ? order : -order;
  });
  body.append(...rows);
};

heads.forEach((head, k) => head.querySelector("button").addEventListener("click", () => sort(k)));
form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
show();
