// Elements, and lists of them that keep what has the focus.

export const $ = id => document.getElementById(id);

// el makes an element: attributes, and children that are elements or text.
export function el(name, attributes = {}, ...children) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attributes)) {
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else if (v !== undefined) e.setAttribute(k, v);
  }
  e.append(...children);
  return e;
}

const svgSpace = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, ...children) {
  const e = document.createElementNS(svgSpace, name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

// text sets text only where it is another: a screen reader need not hear the same again.
export function text(e, s) {
  if (e.textContent !== s) e.textContent = s;
}

// keyed makes the children of a list those of items, in order. An element stays that of its
// item, for as long as there is one with its key.
export function keyed(list, items, key, make, update) {
  const known = new Map([...list.children].map(e => [e.dataset.key, e]));
  let at = list.firstElementChild;
  for (const item of items) {
    const k = key(item);
    let e = known.get(k);
    known.delete(k);
    if (!e) {
      e = make(item);
      e.dataset.key = k;
    }
    update(e, item);
    if (e === at) at = at.nextElementSibling;
    else list.insertBefore(e, at);
  }
  for (const e of known.values()) e.remove();
}

export function meter(name) {
  return el("div", { class: "meter", role: "meter", "aria-label": name, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 0 }, el("span"));
}

export function setMeter(e, percent, says) {
  e.setAttribute("aria-valuenow", percent);
  e.setAttribute("aria-valuetext", says);
  e.firstElementChild.style.width = `${percent}%`;
}

// fact is a term and its value, which setFact sets by the term.
export const fact = name => el("div", {}, el("dt", {}, name), el("dd", { "data-fact": name }));

export function setFact(e, name, value) {
  text(e.querySelector(`[data-fact="${name}"]`), value);
}
