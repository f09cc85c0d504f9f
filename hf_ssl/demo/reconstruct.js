let painting = null; // what the patches under the mouse become: 1 is masked

function draw() {
  const value = props.value, cells = element.querySelector(".cells");
  element.querySelector("img").src = value.image;
  cells.style.gridTemplateColumns = cells.style.gridTemplateRows = `repeat(${value.grid}, 1fr)`;
  cells.replaceChildren(...value.mask.map((masked) => {
    const cell = document.createElement("i");
    cell.classList.toggle("masked", masked === 1);
    return cell;
  }));
}

function mask(change) {
  const cells = [...element.querySelectorAll(".cells i")];
  props.value = { ...props.value, mask: change(cells) };
  draw();
  trigger("input");
}

function random(cells) {
  const order = cells.map((_, cell) => [Math.random(), cell]).sort().map(([, cell]) => cell);
  const masked = new Set(order.slice(0, Math.round(props.value.masked * cells.length)));
  return cells.map((_, cell) => Number(masked.has(cell)));
}

function paint(event) {
  const cell = document.elementFromPoint(event.clientX, event.clientY);
  if (cell && cell.matches(".cells i") && element.contains(cell)) cell.classList.toggle("masked", painting === 1);
}

element.addEventListener("click", (event) => {
  if (event.target.matches(".random")) mask(random);
  if (event.target.matches(".clear")) mask((cells) => cells.map(() => 0));
});
element.addEventListener("pointerdown", (event) => {
  if (!event.target.matches(".cells i")) return;
  event.preventDefault();
  event.target.releasePointerCapture(event.pointerId); // a finger would hold on to the patch where it began
  painting = event.target.classList.contains("masked") ? 0 : 1;
  paint(event);
});
window.addEventListener("pointermove", (event) => { if (painting !== null) paint(event); });
window.addEventListener("pointerup", () => {
  if (painting === null) return;
  painting = null;
  mask((cells) => cells.map((cell) => Number(cell.classList.contains("masked"))));
});
watch("value", draw);
draw();
