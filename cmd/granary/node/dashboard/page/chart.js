// What was served, over time: areas on each other, one for each source.

import { svg } from "./dom.js";
import { rate } from "./format.js";

export const sources = ["disk", "memory", "peer", "layout", "parent", "upstream"];
const height = 170, foot = 22, head = 18;

// samples are the last minutes'; those that are too old are dropped.
export const samples = [];
const span = 600;

export function add(...more) {
  for (const s of more) {
    if (!s || !s.served || s.at.startsWith("0001")) continue;
    if (samples.length && samples[samples.length - 1].at >= s.at) continue;
    samples.push(s);
  }
  samples.splice(0, Math.max(0, samples.length - span));
}

// shown is how many seconds are shown: of a node that has just been started fewer.
const shown = () => [60, 120, 300, span].find(n => n >= samples.length) || span;

// columns are the samples put together for as many points as there is room for.
function columns(points) {
  const per = shown() / points, all = Array.from({ length: points }, () => Object.fromEntries(sources.map(s => [s, 0])));
  samples.forEach((s, i) => {
    const c = points - 1 - Math.floor((samples.length - 1 - i) / per);
    for (const source of sources) if (c >= 0) all[c][source] += (s.served[source] || 0) / per;
  });
  return all;
}

// nice returns the next number of bytes above n that is 1, 2 or 5 with a unit.
function nice(n) {
  let unit = 1024;
  while (unit * 1000 < n) unit *= 1024;
  for (const m of [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]) if (unit * m >= n) return unit * m;
  return n;
}

export function draw(box) {
  const width = Math.max(240, box.clientWidth), points = Math.min(shown(), Math.max(60, Math.floor(width / 4)));
  const all = columns(points);
  const sums = all.map(c => sources.reduce((n, s) => n + c[s], 0));
  const most = nice(Math.max(1024, ...sums));
  const x = i => (i / (points - 1) * width).toFixed(1);
  const y = n => (head + (height - head) * (1 - n / most)).toFixed(1);
  const picture = svg("svg", { role: "img", width, height: height + foot, viewBox: `0 0 ${width} ${height + foot}` });
  const now = sums[sums.length - 1];
  picture.append(svg("title", {}, `Bytes served in the last ${shown() / 60} min; at most ${rate(Math.max(...sums))}, now ${rate(now)}`));
  for (const part of [0, .5, 1]) picture.append(svg("line", { class: "grid", x1: 0, x2: width, y1: y(most * part), y2: y(most * part) }));
  const below = new Array(points).fill(0);
  for (const s of sources) {
    if (all.every(c => c[s] === 0)) continue;
    const upper = all.map((c, i) => below[i] + c[s]);
    const line = upper.map((n, i) => `${x(i)} ${y(n)}`), back = below.map((n, i) => `${x(i)} ${y(n)}`).reverse();
    picture.append(svg("path", { class: s, d: `M${line.join("L")}L${back.join("L")}Z` }));
    upper.forEach((n, i) => { below[i] = n; });
  }
  picture.append(svg("text", { x: 0, y: head - 6 }, rate(most)), svg("text", { x: 0, y: height + 17 }, `${shown() / 60} min ago`),
    svg("text", { x: width, y: height + 17, "text-anchor": "end" }, "now"));
  box.replaceChildren(picture);
}
