// Pictures decoded before they are shown, what is computed from two of them, and the panes that draw them. Everything is
// drawn on canvases here, so that nothing is fetched while somebody looks and all panes zoom and move together.
const SIZE = 256; // side of the square on which distances are measured
const KEPT = 240; // pictures kept decoded: those of the items ahead, of the last ones, and of the guidelines
const MAX_ZOOM = 64;
const PIXELS = 8; // "zoom to pixels" makes one pixel of 256 this many times as large

function element(tag, properties = {}, ...children) {
  const { dataset, style, aria, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  Object.assign(node.dataset, dataset);
  Object.assign(node.style, style);
  for (const [name, value] of Object.entries(aria ?? {})) node.setAttribute(`aria-${name}`, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function canvas(width, height) {
  return element("canvas", { width, height });
}

class Pictures {
  constructor() {
    this.kept = new Map(); // key -> ImageBitmap, the least recently used first
    this.derived = new Map(); // what was computed from them, under a name that says from which
  }

  keys() {
    return [...this.kept.keys()];
  }

  has(key) {
    return this.kept.has(key);
  }

  async take(sources) {
    const decode = async ([key, source]) => {
      const image = new Image();
      image.src = source;
      await image.decode();
      this.kept.set(key, await createImageBitmap(image));
    };
    const failed = (await Promise.allSettled(Object.entries(sources).map(decode))).filter(({ reason }) => reason);
    for (const { reason } of failed) console.error("a picture could not be decoded", reason);
  }

  forget(needed) {
    for (const key of this.keys()) {
      if (this.kept.size <= KEPT) break;
      if (needed.has(key)) continue;
      this.kept.get(key).close();
      this.kept.delete(key);
    }
    for (const name of this.derived.keys()) {
      if (this.derived.size <= KEPT) break;
      this.derived.delete(name);
    }
  }

  get(key) {
    const picture = this.kept.get(key);
    if (picture) {
      this.kept.delete(key);
      this.kept.set(key, picture);
    }
    return picture;
  }

  once(name, make) {
    if (!this.derived.has(name)) this.derived.set(name, make());
    return this.derived.get(name);
  }

  // RGBA values of a picture, 256 on a side
  values(key) {
    return this.once(`values ${key}`, () => {
      const surface = canvas(SIZE, SIZE).getContext("2d", { willReadFrequently: true });
      surface.drawImage(this.get(key), 0, 0, SIZE, SIZE);
      return surface.getImageData(0, 0, SIZE, SIZE).data;
    });
  }

  // a mask as one value a position: 1 where the family is unchanged
  mask(key) {
    return this.once(`mask ${key}`, () => {
      const values = this.values(key);
      return Uint8Array.from({ length: SIZE * SIZE }, (_, place) => (values[4 * place] > 127 ? 1 : 0));
    });
  }

  difference(one, other, mask = null, name = mask) {
    return this.once(`difference ${one} ${other} ${name}`, () =>
      differencePicture(this.values(one), this.values(other), typeof mask === "string" ? this.mask(mask) : mask),
    );
  }

  outline(key) {
    return this.once(`outline ${key}`, () => outline(this.mask(key)));
  }

  white(key) {
    return this.once(`white ${key}`, () => maskPicture(this.mask(key)));
  }

  distance(one, other) {
    return this.once(`distance ${one} ${other}`, () => sumOfSquares(this.values(one), this.values(other)).distance);
  }

  maskedDistance(one, other, key) {
    return this.once(`distance ${one} ${other} ${key}`, () =>
      sumOfSquares(this.values(one), this.values(other), this.mask(key)).distance,
    );
  }
}

function painted(fill) {
  const surface = canvas(SIZE, SIZE);
  const context = surface.getContext("2d");
  const image = context.createImageData(SIZE, SIZE);
  fill(image.data);
  context.putImageData(image, 0, 0);
  return surface;
}

function differencePicture(one, other, mask) {
  return painted((data) => {
    for (let place = 0; place < SIZE * SIZE; place += 1) {
      const at = 4 * place;
      const inside = !mask || mask[place];
      for (let channel = 0; channel < 3; channel += 1) {
        data[at + channel] = inside ? Math.abs(one[at + channel] - other[at + channel]) : 0;
      }
      data[at + 3] = 255;
    }
  });
}

function maskPicture(mask) {
  return painted((data) => {
    for (let place = 0; place < SIZE * SIZE; place += 1) {
      data.fill(mask[place] ? 255 : 0, 4 * place, 4 * place + 3);
      data[4 * place + 3] = 255;
    }
  });
}

// Distance as audit/verbatim/distances.py measures it: squares of values in [0, 1], summed, and under a mask divided by
// the share of the picture that it covers. No distance where it covers nothing.
function sumOfSquares(one, other, mask = null) {
  let sum = 0;
  let covered = 0;
  for (let place = 0; place < SIZE * SIZE; place += 1) {
    if (mask && !mask[place]) continue;
    covered += 1;
    const at = 4 * place;
    const red = one[at] - other[at];
    const green = one[at + 1] - other[at + 1];
    const blue = one[at + 2] - other[at + 2];
    sum += red * red + green * green + blue * blue;
  }
  const coverage = covered / (SIZE * SIZE);
  return { coverage, distance: covered ? sum / 255 ** 2 / coverage : null };
}

// The border between inside and outside as lines in units of one position.
function outline(mask) {
  const path = new Path2D();
  for (let row = 0; row < SIZE; row += 1) {
    for (let column = 0; column < SIZE; column += 1) {
      const here = mask[row * SIZE + column];
      if (column + 1 < SIZE && here !== mask[row * SIZE + column + 1]) {
        path.moveTo(column + 1, row);
        path.lineTo(column + 1, row + 1);
      }
      if (row + 1 < SIZE && here !== mask[(row + 1) * SIZE + column]) {
        path.moveTo(column, row + 1);
        path.lineTo(column + 1, row + 1);
      }
    }
  }
  return path;
}

// How far all panes are zoomed in, and which point of the picture stands in their middle.
class Zoom {
  constructor(onchange) {
    this.onchange = onchange;
    this.reset();
  }

  reset() {
    this.scale = 1;
    this.x = this.y = 0.5;
    this.onchange?.();
  }

  // `x` and `y` are the point, in shares of the pane, that stays where it is
  by(factor, x = 0.5, y = 0.5) {
    const scale = Math.min(MAX_ZOOM, Math.max(1, this.scale * factor));
    const kept = (1 / this.scale - 1 / scale);
    this.x += (x - 0.5) * kept;
    this.y += (y - 0.5) * kept;
    this.scale = scale;
    this.move(0, 0);
  }

  // by shares of the pane
  move(x, y) {
    const margin = 0.5 / this.scale;
    this.x = Math.min(1 - margin, Math.max(margin, this.x - x / this.scale));
    this.y = Math.min(1 - margin, Math.max(margin, this.y - y / this.scale));
    this.onchange();
  }

  // the point of the picture, in shares of it, at a point of the pane
  at(x, y) {
    return [this.x + (x - 0.5) / this.scale, this.y + (y - 0.5) / this.scale];
  }
}

// One picture or several over each other. A layer is {image, alpha, from, to, gain} or {path}: `from` and `to` are the
// shares of the pane's width between which it is drawn.
class Pane {
  constructor(zoom) {
    this.zoom = zoom;
    this.layers = [];
    this.surface = element("canvas", { role: "img" });
    this.label = element("strong", { dir: "auto" });
    this.chip = element("span", { className: "chip" });
    this.note = element("span", { className: "note" });
    this.handle = element("div", { className: "handle", hidden: true });
    this.pointer = element("i", { className: "pointer", hidden: true });
    this.stage = element("div", { className: "stage" }, this.surface, this.handle, this.pointer);
    this.node = element("figure", {}, this.stage, element("figcaption", {}, this.label, this.chip, this.note));
  }

  show({ label, alt, chip = "", note = "", layers, handle = null }) {
    this.label.textContent = label;
    this.chip.textContent = chip;
    this.chip.hidden = !chip;
    this.note.textContent = note;
    this.surface.setAttribute("aria-label", alt);
    this.layers = layers;
    this.handle.hidden = handle === null;
    this.stage.classList.toggle("drag", handle !== null);
    if (handle !== null) this.handle.style.left = `${100 * handle}%`;
    this.paint();
  }

  resize(side) {
    this.node.style.width = `${side}px`;
    const pixels = Math.max(1, Math.round(side * (window.devicePixelRatio || 1)));
    if (this.surface.width === pixels) return;
    this.surface.width = this.surface.height = pixels;
    this.paint();
  }

  paint() {
    const side = this.surface.width;
    const context = this.surface.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, side, side);
    const scale = side * this.zoom.scale;
    const left = side / 2 - this.zoom.x * scale;
    const top = side / 2 - this.zoom.y * scale;
    for (const { image, path, alpha = 1, from = 0, to = 1, gain = 1 } of this.layers) {
      context.save();
      context.globalAlpha = alpha;
      if (image) {
        context.beginPath();
        context.rect(from * side, 0, (to - from) * side, side);
        context.clip();
        // enlarged a little it is smoothed, enlarged much each of its pixels is a square
        context.imageSmoothingEnabled = scale < 4 * image.width;
        context.imageSmoothingQuality = "high";
        context.drawImage(image, left, top, scale, scale);
        // brighter by adding it to itself: filters of canvases are not everywhere
        context.globalCompositeOperation = "lighter";
        for (let more = 1; more < gain; more += 1) context.drawImage(image, left, top, scale, scale);
      } else {
        context.setTransform(scale / SIZE, 0, 0, scale / SIZE, left, top);
        for (const [colour, width] of [["rgba(0, 0, 0, 0.8)", 3.5], ["rgb(255, 255, 115)", 1.5]]) {
          context.strokeStyle = colour;
          context.lineWidth = (width * (window.devicePixelRatio || 1) * SIZE) / scale;
          context.stroke(path);
        }
      }
      context.restore();
    }
  }

  point(x, y) {
    this.pointer.hidden = x === null;
    if (x === null) return;
    this.pointer.style.left = `${100 * x}%`;
    this.pointer.style.top = `${100 * y}%`;
  }
}

// Where the pointer is on a pane, in shares of its side.
function place(event, pane) {
  const box = pane.stage.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

// Wheel and drag on any of the panes move them all; the pointer is marked on the others.
function together(panes, zoom, drags) {
  for (const pane of panes) {
    let last = null;
    const box = () => pane.stage.getBoundingClientRect();
    pane.stage.addEventListener(
      "wheel",
      (event) => {
        if (event.ctrlKey) return; // the browser's own zoom
        if (zoom.scale === 1 && event.deltaY > 0) return; // nothing to zoom out of: the page scrolls
        event.preventDefault();
        zoom.by(Math.exp(-event.deltaY / 400), ...place(event, pane));
      },
      { passive: false },
    );
    pane.stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      pane.stage.setPointerCapture(event.pointerId);
      last = [event.clientX, event.clientY];
      drags(pane, place(event, pane));
    });
    pane.stage.addEventListener("pointermove", (event) => {
      for (const other of panes) other.point(...(other === pane ? [null] : place(event, pane)));
      if (!last) return;
      if (!drags(pane, place(event, pane))) {
        zoom.move((event.clientX - last[0]) / box().width, (event.clientY - last[1]) / box().height);
      }
      last = [event.clientX, event.clientY];
    });
    for (const name of ["pointerup", "pointercancel"]) {
      pane.stage.addEventListener(name, () => {
        last = null;
      });
    }
    pane.stage.addEventListener("pointerleave", () => {
      for (const other of panes) other.point(null);
    });
  }
}
