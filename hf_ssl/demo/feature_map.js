const SVG = "http://www.w3.org/2000/svg";
let shown = null;

function draw() {
  const map = props.value, svg = element.querySelector("svg"), legend = element.querySelector(".legend");
  if (!map || !map.places || svg.childNodes.length) return;
  map.places.forEach(([x, y], number) => {
    const point = document.createElementNS(SVG, "circle");
    point.setAttribute("cx", x);
    point.setAttribute("cy", y);
    point.setAttribute("r", 5);
    point.setAttribute("fill", map.colours[map.classes[number]]);
    point.dataset.number = number;
    svg.append(point);
  });
  map.names.forEach((name, number) => {
    const entry = document.createElement("span");
    entry.textContent = name || "no label";
    entry.style.setProperty("--dot", map.colours[number]);
    legend.append(entry);
  });
}

function hover(event) {
  const tip = element.querySelector(".tip"), point = event.target.closest("circle");
  if (shown) shown.classList.remove("here");
  shown = point;
  tip.style.display = point ? "block" : "none";
  if (!point) return;
  point.classList.add("here");
  const map = props.value, number = Number(point.dataset.number);
  tip.replaceChildren();
  if (map.thumbnails) {
    const image = document.createElement("div"), side = map.side, scale = 2;
    image.className = "thumbnail";
    image.style.width = image.style.height = `${side * scale}px`;
    image.style.backgroundImage = `url(${map.thumbnails})`;
    image.style.backgroundSize = `${map.columns * side * scale}px auto`;
    image.style.backgroundPosition =
      `-${(number % map.columns) * side * scale}px -${Math.floor(number / map.columns) * side * scale}px`;
    tip.append(image);
  }
  const words = document.createElement("div");
  words.textContent = [map.captions[number], map.texts && map.texts[number]].filter(Boolean).join(": ");
  tip.append(words);
  const frame = element.querySelector(".frame").getBoundingClientRect();
  const x = event.clientX - frame.left, y = event.clientY - frame.top;
  tip.style.left = `${Math.max(0, Math.min(x + 12, frame.width - tip.offsetWidth))}px`;
  tip.style.top = y + 16 + tip.offsetHeight > frame.height ? `${y - tip.offsetHeight - 10}px` : `${y + 16}px`;
}

element.addEventListener("pointermove", hover);
element.addEventListener("pointerleave", hover);
element.addEventListener("click", (event) => {
  hover(event);
  const point = event.target.closest("circle");
  if (point) trigger("click", { row: props.value.rows[Number(point.dataset.number)] });
});
watch("value", draw);
draw();
