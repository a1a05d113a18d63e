// One-step pictures above full samples, one column a seed, with heatmaps laid over the one-step pictures.
const views = new WeakMap(); // what the viewer has set, kept while the page reruns

function element(tag, properties = {}, ...children) {
  const { dataset, aria, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  Object.assign(node.dataset, dataset);
  for (const [name, value] of Object.entries(aria ?? {})) node.setAttribute(`aria-${name}`, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function full(column) {
  if (!column.full) {
    return element("div", { className: "stage" }, element("div", { className: "waiting", textContent: column.waiting }));
  }
  return element(
    "div",
    { className: column.verified ? "stage verified" : "stage" },
    element("img", { src: column.full, alt: column.full_alt }),
  );
}

export default function ({ data, parentElement, setStateValue }) {
  const view = views.get(parentElement) ?? {};
  views.set(parentElement, view);
  view.overlay = data.overlay;
  view.opacity = data.opacity;

  const sentence = element("p", { className: "sentence", role: "status" });
  const low = element("span", {});
  const high = element("span", {});
  const bar = element("i", {});
  bar.style.background = `linear-gradient(90deg, ${data.gradient.join(", ")})`;
  const scale = element("div", { className: "scale" }, low, bar, high);
  const heats = [];

  const sections = data.columns.map((column) => {
    const heat = element("img", { className: "heat", alt: "" });
    heats.push([heat, column]);
    return element(
      "section",
      {},
      element("h4", { textContent: column.title }),
      element(
        "figure",
        {},
        element("div", { className: "stage" }, element("img", { src: column.one, alt: column.one_alt }), heat),
        element("figcaption", {}, element("span", { textContent: data.labels.one })),
      ),
      element(
        "figure",
        {},
        full(column),
        element(
          "figcaption",
          {},
          element("span", { textContent: data.labels.full }),
          column.note ? element("span", { textContent: column.note }) : null,
          column.verified ? element("span", { className: "chip", textContent: "verified" }) : null,
        ),
      ),
    );
  });

  const slider = element("input", { type: "range", min: 0, max: 100, step: 5, value: view.opacity });
  const opacity = element("label", {}, element("span", { textContent: "Opacity" }), slider);
  const buttons = data.overlays.map((overlay) => {
    const button = element("button", { type: "button", textContent: overlay.title, dataset: { id: overlay.id } });
    button.addEventListener("click", () => {
      show(overlay.id);
      setStateValue("overlay", overlay.id);
    });
    return button;
  });
  slider.addEventListener("input", () => {
    view.opacity = Number(slider.value);
    show(view.overlay);
  });
  slider.addEventListener("change", () => setStateValue("opacity", Number(slider.value)));

  function show(id) {
    view.overlay = id;
    const overlay = data.overlays.find((entry) => entry.id === id) ?? data.overlays[0];
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.id === overlay.id));
    for (const [heat, column] of heats) {
      const source = column.heat?.[overlay.id];
      heat.hidden = !source;
      if (source && heat.src !== source) heat.src = source;
      heat.style.opacity = view.opacity / 100;
    }
    sentence.textContent = overlay.sentence;
    scale.hidden = opacity.hidden = overlay.id === "none";
    scale.style.display = opacity.style.display = overlay.id === "none" ? "none" : "";
    low.textContent = overlay.low ?? "";
    high.textContent = overlay.high ?? "";
  }

  const root = element(
    "div",
    { className: "root" },
    element(
      "div",
      { className: "controls" },
      element("div", { className: "group", role: "group", aria: { label: "Heatmap" } }, "Heatmap", ...buttons),
      opacity,
      scale,
    ),
    sentence,
    element("div", { className: "grid" }, ...sections),
  );
  parentElement.querySelector(".root")?.remove();
  parentElement.append(root);
  show(view.overlay);
}
