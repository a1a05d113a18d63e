// The labelling page's view: one item after the other, judged by keys. The next items are here already, decoded, so that
// none is waited for; answers wait in an outbox, also over a reload, until the server says that they are stored.
const MODES = [
  ["side", "s", "Side by side"],
  ["swipe", "w", "Swipe"],
  ["onion", "o", "Onion skin"],
  ["blink", "b", "Blink"],
  ["difference", "d", "Difference"],
  ["masked", "x", "Masked difference"],
];
const GAINS = [1, 2, 4, 8];
const BLINK_MS = 700; // slower than three flashes a second
const RESEND_MS = 4000; // an answer that was not taken goes out again; the same answer twice is one
const MORE_MS = 250; // until the server is asked again for items that it is still preparing
const HOLD_MS = 240_000; // who looks at an item for long keeps their hold on it
const LATE_MS = 3000; // from then on it is said aloud that answers wait
const BEHIND = 50; // answers that can be taken back without asking the server first
const GAP = 12;
const NARROW = 640;
const views = new WeakMap(); // the view of each place, kept while the page reruns

const random = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
// Safari has none
const requestIdleCallback = window.requestIdleCallback ?? ((call) => setTimeout(call, 50));
const cancelIdleCallback = window.cancelIdleCallback ?? clearTimeout;
const shorten = (text, length) => (text.length > length ? `${text.slice(0, length - 1).trimEnd()}…` : text);
const number = (value) => Math.round(value).toLocaleString("en");
const plural = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;

const typing = (event) =>
  event
    .composedPath()
    .some((node) => node.isContentEditable || /^(TEXTAREA|SELECT)$/.test(node.tagName) ||
      (node.tagName === "INPUT" && !/^(range|checkbox|radio|button)$/.test(node.type)));

const taken = (event, root) => {
  const path = event.composedPath();
  return !path.includes(root) && path.some((node) => /^(slider|listbox|combobox|option|radio|menu|dialog)$/.test(node.role ?? ""));
};

function button(title, key, name, onclick, properties = {}) {
  const node = element(
    "button",
    { type: "button", ...properties },
    key ? element("kbd", { textContent: name, aria: { hidden: "true" } }) : null,
    element("span", { textContent: title }),
  );
  if (key) node.setAttribute("aria-keyshortcuts", key);
  node.addEventListener("click", (event) => {
    onclick();
    // a button that was clicked would answer to the space key from then on
    if (event.detail > 0) node.blur();
  });
  return node;
}

class Labelling {
  constructor() {
    this.pictures = new Pictures();
    this.zoom = new Zoom(() => this.paint());
    this.mode = "side";
    this.gain = 1;
    this.swipe = 0.5;
    this.onion = 0.5;
    this.first = true;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.playing = !this.still.matches;
    this.session = null;
    this.outbox = [];
    this.behind = [];
    this.item = null;
    this.candidate = 0;
    this.pushed = this.active = Date.now();
    this.build();
  }

  // ---- what stands where

  build() {
    this.done = element("progress", { max: 1, value: 0, aria: { label: "Progress of the queue" } });
    this.pace = element("span", { className: "pace" });
    this.waiting = element("span", { className: "outbox" });
    this.late = element("span", { className: "hidden", role: "status" });
    this.told = element("p", { className: "hidden", role: "status" });
    this.caption = element("h1", { dir: "auto" });
    this.whole = button("Whole caption", "t", "t", () => this.unfold(), { hidden: true });
    this.why = element("p", { className: "why" });
    this.chips = element("span", { className: "chips" });
    this.alerts = element("div", { className: "alerts", role: "alert" });
    this.both = element("div", { className: "both", role: "group", aria: { label: "The two answers" } });
    this.strip = element("div", { className: "strip", role: "group", aria: { label: "Candidates" } });
    this.about = element("p", { className: "about" });
    this.controls = element("div", { className: "controls" });
    this.panes = Array.from({ length: 4 }, () => new Pane(this.zoom));
    together(this.panes, this.zoom, (pane, [x]) => this.drag(pane, x));
    this.big = element("div", { className: "big" });
    this.small = element("div", { className: "small" });
    this.stage = element("div", { className: "panes" }, this.big, this.small);
    this.empty = element("div", { className: "empty" });
    this.labels = element("div", { className: "labels", role: "group", aria: { label: "Answer" } });
    this.last = element("p", { className: "last" });
    this.modes = MODES.map(([mode, key, title]) =>
      button(title, key, key, () => this.look(mode), { dataset: { mode } }),
    );
    const bar = element(
      "div",
      { className: "bar", role: "toolbar", aria: { label: "Way of comparing" } },
      ...this.modes,
      button("Pixels", "z", "z", () => this.pixels()),
      this.controls,
    );
    this.work = element(
      "div",
      { className: "work" },
      element("div", { className: "head" }, this.caption, element("div", {}, this.whole, this.why, this.chips)),
      this.both,
      bar,
      this.stage,
      element("div", { className: "candidates" }, this.strip, this.about),
      this.labels,
    );
    this.root = element(
      "div",
      { className: "root", tabIndex: -1 },
      element(
        "div",
        { className: "top" },
        this.done,
        this.pace,
        this.waiting,
        element(
          "span",
          { className: "more" },
          button("Guidelines", "h", "h", () => this.open(this.guidelines)),
          button("Keys", "?", "?", () => this.open(this.keys)),
          button("Fill the screen", "l", "l", () => this.fill()),
        ),
      ),
      this.alerts,
      this.work,
      this.empty,
      this.last,
      this.told,
      this.late,
    );
    this.note = element("input", { type: "text", maxLength: 1000, autocomplete: "off" });
    this.flag = this.dialog(
      "Flag this item",
      element(
        "form",
        {},
        element("label", {}, element("span", { textContent: "What should others know of it? Enter stores the note, Escape closes." }), this.note),
        element("button", { type: "submit", textContent: "Store the flag" }),
      ),
    );
    this.flag.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.flag.close();
      this.flagged();
    });
    this.keys = this.dialog("Keys", element("dl", { className: "keys" }, ...KEYS.flatMap(([key, what]) => [
      element("dt", {}, element("kbd", { textContent: key })),
      element("dd", { textContent: what }),
    ])));
    this.guidelines = this.dialog("Guidelines", (this.guide = element("div", { className: "guide" })));
    this.editor = new MaskEditor(this);
    this.work.append(this.editor.node);
  }

  dialog(title, ...children) {
    const node = element(
      "dialog",
      { aria: { label: title } },
      element("header", {}, element("h3", { textContent: title }), element("button", { type: "button", textContent: "Close", className: "close" })),
      ...children,
    );
    node.querySelector(".close").addEventListener("click", () => node.close());
    node.addEventListener("close", () => this.root.focus({ preventScroll: true }));
    this.root.append(node);
    return node;
  }

  open(dialog) {
    if (dialog === this.guidelines) this.fillGuidelines();
    if (!dialog.open) dialog.showModal();
    if (dialog === this.flag) this.note.focus();
  }

  fill() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.root.requestFullscreen?.().catch(() => {});
  }

  attach(parent) {
    if (this.root.parentNode !== parent) {
      parent.querySelector(".root")?.remove();
      parent.append(this.root);
    }
    this.detach?.();
    const stop = new AbortController();
    const { signal } = stop;
    // before Streamlit's own keys
    window.addEventListener("keydown", (event) => this.key(event), { signal, capture: true });
    window.addEventListener("resize", () => this.arrange(), { signal });
    document.addEventListener("fullscreenchange", () => requestAnimationFrame(() => this.arrange()), { signal });
    window.addEventListener("beforeunload", (event) => this.outbox.length && event.preventDefault(), { signal });
    const sized = new ResizeObserver(() => this.arrange());
    sized.observe(this.root);
    for (const name of ["keydown", "pointermove", "wheel"]) {
      window.addEventListener(name, () => (this.active = Date.now()), { signal, capture: true, passive: true });
    }
    const again = setInterval(() => {
      const held = Date.now() - this.pushed > HOLD_MS && Date.now() - this.active < HOLD_MS;
      const { done, total } = this.data.progress;
      const others = !this.item && done < total && !document.hidden; // what they hold may come free
      if (this.outbox.length || held || others) this.push();
    }, RESEND_MS);
    const said = setInterval(() => this.sayLate(), 1000);
    const blink = setInterval(() => this.blink(), BLINK_MS);
    this.detach = () => {
      clearTimeout(this.asking);
      stop.abort();
      sized.disconnect();
      for (const timer of [again, said, blink]) clearInterval(timer);
    };
  }

  // ---- what comes from the server and goes to it

  update(data, setStateValue) {
    this.data = data;
    this.tell = setStateValue;
    if (data.session !== this.session) this.begin(data.session);
    this.settle(data.acks);
    this.buttons();
    this.done.max = Math.max(1, data.progress.total);
    this.done.value = data.progress.done;
    this.pace.textContent = data.progress.text;
    this.show();
    this.pictures.take(data.pictures).then(() => {
      this.pictures.forget(new Set(this.needed()));
      this.show();
      this.root.dataset.ahead = this.todo().filter((item) => this.ready(item, item.candidates[0] ?? null)).length;
      this.thumbnails();
      this.editor.arrived();
      if (this.guidelines.open) this.fillGuidelines();
      this.ask();
    });
  }

  begin(session) {
    this.session = session;
    this.behind = [];
    this.item = this.drawn = null;
    let kept = [];
    try {
      kept = JSON.parse(sessionStorage.getItem(this.shelf()) ?? "[]");
    } catch {
      // nothing that this page wrote
    }
    this.outbox = Array.isArray(kept) ? kept : [];
    if (this.outbox.length) this.push();
  }

  shelf() {
    return `verbatim answers ${this.session}`;
  }

  settle(acks) {
    for (const entry of this.outbox.filter(({ answer_id }) => answer_id in acks)) {
      const { stored, message, item_id, reveal } = acks[entry.answer_id];
      if (!stored) {
        this.behind = this.behind.filter(({ answer_id }) => answer_id !== entry.answer_id);
        this.alarm(entry, message);
      } else if (entry.action === "undo" && !entry.item_id) {
        this.wanted = item_id;
      } else if (reveal) {
        this.last.textContent = reveal;
      }
    }
    this.outbox = this.outbox.filter(({ answer_id }) => !(answer_id in acks));
    this.keep();
  }

  keep() {
    try {
      sessionStorage.setItem(this.shelf(), JSON.stringify(this.outbox));
    } catch {
      // private windows may refuse; the answers are still in memory
    }
    const count = this.outbox.length;
    this.waiting.textContent = count ? `${plural(count, "answer", "answers")} not stored yet` : "";
    if (!count) this.late.textContent = "";
  }

  sayLate() {
    const oldest = this.outbox[0];
    if (!oldest || Date.now() - oldest.at < LATE_MS) return;
    const words = `${plural(this.outbox.length, "answer", "answers")} not stored yet. The server does not answer; they are kept in this tab and sent again. Leave it open.`;
    if (this.late.textContent !== words) this.late.textContent = words;
    this.waiting.textContent = words;
  }

  push() {
    this.pushed = Date.now();
    const outbox = this.outbox.map(({ shown, ...entry }) => entry);
    this.tell("sent", { outbox, have: this.pictures.keys() });
  }

  enter(entry) {
    const whole = { answer_id: random(), at: Date.now(), ...entry };
    this.outbox.push(whole);
    this.keep();
    // after the next item has been painted: what the server sends back must not come between
    requestAnimationFrame(() => setTimeout(() => this.push()));
    return whole;
  }

  needed() {
    const { items, guidelines, differences } = this.data;
    const examples = guidelines.flatMap((section) => section.examples.flatMap(({ pictures }) => pictures));
    return [...items.flatMap(parts), ...examples, ...Object.values(differences)];
  }

  ask() {
    const missing = this.needed().filter((key) => !this.pictures.has(key)).join();
    clearTimeout(this.asking);
    if (missing && missing !== this.asked) this.push();
    else if (this.data.preparing) this.asking = setTimeout(() => this.push(), MORE_MS);
    this.asked = missing;
  }

  alarm(entry, message) {
    const line = element(
      "div",
      { className: "alarm" },
      element("p", {}, element("strong", { textContent: NOT_STORED[entry.action] ?? "Something was not stored. " }),
        element("span", { textContent: entry.caption ? `“${shorten(entry.caption, 80)}” `: "", dir: "auto" }), message),
      element("button", { type: "button", textContent: "Understood" }),
    );
    line.querySelector("button").addEventListener("click", () => {
      line.remove();
      this.arrange();
    });
    this.alerts.append(line);
  }

  // ---- which item

  // The server's items, with what was answered here and is not stored yet taken out, and what was taken back put in.
  todo() {
    let items = [...this.data.items];
    const brought = new Map(this.behind.map(({ item }) => [item.id, item]));
    for (const { action, item_id, shown } of this.outbox) {
      if (action === "undo") {
        const item = shown ?? brought.get(item_id);
        if (item) items = [item, ...items.filter(({ id }) => id !== item.id)];
      } else if (MOVES_ON.has(action)) {
        items = items.filter(({ id }) => id !== item_id);
      }
    }
    return items;
  }

  show() {
    const todo = this.todo();
    const wanted = todo.find(({ id }) => id === this.wanted);
    if (wanted) this.wanted = null;
    const same = todo.find(({ id }) => id === this.item?.id);
    const item = wanted ?? same ?? todo[0] ?? null;
    this.finished(item);
    if (!item) return;
    if (item.id !== this.item?.id) {
      this.item = item;
      this.candidate = 0;
      this.since = null;
      this.zoom.reset();
      this.first = true;
      this.editor.close();
    } else {
      this.item = item;
    }
    // most of what the server says changes nothing that is shown
    const { told, both, generated, candidates } = item;
    const drawn = JSON.stringify([item.id, told, both, generated, candidates, this.flagOf(item), this.data.blur, this.ready()]);
    if (drawn === this.drawn) return;
    this.draw();
    this.drawn = drawn;
  }

  finished(item) {
    const none = item === null;
    if (none) this.item = this.drawn = null;
    this.work.hidden = none;
    this.empty.hidden = !none;
    if (!none) return;
    delete this.root.dataset.item;
    const words = this.outbox.length ? "Storing the last answers …" : this.data.preparing ? "The next items are being prepared …" : this.data.nothing;
    if (this.empty.textContent !== words) this.empty.textContent = words;
  }

  chosen() {
    return this.item.candidates[this.candidate] ?? null;
  }

  unfold() {
    this.caption.classList.toggle("whole");
    this.arrange();
  }

  ready(item = this.item, candidate = this.chosen()) {
    return [item.generated, ...(candidate ? sides(candidate) : [])].every((key) => !key || this.pictures.has(key));
  }

  // ---- drawing

  draw() {
    const { item } = this;
    if (this.caption.textContent !== item.caption) {
      this.caption.textContent = item.caption;
      this.caption.classList.remove("whole");
      this.whole.hidden = this.caption.scrollHeight <= this.caption.clientHeight + 2;
    }
    this.why.textContent = item.why;
    const note = this.flagOf(item);
    this.flagButton.lastChild.textContent = note === null ? "Flag" : "Unflag";
    this.chips.replaceChildren(
      ...(note === null ? [] : [element("span", { className: "chip flag", textContent: note ? `flagged: ${note}` : "flagged", dir: "auto" })]),
      ...item.told.map((text) => element("span", { className: "chip", textContent: text })),
    );
    this.drawBoth();
    this.drawStrip();
    this.drawModes();
    const ready = this.ready();
    this.stage.classList.toggle("loading", !ready);
    if (!ready) {
      delete this.root.dataset.item;
      return;
    }
    this.drawPanes();
    this.arrange();
    this.say();
    this.root.dataset.item = item.id;
    this.since ??= performance.now();
  }

  say() {
    const { item } = this;
    const candidate = this.chosen();
    const words = `${shorten(item.caption, 120)}. ${item.both.length ? "Two answers differ. " : ""}` +
      (candidate ? `Candidate ${this.candidate + 1} of ${item.candidates.length}: ${candidate.words}.` : "No candidate.");
    if (this.told.textContent !== words) this.told.textContent = words;
  }

  drawBoth() {
    this.both.hidden = !this.item.both.length;
    this.both.replaceChildren(
      ...this.item.both.map(({ who, label, image_id, note }) => {
        const at = this.item.candidates.findIndex((candidate) => candidate.image_id === image_id);
        const look = at < 0 ? null : button(`Look at candidate ${at + 1}`, null, "", () => this.turn(at - this.candidate));
        return element(
          "div",
          { className: "answer" },
          element("strong", { textContent: label }),
          element("span", { textContent: `${this.title(label)}, says ${who}` }),
          note ? element("q", { textContent: note, dir: "auto" }) : null,
          look,
        );
      }),
    );
  }

  title(label) {
    return this.data.labels.find((entry) => entry.label === label)?.title ?? label;
  }

  drawStrip() {
    const { candidates } = this.item;
    const shown = `${this.item.id} ${candidates.length}`;
    if (this.strip.dataset.item !== shown) {
      this.strip.dataset.item = shown;
      this.strip.replaceChildren(
        ...candidates.map((candidate, at) => {
          const node = element(
            "button",
            { type: "button", title: candidate.words, dataset: { at }, aria: { label: `Candidate ${at + 1}: ${candidate.words}` } },
            element("canvas", { width: 96, height: 96, aria: { hidden: "true" } }),
          );
          node.addEventListener("click", (event) => {
            this.turn(at - this.candidate);
            if (event.detail > 0) node.blur();
          });
          return node;
        }),
      );
      this.thumbnails();
    }
    for (const node of this.strip.children) node.setAttribute("aria-pressed", String(Number(node.dataset.at) === this.candidate));
    const candidate = this.chosen();
    this.about.replaceChildren(
      ...(candidate
        ? [
            element("strong", { textContent: `${this.candidate + 1} of ${candidates.length} · ${candidate.words}` }),
            element("span", { className: "quiet", textContent: ` ${candidate.caption}`, dir: "auto", title: candidate.caption }),
            element("span", { className: "quiet", textContent: ` ${candidate.attribution}`, dir: "auto", title: candidate.attribution }),
          ]
        : [element("span", { textContent: "No training image was retrieved for this item." })]),
    );
  }

  thumbnails() {
    if (!this.item) return;
    for (const node of this.strip.children) {
      const picture = this.pictures.get(this.item.candidates[Number(node.dataset.at)]?.picture);
      const context = node.firstChild.getContext("2d");
      if (picture) context.drawImage(picture, 0, 0, 96, 96);
    }
  }

  allowed(mode, item = this.item, candidate = this.chosen()) {
    if (mode === "side") return true;
    if (mode === "masked") return Boolean(candidate?.mask && item.generated);
    return Boolean(candidate?.picture && item.generated);
  }

  shownMode(item = this.item, candidate = this.chosen()) {
    return this.allowed(this.mode, item, candidate) ? this.mode : "side";
  }

  drawModes() {
    const mode = this.shownMode();
    for (const node of this.modes) {
      node.disabled = !this.allowed(node.dataset.mode);
      node.title = node.disabled && node.dataset.mode === "masked" ? this.data.no_mask : "";
      node.setAttribute("aria-pressed", String(node.dataset.mode === mode));
    }
    if (this.controls.dataset.mode !== mode) {
      this.controls.dataset.mode = mode;
      this.controls.replaceChildren(...this.controlsOf(mode));
    }
  }

  controlsOf(mode) {
    const range = (label, value, set) => {
      const input = element("input", { type: "range", min: 0, max: 100, value: 100 * value });
      input.addEventListener("input", () => {
        set(Number(input.value) / 100);
        this.drawPanes();
      });
      return [element("label", {}, element("span", { textContent: label }), input)];
    };
    if (mode === "swipe") return range("Border", this.swipe, (value) => (this.swipe = value));
    if (mode === "onion") return range("Strength", this.onion, (value) => (this.onion = value));
    if (mode === "blink") {
      const play = button(this.playing ? "Pause" : "Play", null, "", () => {
        this.playing = !this.playing;
        play.textContent = this.playing ? "Pause" : "Play";
      });
      return [play];
    }
    const gain = button(`Brightness ×${this.gain}`, "g", "g", () => this.brighter());
    return [(this.gainButton = gain)];
  }

  brighter() {
    this.gain = GAINS[(GAINS.indexOf(this.gain) + 1) % GAINS.length];
    if (this.gainButton) this.gainButton.lastChild.textContent = `Brightness ×${this.gain}`;
    this.drawPanes();
  }

  // The panes of a way of comparing: large ones, and small ones beside them for what must stay in sight.
  layout(item, candidate, mode) {
    const { pictures } = this;
    const generated = {
      label: "Generated picture",
      alt: `Generated picture, seed ${item.seed}${this.blurred()}`,
      note: item.generated ? `seed ${item.seed}` : item.no_picture,
      layers: item.generated ? [{ image: pictures.get(item.generated) }] : [],
    };
    if (!candidate) return [[generated], []];
    const training = {
      label: candidate.kind === "template" ? "Template" : "Training image",
      alt: `${candidate.words}, with the caption: ${shorten(candidate.caption, 200)}${this.blurred()}`,
      note: candidate.picture ? candidate.words : candidate.no_picture,
      layers: candidate.picture ? [{ image: pictures.get(candidate.picture) }] : [],
    };
    if (!item.generated || !candidate.picture) return [[generated, training], []];
    const other = candidate.picture;
    const distance = (value) => (this.data.blur ? "" : `distance ${number(value)}`);
    const difference = () => ({
      label: "Difference",
      alt: "Absolute difference between the generated picture and the training image; black is equal",
      note: distance(pictures.distance(item.generated, other)),
      layers: [{ image: pictures.difference(item.generated, other), gain: this.gain }],
    });
    const masked = () => ({
      label: "Difference inside the mask",
      alt: "Absolute difference inside the mask; black is equal, or outside the mask",
      note: distance(pictures.maskedDistance(item.generated, candidate.masked_with, candidate.mask)),
      layers: [
        { image: pictures.difference(item.generated, candidate.masked_with, candidate.mask), gain: this.gain },
        { path: pictures.outline(candidate.mask) },
      ],
    });
    const mask = () => ({
      label: "Mask",
      alt: "The mask: white where the family of training images is unchanged",
      note: candidate.mask_note,
      layers: [{ image: pictures.white(candidate.mask) }],
    });
    const both = { label: `${generated.label} · ${training.label}`, alt: `${generated.alt}; ${training.alt}` };
    const [top] = generated.layers;
    const [below] = training.layers;
    const lined = (pane) => ({ ...pane, layers: [...pane.layers, { path: pictures.outline(candidate.mask) }] });
    switch (mode) {
      case "swipe":
        return [[{ ...both, note: "generated on the left", layers: [below, { ...top, to: this.swipe }], handle: this.swipe }], [generated, training]];
      case "onion":
        return [[{ ...both, layers: [below, { ...top, alpha: this.onion }] }], [generated, training]];
      case "blink":
        return [[{ ...(this.first ? generated : training), chip: this.first ? "1" : "2" }], [generated, training]];
      case "difference":
        return [[difference()], [generated, training]];
      case "masked":
        return [[masked()], [lined(generated), lined(training)]];
      default:
        return [[generated, training], candidate.mask ? [mask(), { ...masked(), label: "Inside mask" }] : [difference()]];
    }
  }

  blurred() {
    return this.data.blur ? " (blurred)" : "";
  }

  drawPanes() {
    if (!this.item || !this.ready()) return;
    const [big, small] = this.layout(this.item, this.chosen(), this.shownMode());
    const used = [...big, ...small];
    used.forEach((content, at) => this.panes[at].show(content));
    const nodes = this.panes.slice(0, used.length).map(({ node }) => node);
    place_children(this.big, nodes.slice(0, big.length));
    place_children(this.small, nodes.slice(big.length));
    this.counts = [big.length, small.length];
  }

  // What the next item and the next candidate are drawn with is computed while nobody waits.
  foresee() {
    cancelIdleCallback(this.idle);
    this.idle = requestIdleCallback(() => {
      if (!this.item) return;
      const { candidates } = this.item;
      const next = this.todo().filter(({ id }) => id !== this.item.id).slice(0, 2);
      const views = next.map((item) => [item, item.candidates[0] ?? null]);
      if (candidates.length > 1) views.push([this.item, candidates[(this.candidate + 1) % candidates.length]]);
      for (const [item, candidate] of views) {
        if (this.ready(item, candidate)) this.layout(item, candidate, this.shownMode(item, candidate));
      }
    });
  }

  // The side of the large panes: as large as the window leaves room for.
  arrange() {
    this.foresee();
    if (this.editor.opened) return this.editor.arrange();
    if (!this.item || !this.counts || !this.root.isConnected) return;
    const [big, small] = this.counts;
    const width = this.stage.clientWidth;
    const captioned = 26;
    const height = Math.max(200, this.room() - captioned);
    const narrow = width < NARROW;
    const beside = small && !narrow ? 0.5 : 0;
    const side = Math.floor(
      Math.min(narrow ? Math.max(height, width / big) : height, (width - GAP * (big - 1 + (beside ? 1 : 0))) / (big + beside)),
    );
    const little = Math.floor(narrow ? Math.min(150, (width - GAP) / 2) : Math.min(side / 2, (side - captioned - 8) / 2));
    this.stage.classList.toggle("narrow", narrow);
    this.panes.forEach((pane, at) => at < big + small && pane.resize(at < big ? side : little));
  }

  // Height that is left for the panes, from the top of the view to the end of the window.
  room(stage = this.stage) {
    const full = document.fullscreenElement;
    let above = 16;
    if (!full) {
      above = this.root.getBoundingClientRect().top;
      for (let node = this.root.getRootNode().host; node; node = node.parentElement) above += node.scrollTop;
    }
    return window.innerHeight - above - (this.root.offsetHeight - stage.offsetHeight) - 16;
  }

  paint() {
    for (const pane of this.panes ?? []) pane.paint();
    this.editor?.paint();
  }

  blink() {
    if (this.item && this.shownMode() === "blink" && this.playing && !this.editor.opened) this.swap();
  }

  swap() {
    this.first = !this.first;
    this.drawPanes();
  }

  drag(pane, x) {
    if (this.shownMode() !== "swipe" || pane !== this.panes[0]) return false;
    this.swipe = Math.min(1, Math.max(0, x));
    const input = this.controls.querySelector("input");
    if (input) input.value = 100 * this.swipe;
    this.drawPanes();
    return true;
  }

  // ---- what the keys do

  look(mode) {
    if (!this.allowed(mode)) return;
    if (mode === "blink" && this.mode === "blink") {
      this.playing = false;
      this.controls.dataset.mode = "";
      this.swap();
    }
    this.mode = mode;
    this.drawModes();
    this.drawPanes();
    this.arrange();
  }

  pixels() {
    if (this.zoom.scale > 1) return this.zoom.reset();
    const pane = this.panes[0].surface;
    this.zoom.by((PIXELS * SIZE * (window.devicePixelRatio || 1)) / pane.width);
  }

  turn(by) {
    const count = this.item.candidates.length;
    if (count < 2) return;
    this.candidate = (((this.candidate + by) % count) + count) % count;
    this.draw();
  }

  seconds() {
    return this.since === null ? 0 : Math.round(performance.now() - this.since) / 1000;
  }

  answer(label) {
    if (!this.data.may_label || this.since === null || !this.ready()) return; // nobody judges what is not painted yet
    if (this.data.blur) {
      this.last.textContent = "The pictures are blurred: switch off “Blur pictures” in the sidebar, look, and answer then.";
      return;
    }
    const { item } = this;
    const candidate = this.chosen();
    const entry = this.enter({
      action: item.both.length ? "adjudicate" : "label",
      item_id: item.id,
      caption: shorten(item.caption, 200),
      label,
      image_id: candidate?.image_id ?? null,
      template_id: candidate?.template_id ?? null,
      mask_version: candidate?.mask_version ?? null,
      seconds: this.seconds(),
    });
    this.behind = [...this.behind, { item, answer_id: entry.answer_id }].slice(-BEHIND);
    this.last.textContent = `${label} for “${shorten(item.caption, 80)}”`;
    this.show();
  }

  skip() {
    if (!this.data.may_label) return;
    const { item } = this;
    const entry = this.enter({ action: "skip", item_id: item.id, caption: shorten(item.caption, 200) });
    this.behind = [...this.behind, { item, answer_id: entry.answer_id, skipped: true }].slice(-BEHIND);
    this.last.textContent = `Skipped “${shorten(item.caption, 80)}”. The key a offers again what you skipped.`;
    this.show();
  }

  undo() {
    if (!this.data.may_label) return;
    const before = this.behind.pop();
    this.enter({ action: "undo", item_id: before?.item.id ?? null, caption: shorten(before?.item.caption ?? "", 200), shown: before?.item });
    this.last.textContent = before ? `Taken back: “${shorten(before.item.caption, 80)}”` : "Taking back your last answer …";
    this.wanted = before?.item.id ?? null;
    this.show();
  }

  flagged() {
    const { item } = this;
    this.enter({ action: "flag", item_id: item.id, caption: shorten(item.caption, 200), note: this.note.value.trim() });
    this.note.value = "";
    this.last.textContent = `Flagged: “${shorten(item.caption, 80)}”`;
    this.show();
  }

  // The note of one's own flag, empty where it has none; null without a flag. What is not stored yet goes before.
  flagOf(item) {
    const entry = this.outbox.findLast(({ action, item_id }) => item_id === item.id && /^(un)?flag$/.test(action));
    if (entry) return entry.action === "flag" ? entry.note : null;
    return item.flag;
  }

  flagKey() {
    if (!this.data.may_label || !this.item) return;
    if (this.flagOf(this.item) === null) return this.open(this.flag);
    this.enter({ action: "unflag", item_id: this.item.id, caption: shorten(this.item.caption, 200) });
    this.last.textContent = `Flag taken off: “${shorten(this.item.caption, 80)}”`;
    this.show();
  }

  saveMask(steps, candidate) {
    this.enter({
      action: "mask",
      item_id: this.item.id,
      caption: shorten(this.item.caption, 200),
      image_id: candidate.image_id,
      template_id: candidate.template_id,
      mask_version: candidate.mask_version,
      steps,
    });
    this.last.textContent = "The mask is on its way to the library as a new version.";
  }

  buttons() {
    const { labels, may_label } = this.data;
    const shown = JSON.stringify([labels, may_label]);
    if (this.labels.dataset.shown === shown) return;
    this.labels.dataset.shown = shown;
    const disabled = !may_label;
    this.labels.replaceChildren(
      ...labels.map(({ key, label, title, help }) =>
        button(`${label} ${title}`, key, key, () => this.item && this.answer(label), { className: "label", title: help, disabled }),
      ),
      button("Skip", "Space", "space", () => this.item && this.skip(), { disabled }),
      button("Undo", "Backspace", "⌫", () => this.undo(), { disabled }),
      (this.flagButton = button("Flag", "f", "f", () => this.flagKey(), { disabled })),
      button("Mask", "m", "m", () => this.item && this.editor.open(), {}),
    );
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const dialog = [this.flag, this.keys, this.guidelines].find(({ open }) => open);
    if (dialog) {
      const own = { h: this.guidelines, "?": this.keys, Escape: dialog }[event.key];
      if (own !== dialog || (typing(event) && event.key !== "Escape")) return;
      event.preventDefault(); // closed now, not once the browser gets to it: the next key may be under way
      event.stopImmediatePropagation();
      dialog.close();
      return;
    }
    if (typing(event) || taken(event, this.root)) return;
    const [target] = event.composedPath();
    // space and Enter press the button that the keyboard is on
    if ((event.key === " " || event.key === "Enter") && target.tagName === "BUTTON") return;
    if (target.type === "range" && event.key.startsWith("Arrow")) return;
    const act = this.editor.opened ? this.editor.action(event) : this.action(event);
    if (!act) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    act();
  }

  action({ key, shiftKey, repeat }) {
    const always = {
      h: () => this.open(this.guidelines),
      "?": () => this.open(this.keys),
      l: () => this.fill(),
      Backspace: () => repeat || this.undo(),
    };
    if (always[key]) return always[key];
    if (!this.item) return null;
    const label = this.data.labels.find((entry) => entry.key === key)?.label;
    if (label) return () => repeat || this.answer(label);
    const mode = MODES.find(([, letter]) => letter === key)?.[0];
    if (mode) return () => this.look(mode);
    const step = shiftKey ? 0.1 : 0;
    const keys = {
      " ": () => repeat || this.skip(),
      f: () => this.flagKey(),
      m: () => this.editor.open(),
      t: () => this.whole.hidden || this.unfold(),
      g: () => this.brighter(),
      z: () => this.pixels(),
      "+": () => this.zoom.by(1.5),
      "=": () => this.zoom.by(1.5),
      "-": () => this.zoom.by(1 / 1.5),
      0: () => this.zoom.reset(),
      ArrowLeft: () => (step ? this.zoom.move(step, 0) : this.turn(-1)),
      ArrowRight: () => (step ? this.zoom.move(-step, 0) : this.turn(1)),
      ArrowUp: step && (() => this.zoom.move(0, step)),
      ArrowDown: step && (() => this.zoom.move(0, -step)),
    };
    return keys[key] || null;
  }

  // ---- guidelines

  fillGuidelines() {
    this.guide.replaceChildren(
      ...this.data.guidelines.flatMap(({ title, blocks, examples }) => [
        element("h4", { textContent: title }),
        ...blocks.map((block) =>
          Array.isArray(block)
            ? element("ul", {}, ...block.map((text) => element("li", { textContent: text })))
            : element("p", { textContent: block }),
        ),
        ...examples.map((example) => this.example(example)),
      ]),
    );
  }

  example({ words, pictures, alts }) {
    return element(
      "figure",
      { className: "example" },
      ...pictures.map((key, at) => {
        const surface = element("canvas", { width: SIZE, height: SIZE, role: "img", aria: { label: alts[at] } });
        const picture = this.pictures.get(key);
        if (picture) surface.getContext("2d").drawImage(picture, 0, 0, SIZE, SIZE);
        return surface;
      }),
      element("figcaption", { textContent: words }),
    );
  }
}

const MOVES_ON = new Set(["label", "adjudicate", "skip"]);
const NOT_STORED = {
  label: "This answer was not stored. ",
  adjudicate: "This decision was not stored. ",
  skip: "This item was not skipped. ",
  undo: "Nothing was taken back. ",
  flag: "This flag was not stored. ",
  unflag: "This flag was not taken off. ",
  mask: "This mask was not saved. ",
};
const KEYS = [
  ["1 2 3 4 5", "answer: MV, RV, TV, N, patch"],
  ["space", "skip"],
  ["a", "offer again what you skipped"],
  ["backspace", "take back the last answer"],
  ["← →", "the candidate before, the next candidate"],
  ["s w o b d x", "side by side, swipe, onion skin, blink, difference, masked difference"],
  ["z", "zoom to pixels, and back"],
  ["+ − 0", "larger, smaller, whole picture; also with the wheel, and drag to move"],
  ["shift + arrows", "move while zoomed"],
  ["g", "brightness of differences"],
  ["t", "the whole caption, where it is long"],
  ["f", "flag, with a note; on a flagged item: take the flag off"],
  ["m", "mask editor"],
  ["h", "guidelines with examples"],
  ["l", "fill the screen, and back"],
  ["?", "this list"],
];

// keys of the pictures that a candidate is shown with
const sides = ({ picture, mask, masked_with, mask_found }) => [picture, mask, mask && masked_with, mask_found];
const parts = (item) => [item.generated, ...item.candidates.flatMap(sides)].filter(Boolean);

function place_children(parent, nodes) {
  if (nodes.length === parent.children.length && nodes.every((node, at) => parent.children[at] === node)) return;
  parent.replaceChildren(...nodes);
}

export default function ({ data, parentElement, setStateValue }) {
  const view = views.get(parentElement) ?? new Labelling();
  views.set(parentElement, view);
  view.attach(parentElement);
  view.update(data, setStateValue);
  return () => view.detach();
}
