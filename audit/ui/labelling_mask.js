// The mask editor. A mask is 1 where a family of training images is unchanged: that part is compared. Steps mean here what
// they mean in audit/verbatim/editing.py, which makes the version that is saved; here they are only shown at once.
const LEAST_COVERAGE = 0.25;
const MAX_RADIUS = 64;
const MAX_THRESHOLD = 255; // of the summed difference of three channels, 0 to 765
const ROUNDING = 1e-3;
const TINT = [250, 115, 23]; // over the part that varies, as on the page Templates

// Pixels on a line from one to another (Bresenham), both included.
function line([x0, y0], [x1, y1]) {
  const pixels = [];
  const [across, down] = [Math.abs(x1 - x0), -Math.abs(y1 - y0)];
  const [right, below] = [x0 < x1 ? 1 : -1, y0 < y1 ? 1 : -1];
  let error = across + down;
  for (;;) {
    pixels.push([x0, y0]);
    if (x0 === x1 && y0 === y1) return pixels;
    const twice = 2 * error;
    if (twice >= down) {
      error += down;
      x0 += right;
    }
    if (twice <= across) {
      error += across;
      y0 += below;
    }
  }
}

function disc(radius) {
  const reach = Math.floor(radius + ROUNDING);
  const offsets = [];
  for (let y = -reach; y <= reach; y += 1) {
    for (let x = -reach; x <= reach; x += 1) {
      if (Math.hypot(x, y) <= radius + ROUNDING) offsets.push([x, y]);
    }
  }
  return offsets;
}

function stamp(mask, pixels, offsets, value) {
  for (const [x, y] of pixels) {
    for (const [across, down] of offsets) {
      const column = x + across;
      const row = y + down;
      if (column >= 0 && column < SIZE && row >= 0 && row < SIZE) mask[row * SIZE + column] = value;
    }
  }
}

function stroke(mask, points, radius, value) {
  const pixels = points.map(([x, y]) => [Math.floor(x), Math.floor(y)]);
  const crossed = pixels.length === 1 ? pixels : pixels.slice(1).flatMap((pixel, at) => line(pixels[at], pixel));
  stamp(mask, crossed, disc(radius), value);
}

function inside([x, y], corners) {
  let odd = false;
  corners.forEach(([x0, y0], at) => {
    const [x1, y1] = corners[(at + 1) % corners.length];
    if (y0 > y !== y1 > y && x < ((x1 - x0) * (y - y0)) / (y1 - y0) + x0) odd = !odd;
  });
  return odd;
}

function area(mask, holds, value) {
  for (let row = 0; row < SIZE; row += 1) {
    for (let column = 0; column < SIZE; column += 1) {
      if (holds(column + 0.5, row + 0.5)) mask[row * SIZE + column] = value;
    }
  }
}

// The mask with all pixels that lie within `amount` of one that has this value.
function spread(mask, amount, value) {
  const result = mask.slice();
  const offsets = disc(amount);
  for (let place = 0; place < SIZE * SIZE; place += 1) {
    if (mask[place] === value) stamp(result, [[place % SIZE, Math.floor(place / SIZE)]], offsets, value);
  }
  return result;
}

// The most (or the least) in a square around each position; what lies outside of the picture does not count.
function extreme(mask, reach, pick) {
  const along = (values, step) =>
    Uint8Array.from(values, (_, place) => {
      const at = Math.floor(place / step) % SIZE;
      let found = values[place];
      for (let by = -reach; by <= reach; by += 1) {
        if (at + by >= 0 && at + by < SIZE) found = pick(found, values[place + by * step]);
      }
      return found;
    });
  return along(along(mask, 1), SIZE);
}

// Specks of agreement removed, then the rim around a change, as audit/verbatim/masks.py does it.
function cleaned(equal) {
  const opened = extreme(extreme(equal, 1, Math.min), 1, Math.max);
  return extreme(opened, 2, Math.max);
}

function applied(mask, step, differences) {
  const value = step.include ? 1 : 0;
  const result = mask.slice();
  switch (step.tool) {
    case "brush":
      stroke(result, step.points, step.radius, value);
      return result;
    case "rectangle": {
      const [[x0, y0], [x1, y1]] = step.points;
      const [left, right, top, bottom] = [Math.min(x0, x1), Math.max(x0, x1), Math.min(y0, y1), Math.max(y0, y1)];
      area(result, (x, y) => left <= x && x < right && top <= y && y < bottom, value);
      return result;
    }
    case "polygon":
      area(result, (x, y) => inside([x, y], step.points), value);
      return result;
    case "grow":
      return spread(mask, step.amount, 1);
    case "shrink":
      return spread(mask, step.amount, 0);
    default:
      return cleaned(Uint8Array.from(differences, (value) => (value < 255 * step.amount ? 1 : 0)));
  }
}

class MaskEditor {
  constructor(view) {
    this.view = view;
    this.opened = false;
    this.tool = "brush";
    this.include = false;
    this.radius = 8;
    this.below = 0; // which picture is drawn on
    this.panes = Array.from({ length: 3 }, () => new Pane(view.zoom));
    const choice = (names, group, choose) =>
      names.map(([value, key, title]) => button(title, key, key, () => choose(value), { dataset: { [group]: value } }));
    this.tools = choice([["brush", "b", "Brush"], ["rectangle", "t", "Rectangle"], ["polygon", "p", "Polygon"]], "tool", (tool) => this.set({ tool }));
    this.sides = choice([[true, "i", "Include"], [false, "e", "Exclude"]], "side", (include) => this.set({ include }));
    this.size = element("input", { type: "range", min: 0, max: MAX_RADIUS, value: this.radius });
    this.size.addEventListener("input", () => this.set({ radius: Number(this.size.value) }));
    this.threshold = element("input", { type: "range", min: 1, max: MAX_THRESHOLD, value: 8, disabled: true });
    this.threshold.addEventListener("input", () => this.thresholdAt(Number(this.threshold.value)));
    this.told = element("p", { className: "measure", role: "status" });
    this.other = button("", "s", "s", () => this.startOtherwise());
    this.started = element("p", { className: "quiet started", role: "status", dir: "auto" });
    const named = (label, input) => element("label", {}, element("span", { textContent: label }), input);
    this.node = element(
      "div",
      { className: "editor", hidden: true, role: "group", aria: { label: "Mask editor" } },
      element(
        "div",
        { className: "bar" },
        element("span", { className: "group", role: "group", aria: { label: "Tool" } }, ...this.tools),
        element("span", { className: "group", role: "group", aria: { label: "What drawing does" } }, ...this.sides),
        named("Brush", this.size),
        button("Grow", "g", "g", () => this.add({ tool: "grow", amount: 1 })),
        button("Shrink", "k", "k", () => this.add({ tool: "shrink", amount: 1 })),
        named("Threshold", this.threshold),
        button("Picture", "v", "v", () => this.next()),
        this.other,
        button("Undo", "u", "u", () => this.undo()),
        button("Save", "Enter", "Enter", () => this.save(), { className: "primary" }),
        button("Close", "Escape", "Esc", () => this.leave()),
      ),
      this.started,
      this.told,
      (this.stage = element(
        "div",
        { className: "panes" },
        element("div", { className: "big" }, this.panes[0].node),
        element("div", { className: "small" }, this.panes[1].node, this.panes[2].node),
      )),
    );
    this.listen();
    this.set({});
  }

  // ---- opening and leaving

  open() {
    const { view } = this;
    const candidate = view.chosen();
    if (!candidate?.mask || !view.item.generated || !view.ready()) {
      view.last.textContent = candidate?.mask ? "There is no generated picture to measure a mask with." : view.data.no_mask;
      return;
    }
    this.candidate = candidate;
    this.generated = view.item.generated;
    // both are made now: while one edits, the pictures of a version that is not the newest any more may go
    this.starts = {
      found: view.pictures.mask(candidate.mask_found ?? candidate.mask),
      last: view.pictures.mask(candidate.mask),
    };
    this.steps = [];
    this.opened = true;
    view.root.classList.add("editing");
    this.node.hidden = false;
    view.tell("editing", candidate.template_id);
    // nobody is shown another's drawing before they have drawn by themselves
    this.startFrom(this.edited() && this.own() ? "last" : "found");
    this.arrange();
  }

  edited() {
    return Boolean(this.candidate.mask_found);
  }

  own() {
    return this.candidate.mask_by === this.view.data.who;
  }

  // The steps that there are stay, on the other mask.
  startFrom(start) {
    this.start = start;
    this.points = this.draft = null;
    this.warned = false;
    this.masks = [this.starts[start]];
    for (const step of this.steps) this.masks.push(applied(this.mask, step, this.differences()));
    const { mask_version, mask_by } = this.candidate;
    const by = this.own() ? "you" : shorten(mask_by, 40);
    this.other.hidden = !this.edited();
    this.other.lastChild.textContent = start === "found" ? `Start from last version (${mask_version}, by ${by})` : "Start from as found";
    this.started.textContent =
      start === "last"
        ? this.own()
          ? `You start from the last version, ${mask_version}, which you saved.`
          : `You start from the last version, ${mask_version}, by ${by}: what you save counts in no agreement.`
        : this.edited()
          ? `You start from the mask as it was found, to draw by yourself; what you save is used instead of version ${mask_version}, by ${by}.`
          : "You start from the mask as it was found; nobody has edited it.";
    this.measure();
  }

  startOtherwise() {
    if (this.edited()) this.startFrom(this.start === "found" ? "last" : "found");
  }

  close() {
    if (!this.opened) return;
    this.opened = false;
    this.view.root.classList.remove("editing");
    this.node.hidden = true;
    this.view.tell("editing", "");
    this.view.arrange();
  }

  leave() {
    if (this.points) {
      this.points = null;
      return this.paint();
    }
    if (this.steps.length && !this.warned) {
      this.warned = true;
      this.told.textContent = `${plural(this.steps.length, "step is", "steps are")} not saved: Enter saves, Escape once more throws them away.`;
      return;
    }
    this.close();
  }

  save() {
    if (this.points) return this.finish();
    if (!this.view.data.may_label) return;
    if (!this.steps.length) {
      this.told.textContent = "Nothing was edited yet, so there is nothing to save.";
      return;
    }
    this.view.saveMask(this.start === "found" ? [{ tool: "found" }, ...this.steps] : this.steps, this.candidate);
    this.close();
  }

  // ---- steps

  get mask() {
    return this.masks.at(-1);
  }

  differences() {
    const key = this.view.data.differences[this.candidate.template_id];
    if (!key || !this.view.pictures.has(key)) return null;
    return this.view.pictures.once(`differences ${key}`, () => {
      const values = this.view.pictures.values(key);
      return Uint16Array.from({ length: SIZE * SIZE }, (_, place) => values[4 * place] + 256 * values[4 * place + 1]);
    });
  }

  add(step) {
    this.warned = false;
    this.steps.push(step);
    this.masks.push(applied(this.mask, step, this.differences()));
    this.measure();
  }

  undo() {
    if (this.points) this.points = null;
    else if (this.steps.length) {
      this.steps.pop();
      this.masks.pop();
    }
    this.measure();
  }

  // Whole numbers of 8-bit levels differ: half of one more is above all that are meant and below all others.
  thresholdAt(levels) {
    if (!this.differences()) return;
    if (this.steps.at(-1)?.tool === "threshold") {
      this.steps.pop();
      this.masks.pop();
    }
    this.add({ tool: "threshold", amount: (levels - 0.5) / 255 });
  }

  measure() {
    const { pictures } = this.view;
    const mask = this.draft ?? this.mask;
    const { distance, coverage } = sumOfSquares(pictures.values(this.generated), pictures.values(this.candidate.masked_with), mask);
    const measured = this.view.data.blur
      ? "Pictures are blurred, so no distance is shown."
      : distance === null
        ? "The mask is empty."
        : `Masked distance ${number(distance)}.`;
    const covers = `${measured} The mask covers ${Math.round(100 * coverage)}% of the picture`;
    this.told.textContent = coverage < LEAST_COVERAGE ? `${covers}; below ${100 * LEAST_COVERAGE}% it proves nothing and cannot be saved.` : `${covers}. ${plural(this.steps.length, "step", "steps")}, not saved.`;
    this.show(mask);
  }

  // ---- what is shown

  set(change) {
    Object.assign(this, change);
    this.points = null;
    this.size.value = this.radius;
    for (const node of this.tools) node.setAttribute("aria-pressed", String(node.dataset.tool === this.tool));
    for (const node of this.sides) node.setAttribute("aria-pressed", String(node.dataset.side === String(this.include)));
  }

  next() {
    this.below = (this.below + 1) % 3;
    this.show(this.mask);
  }

  arrived() {
    if (!this.opened) return;
    this.threshold.disabled = !this.differences();
  }

  show(mask) {
    const { pictures } = this.view;
    const [one, other] = [this.generated, this.candidate.masked_with];
    const path = outline(mask);
    const difference = differencePicture(pictures.values(one), pictures.values(other), null);
    const images = [pictures.get(other), pictures.get(one), difference];
    const tint = painted((data) => {
      for (let place = 0; place < SIZE * SIZE; place += 1) {
        if (!mask[place]) data.set([...TINT, 140], 4 * place);
      }
    });
    this.panes[0].show({
      label: ["On the template", "On the generated picture", "On the difference"][this.below],
      alt: "Picture to draw on; orange is what the mask leaves out",
      note: "orange: left out",
      layers: [{ image: images[this.below] }, { image: tint }, { path }, ...this.drawn()],
    });
    const blurred = this.view.blurred();
    this.panes[1].show({ label: "Generated picture", alt: `Generated picture${blurred}`, layers: [{ image: images[1] }, { path }] });
    this.panes[2].show({
      label: "Difference inside the mask",
      alt: "Difference inside the mask",
      layers: [{ image: differencePicture(pictures.values(one), pictures.values(other), mask) }, { path }],
    });
    this.arrived();
  }

  drawn() {
    if (!this.points || this.tool === "brush") return [];
    const path = new Path2D();
    const [first, ...others] = this.points;
    if (this.tool === "rectangle") {
      const [end] = others.slice(-1);
      if (end) path.rect(first[0], first[1], end[0] - first[0], end[1] - first[1]);
    } else {
      path.moveTo(...first);
      for (const point of others) path.lineTo(...point);
      if (this.hover) path.lineTo(...this.hover);
    }
    return [{ path }];
  }

  paint() {
    if (this.opened) this.show(this.draft ?? this.mask);
  }

  arrange() {
    if (!this.opened) return;
    const width = this.stage.clientWidth;
    const narrow = width < NARROW;
    const height = Math.max(200, this.view.room(this.stage) - 26);
    const side = Math.floor(narrow ? width : Math.min(height, (width - GAP) / 1.5));
    const little = Math.floor(narrow ? (width - GAP) / 2 : (side - 34) / 2);
    this.stage.classList.toggle("narrow", narrow);
    this.panes.forEach((pane, at) => pane.resize(at ? little : side));
  }

  // ---- pointer and keys

  listen() {
    const [pane] = this.panes;
    pane.stage.classList.add("draws");
    const at = (event) => this.view.zoom.at(...place(event, pane)).map((share) => Math.round(share * SIZE * 100) / 100);
    pane.stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      pane.stage.setPointerCapture(event.pointerId);
      if (this.tool === "polygon") {
        this.points = [...(this.points ?? []), at(event)];
        return this.paint();
      }
      this.points = [at(event)];
      this.follow();
    });
    pane.stage.addEventListener("pointermove", (event) => {
      if (!this.opened) return;
      if (this.tool === "polygon") {
        this.hover = at(event);
        if (this.points) this.paint();
      } else if (this.points && pane.stage.hasPointerCapture(event.pointerId)) {
        this.points = this.tool === "rectangle" ? [this.points[0], at(event)] : [...this.points, at(event)];
        this.follow();
      }
    });
    pane.stage.addEventListener("pointerup", () => this.tool !== "polygon" && this.finish());
    pane.stage.addEventListener("pointercancel", () => {
      this.points = this.draft = null;
      this.paint();
    });
    pane.stage.addEventListener("dblclick", () => this.tool === "polygon" && this.finish());
    pane.stage.addEventListener(
      "wheel",
      (event) => {
        if (event.ctrlKey) return;
        event.preventDefault();
        this.view.zoom.by(Math.exp(-event.deltaY / 400), ...place(event, pane));
      },
      { passive: false },
    );
  }

  step() {
    const { tool, include, points, radius } = this;
    return tool === "brush" ? { tool, include, points, radius } : { tool, include, points };
  }

  // what is being drawn counts at once
  follow() {
    this.draft = this.complete() ? applied(this.mask, this.step()) : null;
    this.measure();
  }

  complete() {
    return (this.points?.length ?? 0) >= { brush: 1, rectangle: 2, polygon: 3 }[this.tool];
  }

  finish() {
    this.draft = null;
    if (!this.points) return;
    const whole = this.complete();
    const step = this.step();
    this.points = null;
    if (whole) this.add(step);
    else this.paint();
  }

  action({ key, shiftKey, repeat }) {
    const { zoom } = this.view;
    const larger = (by) => () => this.set({ radius: Math.min(MAX_RADIUS, Math.max(0, this.radius + by)) });
    const moved = (x, y) => () => zoom.move(x, y);
    return (
      {
        b: () => this.set({ tool: "brush" }),
        t: () => this.set({ tool: "rectangle" }),
        p: () => this.set({ tool: "polygon" }),
        i: () => this.set({ include: true }),
        e: () => this.set({ include: false }),
        "[": larger(-1),
        "]": larger(1),
        g: () => this.add({ tool: "grow", amount: 1 }),
        k: () => this.add({ tool: "shrink", amount: 1 }),
        v: () => this.next(),
        s: () => this.startOtherwise(),
        u: () => this.undo(),
        Backspace: () => this.undo(),
        Enter: () => repeat || this.save(),
        Escape: () => this.leave(),
        m: () => this.leave(),
        "?": () => this.view.open(this.view.keys),
        l: () => this.view.fill(),
        z: () => this.view.pixels(),
        "+": () => zoom.by(1.5),
        "=": () => zoom.by(1.5),
        "-": () => zoom.by(1 / 1.5),
        0: () => zoom.reset(),
        ArrowLeft: moved(0.1, 0),
        ArrowRight: moved(-0.1, 0),
        ArrowUp: moved(0, 0.1),
        ArrowDown: moved(0, -0.1),
      }[key] ?? null
    );
  }
}
