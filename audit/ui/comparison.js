// Two pictures compared in six ways. Everything shown comes from `data`; text goes in as text, never as HTML.
const MODES = [
  ["side", "Side by side"],
  ["swipe", "Swipe"],
  ["blink", "Blink"],
  ["onion", "Onion skin"],
  ["difference", "Difference"],
  ["masked", "Masked difference"],
];
const BLINK_MS = 700; // slower than three flashes a second
const views = new WeakMap(); // what the viewer has set, kept while the page reruns

function element(tag, properties = {}, ...children) {
  const { dataset, style, aria, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  Object.assign(node.dataset, dataset);
  Object.assign(node.style, style);
  for (const [name, value] of Object.entries(aria ?? {})) node.setAttribute(`aria-${name}`, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

const picture = (src, alt) => element("img", { src, alt, draggable: false });

function figure(stage, label, { claim, note, wide } = {}) {
  return element(
    "figure",
    { className: wide ? "wide" : "" },
    stage,
    element(
      "figcaption",
      {},
      element("strong", { textContent: label, dir: "auto" }),
      claim ? element("span", { className: `chip ${claim}`, textContent: claim }) : null,
      note ? element("span", { className: "note", textContent: note }) : null,
    ),
  );
}

const stage = (...children) => element("div", { className: "stage" }, ...children);

function range(label, value, oninput) {
  const input = element("input", { type: "range", min: 0, max: 100, value });
  input.addEventListener("input", () => oninput(Number(input.value)));
  return { input, label: element("label", {}, element("span", { textContent: label }), input) };
}

const draw = {
  side({ one, other }) {
    return [
      element(
        "div",
        { className: "panes" },
        figure(stage(picture(one.src, one.alt)), one.label, one),
        figure(stage(picture(other.src, other.alt)), other.label, other),
      ),
    ];
  },

  swipe({ one, other }, view) {
    const top = picture(one.src, one.alt);
    const handle = element("div", { className: "handle" });
    const area = stage(
      picture(other.src, other.alt),
      top,
      handle,
      element("span", { className: "tag left", textContent: one.short }),
      element("span", { className: "tag right", textContent: other.short }),
    );
    const place = (value) => {
      view.swipe = value;
      top.style.clipPath = `inset(0 ${100 - value}% 0 0)`;
      handle.style.left = `${value}%`;
    };
    const slider = range("Border", view.swipe, place);
    area.classList.add("drag");
    const follow = (event) => {
      const box = area.getBoundingClientRect();
      slider.input.value = Math.min(100, Math.max(0, ((event.clientX - box.left) / box.width) * 100));
      place(Number(slider.input.value));
    };
    area.addEventListener("pointerdown", (event) => {
      area.setPointerCapture(event.pointerId);
      follow(event);
    });
    area.addEventListener("pointermove", (event) => {
      if (area.hasPointerCapture(event.pointerId)) follow(event);
    });
    place(view.swipe);
    return [
      figure(area, `${one.label} · ${other.label}`, { ...other, wide: true }),
      element("div", { className: "controls" }, slider.label),
    ];
  },

  blink({ one, other }, view, clean) {
    const top = picture(one.src, one.alt);
    const tag = element("span", { className: "tag left", role: "status" });
    let first = true;
    const show = () => {
      top.style.visibility = first ? "visible" : "hidden";
      tag.textContent = first ? one.short : other.short;
    };
    const swap = () => {
      first = !first;
      show();
    };
    let timer = null;
    const play = element("button", { type: "button" });
    const run = (on) => {
      view.playing = on;
      clearInterval(timer);
      timer = on ? setInterval(swap, BLINK_MS) : null;
      play.textContent = on ? "Pause" : "Play";
    };
    play.addEventListener("click", () => run(!view.playing));
    const once = element("button", { type: "button", textContent: "Switch" });
    once.addEventListener("click", () => {
      run(false);
      swap();
    });
    show();
    run(view.playing);
    clean(() => clearInterval(timer));
    return [
      figure(stage(picture(other.src, other.alt), top, tag), `${one.label} · ${other.label}`, { ...other, wide: true }),
      element("div", { className: "controls" }, play, once),
    ];
  },

  onion({ one, other }, view) {
    const top = picture(one.src, one.alt);
    const place = (value) => {
      view.onion = value;
      top.style.opacity = value / 100;
    };
    place(view.onion);
    return [
      figure(stage(picture(other.src, other.alt), top), `${one.label} over ${other.label}`, { ...other, wide: true }),
      element("div", { className: "controls" }, range("Strength of the generated picture", view.onion, place).label),
    ];
  },

  difference({ difference }, view) {
    const image = picture(difference.src, difference.alt);
    return [
      figure(stage(image), "Absolute difference", { note: "black: equal", wide: true }),
      gain([image], view),
    ];
  },

  masked({ one, template, masked }, view) {
    const image = picture(masked.src, masked.alt);
    const lines = [];
    const framed = (base) => {
      const line = picture(masked.outline, "");
      lines.push(line);
      return stage(base, line);
    };
    const panes = element(
      "div",
      { className: "panes" },
      figure(framed(picture(one.src, one.alt)), one.label, one),
      figure(framed(picture(template.src, template.alt)), template.label, template),
      figure(framed(image), "Difference inside the mask", { note: "black: equal, or outside the mask" }),
    );
    const box = element("input", { type: "checkbox", checked: view.outline });
    const toggle = () => {
      view.outline = box.checked;
      for (const line of lines) line.style.visibility = box.checked ? "visible" : "hidden";
    };
    box.addEventListener("change", toggle);
    toggle();
    const controls = gain([image], view);
    controls.append(element("label", {}, box, element("span", { textContent: "Outline of the mask" })));
    return [panes, controls];
  },
};

function gain(images, view) {
  const group = element("div", { className: "controls", role: "group", aria: { label: "Brightness" } });
  group.append(element("span", { textContent: "Brightness" }));
  const buttons = [1, 2, 4, 8].map((factor) => {
    const button = element("button", { type: "button", textContent: `×${factor}` });
    button.addEventListener("click", () => place(factor));
    return [factor, button];
  });
  const place = (chosen) => {
    view.gain = chosen;
    for (const image of images) image.style.filter = `brightness(${chosen})`;
    for (const [factor, button] of buttons) button.setAttribute("aria-pressed", String(factor === chosen));
  };
  group.append(...buttons.map(([, button]) => button));
  place(view.gain);
  return group;
}

const typing = (event) =>
  event
    .composedPath()
    .some((node) => node.isContentEditable || /^(TEXTAREA|SELECT)$/.test(node.tagName) ||
      (node.tagName === "INPUT" && !/^(range|checkbox|radio|button)$/.test(node.type)));

export default function ({ data, parentElement, setStateValue }) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const view = views.get(parentElement) ?? { swipe: 50, onion: 50, gain: 1, outline: true, playing: !still, mode: null };
  views.set(parentElement, view);
  const allowed = (mode) => mode !== "masked" || data.masked;
  view.mode = data.mode;
  if (!allowed(view.mode)) view.mode = "side";

  let cleaners = [];
  const clean = () => {
    for (const cleaner of cleaners) cleaner();
    cleaners = [];
  };

  const root = element("div", { className: "root" });
  const bar = element("div", { className: "modes", role: "group", aria: { label: "Way of comparing" } });
  const sentence = element("p", { className: "sentence", role: "status" });
  const body = element("div", {});
  const buttons = MODES.map(([mode, title], place) => {
    const button = element(
      "button",
      { type: "button", dataset: { mode }, disabled: !allowed(mode) },
      element("kbd", { textContent: String(place + 1), aria: { hidden: "true" } }),
      title,
    );
    button.setAttribute("aria-keyshortcuts", String(place + 1));
    if (!allowed(mode)) button.title = data.no_mask;
    button.addEventListener("click", () => choose(mode, true));
    return button;
  });

  function choose(mode, tell) {
    if (!allowed(mode)) return;
    view.mode = mode;
    clean();
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    sentence.textContent = data.sentences[mode];
    body.replaceChildren(...draw[mode](data, view, (cleaner) => cleaners.push(cleaner)));
    if (tell) setStateValue("mode", mode);
  }

  const onkey = (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || typing(event)) return;
    const place = Number(event.key) - 1;
    if (Number.isInteger(place) && MODES[place]) choose(MODES[place][0], true);
  };
  document.addEventListener("keydown", onkey);

  bar.append(...buttons);
  root.append(bar, sentence, body);
  parentElement.querySelector(".root")?.remove();
  parentElement.append(root);
  choose(view.mode, false);

  return () => {
    clean();
    document.removeEventListener("keydown", onkey);
  };
}
