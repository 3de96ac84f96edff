// The cluster as a picture: zones as boxes, members in them, and what flows between them.

import { svg, text } from "./dom.js";
import { plural, rate } from "./format.js";

const cell = { width: 100, height: 92 };
const zoneHead = 36, gap = 12, dot = 14, top = 72;
const maxFlows = 160, maxNamed = 60;

// layout places zones in columns and members in rows; the whole has a width in pixels.
function layout(width, zones) {
  const columns = Math.max(1, Math.min(zones.length, Math.floor((width + gap) / (cell.width * 1.9 + gap))));
  const zoneWidth = (width - gap * (columns - 1)) / columns;
  const perRow = Math.max(1, Math.floor((zoneWidth - 8) / cell.width));
  const places = new Map(), boxes = [];
  let y = top;
  for (let i = 0; i < zones.length; i += columns) {
    const row = zones.slice(i, i + columns);
    const rows = Math.max(...row.map(z => Math.ceil(z.members.length / perRow)));
    const height = zoneHead + rows * cell.height + 4;
    row.forEach((z, c) => {
      const x = c * (zoneWidth + gap);
      boxes.push({ x, y, width: zoneWidth, height, name: z.name });
      z.members.forEach((m, j) => {
        const inRow = Math.min(perRow, z.members.length - Math.floor(j / perRow) * perRow);
        const step = zoneWidth / inRow;
        const line = Math.floor(j / perRow);
        // Every other one is lower, so that a flow passes between others and not through them.
        const shift = inRow > 2 ? (j % perRow % 2) * 14 - 7 : 0;
        places.set(m.ID, { x: x + step * (j % perRow + .5), y: y + zoneHead + line * cell.height + cell.height * .34 + shift, member: m });
      });
    });
    y += height + gap;
  }
  return { places, boxes, height: y - gap + 2 };
}

const clip = (s, n) => s.length > n ? s.slice(0, n - 1) + "…" : s;

function curve(a, b) {
  const dx = b.x - a.x, dy = b.y - a.y, d = Math.hypot(dx, dy) || 1;
  const bend = Math.min(34, d * .22);
  const from = { x: a.x + dx / d * (a.r ?? dot), y: a.y + dy / d * (a.r ?? dot) };
  const to = { x: b.x - dx / d * (dot + 4), y: b.y - dy / d * (dot + 4) };
  return `M${from.x.toFixed(1)} ${from.y.toFixed(1)}Q${((a.x + b.x) / 2 - dy / d * bend).toFixed(1)} ${((a.y + b.y) / 2 + dx / d * bend).toFixed(1)} ${to.x.toFixed(1)} ${to.y.toFixed(1)}`;
}

const stroke = n => Math.min(7, 1.5 + Math.log2(1 + n / (256 << 10)) * .8);

// membersOf returns the members by zone; a node alone is the only one.
export function zonesOf(status) {
  const c = status.cluster;
  const members = c ? c.members : [{ ID: "", Name: "this node", Zone: "", state: "self" }];
  const zones = new Map();
  for (const m of members) zones.set(m.Zone, [...zones.get(m.Zone) || [], m]);
  return [...zones].sort(([a], [b]) => a < b ? -1 : 1).map(([name, members]) => ({ name, members }));
}

// outside is where what comes from no member does, by what flows have for it.
const outside = new Map([["", "registries"], ["parents", "parents"]]);

// flowsOf returns what flows, the most first; from "" is from registries.
export function flowsOf(status) {
  const c = status.cluster, t = status.traffic;
  const flows = c ? c.flows : [{ from: "", to: "", rate: t.upstream }, { from: "parents", to: "", rate: t.parents }].filter(f => f.rate > 0);
  return [...flows].sort((a, b) => b.rate - a.rate);
}

// named is what a member is called: by its host's name, and, where several have that, the end of
// its ID.
export function named(status, m) {
  const same = status.cluster?.members.filter(o => o.Name === m.Name).length > 1;
  return m.Name ? (same ? `${clip(m.Name, 20)} ${m.ID.slice(-4)}` : m.Name) : m.ID.slice(-8);
}

function nameOf(status, id) {
  const m = status.cluster?.members.find(m => m.ID === id);
  return m ? named(status, m) : "a member";
}

// inWords says what a flow is.
export function inWords(status, f) {
  const to = status.cluster ? nameOf(status, f.to) : "this node";
  return `${outside.get(f.from) ?? nameOf(status, f.from)} to ${to}: ${rate(f.rate)}`;
}

export function lead(status) {
  const zones = zonesOf(status), n = zones.reduce((n, z) => n + z.members.length, 0);
  if (!status.cluster) return "This node is alone";
  const where = zones.length > 1 ? ` in ${plural(zones.length, "zone")}` : "";
  const sum = flowsOf(status).filter(f => !outside.has(f.from)).reduce((n, f) => n + f.rate, 0);
  return `${plural(n, "member")}${where}; ${sum > 0 ? rate(sum) + " between them" : "nothing flows between them now"}`;
}

let shape = "";

export function draw(box, status) {
  const width = Math.max(240, box.clientWidth);
  const zones = zonesOf(status), { places, boxes, height } = layout(width, zones);
  const above = placesAbove(width, status.parents?.length > 0 || flowsOf(status).some(f => f.from === "parents"));
  let picture = box.firstElementChild;
  const now = JSON.stringify([width, above.size, zones.map(z => [z.name, z.members.map(m => [m.ID, m.Name, m.state])])]);
  if (now !== shape || !picture) {
    shape = now;
    picture = svg("svg", { role: "img", width, height, viewBox: `0 0 ${width} ${height}` }, svg("title"), svg("g", { class: "flows" }));
    for (const { x, name } of above.values()) {
      picture.append(svg("rect", { class: "registry", x: x - 52, y: 2, width: 104, height: 28, rx: 14 }),
        svg("text", { class: "name", x, y: 20, "text-anchor": "middle" }, name));
    }
    for (const b of boxes) {
      picture.append(svg("rect", { class: "zone", x: b.x + .5, y: b.y + .5, width: b.width - 1, height: b.height - 1, rx: 10 }));
      if (zones.length > 1 || b.name) picture.append(svg("text", { x: b.x + 12, y: b.y + 20 }, b.name ? `zone ${clip(b.name, 22)}` : "no zone"));
    }
    for (const { x, y, member: m } of places.values()) {
      picture.append(svg("circle", { class: `member ${m.state}`, cx: x, cy: y, r: dot }));
      if (places.size > maxNamed) continue;
      picture.append(svg("text", { class: "name", x, y: y + dot + 16, "text-anchor": "middle" }, clip(named(status, m), 13)));
      const note = m.state === "self" ? (status.cluster ? "this node" : "") : m.state === "up" ? "" : m.state;
      if (note) picture.append(svg("text", { x, y: y + dot + 31, "text-anchor": "middle" }, note));
    }
    box.replaceChildren(picture);
  }
  text(picture.querySelector("title"), lead(status));
  drawFlows(picture.querySelector(".flows"), places, flowsOf(status), above);
}

// placesAbove are those of what is outside the cluster.
function placesAbove(width, parents) {
  const at = (x, name) => ({ x, y: 16, r: 15, name });
  return parents ? new Map([["parents", at(width / 3 - 8, "Parents")], ["", at(width * 2 / 3 + 8, "Registries")]]) : new Map([["", at(width / 2, "Registries")]]);
}

// drawFlows keeps the lines of flows that go on, whose dashes else would jump.
function drawFlows(group, places, flows, above) {
  const known = new Map([...group.children].map(e => [e.dataset.key, e]));
  for (const f of flows.slice(0, maxFlows)) {
    const a = above.get(f.from) || places.get(f.from), b = places.get(f.to);
    if (!a || !b) continue;
    const key = `${f.from}>${f.to}`, kind = f.from === "" ? " upstream" : f.from === "parents" ? " parents" : "";
    let g = known.get(key);
    known.delete(key);
    if (!g) {
      g = svg("g", { "data-key": key }, svg("path", { class: "under" + kind }), svg("path", { class: "flow" + kind }));
      group.append(g);
    }
    for (const p of g.children) {
      p.setAttribute("d", curve(a, b));
      p.setAttribute("stroke-width", stroke(f.rate).toFixed(1));
    }
  }
  for (const e of known.values()) e.remove();
}
