// The page: what the node tells, once a second, becomes what people see.

import { $, el, keyed, meter, setMeter, fact, setFact, text } from "./dom.js";
import { ago, bytes, count, duration, percent, plural, rate, short, site, when } from "./format.js";
import * as api from "./api.js";
import * as chart from "./chart.js";
import * as picture from "./picture.js";
import { askToken, preheat, endPreheat, evict, say } from "./actions.js";

let status, images, paused = false, following = false, stream;

const as = { bytes, count };

// fields fills what has a place in the status of its own.
function fields(status) {
  for (const e of document.querySelectorAll("[data-field]")) {
    const value = e.dataset.field.split(".").reduce((v, k) => v?.[k], status) ?? 0;
    e.dataset.value = value;
    text(e, as[e.dataset.as](value));
  }
}

const stateOf = s => el("span", { class: `state ${s}` }, s);

function head(s) {
  const self = s.cluster?.members.find(m => m.state === "self");
  const name = self ? picture.named(s, self) : location.hostname;
  text($("node-name"), self?.Zone ? `${name}, zone ${self.Zone}` : name);
  text($("node-version"), `${s.version}, up for ${ago(Date.now() - Date.parse(s.started))}`);
  document.title = `${name} – Granary`;
  $("degraded").hidden = !s.degraded;
  text($("degraded"), s.degraded || "");
}

function savings(s) {
  const n = s.savings.members;
  text($("savings-scope"), s.cluster ? `by ${plural(n, "member")} of ${s.cluster.members.length}, since each was started` : "since the node was started");
  text($("savings-bytes-of"), `this node served ${bytes(s.demand.served)} and fetched ${bytes(s.demand.received)}`);
  text($("savings-requests-of"), `this node was asked ${plural(s.demand.asked, "time")} and asked ${plural(s.demand.requests, "time")}`);
}

function cluster(s) {
  text($("cluster-lead"), picture.lead(s));
  picture.draw($("picture"), s);
  const flows = picture.flowsOf(s).slice(0, 50);
  keyed($("flows"), flows.length ? flows : [null], f => f ? `${f.from}>${f.to}` : "none", () => el("li"),
    (e, f) => text(e, f ? picture.inWords(s, f) : "Nothing flows now."));
}

function traffic(s) {
  chart.add(s.traffic);
  chart.draw($("chart"));
  const now = s.traffic.served || {};
  const there = chart.sources.filter(k => k !== "layout" && k !== "parent" || s.served[k] > 0);
  keyed($("legend"), there, k => k, k => el("tr", {}, el("th", { scope: "row" }, el("i", { class: k, "aria-hidden": "true" }), k),
    el("td"), el("td", { "data-field": `served.${k}`, "data-as": "bytes" })), (e, k) => text(e.children[1], rate(now[k] || 0)));
}

const done = n => n.here ?? n.done;

function bar(e, name, n) {
  setMeter(e.querySelector(".meter"), percent(done(n), n.size), `${bytes(done(n))} of ${bytes(n.size)}`);
}

const layerName = l => /config/.test(l.mediaType || "") ? "config" : short(l.digest);

function pulls(s) {
  const all = s.underWay || [];
  text($("pulls-lead"), all.length ? `${plural(all.length, "image")} being pulled through this node` : "Nothing is being pulled through this node");
  keyed($("pulls"), all, i => i.ref + i.digest, i => el("li", {},
    el("div", { class: "title" }, el("span", { class: "ref" }, i.ref), el("span", { class: "end" })), meter(`${i.ref}, all layers`),
    el("ul", { class: "layers", "aria-label": `Layers of ${i.ref}` })), (e, i) => {
    e.dataset.here = i.here;
    text(e.querySelector(".end"), i.clients ? `${bytes(i.here)} of ${bytes(i.size)}, ${plural(i.clients, "reader")}` : `${bytes(i.here)}, a moment ago`);
    bar(e, i.ref, i);
    keyed(e.querySelector(".layers"), i.layers.slice(0, 40), l => l.digest, l => el("li", {},
      el("code", { title: l.digest }, layerName(l)), meter(`Layer ${short(l.digest)}`), el("span")), (e, l) => {
      bar(e, "", l);
      text(e.lastElementChild, l.here >= l.size ? bytes(l.size) : `${bytes(l.here)} of ${bytes(l.size)}`);
    });
  });
}

function preheats(s) {
  const all = s.preheats || [];
  $("preheats-part").hidden = all.length === 0;
  keyed($("preheats"), all, p => p.id, p => el("li", {}, el("div", { class: "title" },
    el("span", { class: "ref" }, p.refs.join(", ")), el("span", { class: "state" }), el("span", { class: "end" }),
    el("button", { type: "button", "aria-label": `End the preheat of ${p.refs.join(", ")}`, onclick: () => endPreheat(p) }, "End")),
    meter(`Preheat of ${p.refs.join(", ")}`), el("p", { class: "fault", hidden: "" })), (e, p) => {
    const parts = p.nodes.flatMap(n => n.images || []);
    const sum = { here: parts.reduce((n, i) => n + i.done, 0), size: parts.reduce((n, i) => n + i.size, 0) };
    const state = e.querySelector(".state");
    state.className = `state ${p.state}`;
    text(state, p.state);
    e.querySelector("button").hidden = !["scheduled", "running"].includes(p.state);
    text(e.querySelector(".end"), p.state === "scheduled" ? `at ${when(p.at)}` : `${bytes(sum.here)} of ${bytes(sum.size)} on ${plural(p.nodes.length, "node")}`);
    bar(e, "", p.state === "done" && sum.size === 0 ? { here: 1, size: 1 } : sum);
    const faults = [...new Set([p.error, ...p.nodes.flatMap(n => [n.error, ...(n.images || []).map(i => i.error)])].filter(Boolean))];
    e.querySelector(".fault").hidden = faults.length === 0;
    text(e.querySelector(".fault"), faults.slice(0, 3).join("; "));
  });
}

function store(s) {
  const shared = s.store.shared > 0 ? `, and ${bytes(s.store.shared)} that they share` : "";
  text($("store-lead"), `${bytes(s.store.bytes)} of ${bytes(s.store.budget)} in ${plural(s.store.blobs, "blob")}${shared}; ${bytes(s.contents.bytes)} of files' contents`);
  setMeter($("store-meter"), percent(s.store.bytes + s.contents.bytes, s.store.budget), `${bytes(s.store.bytes)} of ${bytes(s.store.budget)}`);
}

const refOf = i => i.tags?.length ? `${i.repository}:${i.tags[0]}` : `${i.repository}@${i.digest}`;

function held() {
  const all = images.images;
  keyed($("images"), all, i => i.repository + i.digest, i => {
    const ref = refOf(i);
    return el("li", {}, el("div", { class: "title" }, el("span", { class: "ref" })),
      el("dl", { class: "facts" }, ...["stored", "evicting frees"].map(fact)),
      el("div", { class: "buttons" },
        el("button", { type: "button", "aria-label": `Preheat ${ref}`, onclick: () => preheat(status, ref) }, "Preheat"),
        el("button", { type: "button", "aria-label": `Evict ${ref}`, onclick: () => evict(status, current(i)) }, "Evict")));
  }, (e, i) => {
    e.dataset.stored = i.stored;
    const more = (i.tags?.length || 0) - 1;
    text(e.querySelector(".ref"), (i.tags?.length ? refOf(i) : `${i.repository}@${short(i.digest)}`) + (more > 0 ? ` and ${plural(more, "tag")} more` : ""));
    setFact(e, "stored", (i.stored < i.size ? `${bytes(i.stored)} of ${bytes(i.size)}` : bytes(i.stored)) + (i.imported ? ", imported" : ""));
    setFact(e, "evicting frees", i.alone === i.stored ? "all of it" : bytes(i.alone));
  });
  $("images-more").hidden = images.count <= all.length;
  text($("images-more"), `and ${plural(images.count - all.length, "image")} that take less`);
}

const current = i => images.images.find(o => o.digest === i.digest && o.repository === i.repository) || i;

function members(s) {
  $("members-part").hidden = !s.cluster;
  if (!s.cluster) return;
  const order = ["self", "quarantined", "down", "draining", "up"];
  const all = [...s.cluster.members].sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state) || (a.Name + a.ID < b.Name + b.ID ? -1 : 1));
  keyed($("members"), all.slice(0, 200), m => m.ID, m => el("li", {}, el("div", { class: "title" },
    el("span", { class: "ref" }, picture.named(s, m)), el("code", { class: "quiet", title: m.ID }, m.ID.slice(-8)), stateOf(m.state)),
    el("dl", { class: "facts" }, ...["zone", "weight", "answers within", "received", "sent", "strikes"].map(fact)),
    el("p", { class: "fault", hidden: "" })), (e, m) => {
    e.dataset.state = m.state;
    e.dataset.received = m.received;
    const state = e.querySelector(".state");
    state.className = `state ${m.state}`;
    text(state, m.state === "self" ? "this node" : m.state);
    setFact(e, "zone", m.Zone || "none");
    setFact(e, "weight", String(m.Weight));
    setFact(e, "answers within", duration(m.p95));
    setFact(e, "received", bytes(m.received));
    setFact(e, "sent", bytes(m.sent));
    setFact(e, "strikes", String(m.strikes));
    const until = Date.parse(m.quarantined || 0) - Date.now();
    const fault = m.state === "quarantined" ? `Not asked nor believed for another ${ago(until)}: ${m.fault}` : m.fault ? `At fault lately: ${m.fault}` : "";
    e.querySelector(".fault").hidden = !fault;
    text(e.querySelector(".fault"), fault);
  });
}

// sites shows the parents, and what crossed the links to them and to others.
function sites(s) {
  const parents = s.parents || [], links = s.links || [];
  $("sites-part").hidden = parents.length + links.length === 0;
  text($("sites-lead"), parents.length ? `${plural(parents.length, "parent")}, asked before the registries in this order` : "No parent is asked before the registries");
  keyed($("parents"), parents, p => p.name, p => el("li", {}, el("div", { class: "title" },
    el("span", { class: "ref", title: p.name }, site(p.name)), el("span", { class: "state" }), el("span", { class: "end" })),
    el("p", { class: "fault", hidden: "" })), (e, p) => {
    e.dataset.state = p.state;
    e.dataset.received = p.received;
    const state = e.querySelector(".state"), fault = e.lastElementChild;
    state.className = `state ${p.state}`;
    text(state, p.state);
    text(e.querySelector(".end"), `${bytes(p.received)} received`);
    fault.hidden = !p.error;
    fault.className = p.state === "resting" ? "lead" : "fault";
    text(fault, p.error || "");
  });
  $("links-part").hidden = links.length === 0;
  keyed($("links"), links, l => l.link, l => el("tr", {}, el("th", { scope: "row", title: l.link }, site(l.link)), el("td"), el("td"), el("td")), (e, l) => {
    [l.hour, l.today, l.month].forEach((c, i) => {
      const cell = e.children[i + 1];
      cell.dataset.in = c.in;
      cell.dataset.out = c.out;
      keyed(cell, [c.in, c.out].map((n, out) => [out ? "out" : "in", n]), ([to]) => to,
        ([to]) => el("div", {}, el("span", { class: "unseen" }, `${to} `), el("span")), (e, [, n]) => text(e.lastElementChild, bytes(n)));
    });
  });
}

const imageOf = i => i.tag ? `${i.repository}:${i.tag}` : i.digest ? `${i.repository}@${short(i.digest)}` : `${i.repository}, images not known here`;

// spared shows what was asked for, moved and saved, by link and by image.
function spared(s) {
  const links = (s.links || []).filter(l => l.month.asked > 0).map(l => ({ key: l.link, name: site(l.link), asked: l.month.asked, moved: l.month.in, saved: l.month.saved }));
  const images = (s.images || []).map(i => ({ ...i, key: i.repository + i.digest, name: imageOf(i) }));
  $("spared-part").hidden = links.length + images.length === 0;
  for (const [by, all] of Object.entries({ links, images })) {
    $(`spared-${by}-part`).hidden = all.length === 0;
    keyed($(`spared-${by}`), all, r => r.key, () => el("tr", {}, el("th", { scope: "row" }), el("td"), el("td"), el("td")), (e, r) => {
      [r.name, ...[r.asked, r.moved, r.saved].map(bytes)].forEach((words, i) => text(e.children[i], words));
    });
  }
}

function show() {
  if (!status) return;
  document.body.dataset.at = status.at;
  for (const part of [head, savings, cluster, traffic, pulls, preheats, store, sites, spared, members, fields]) part(status);
  if (images) held();
}

function live(state, words) {
  $("live-dot").className = `dot ${state}`;
  text($("live-text"), words);
}

// follow shows what the node tells, and asks again when the stream ends, until the page is paused.
// One of it runs at a time: whoever goes on while the last one is about to end keeps that.
async function follow() {
  if (following) return;
  following = true;
  try {
    await followOn();
  } finally {
    following = false;
  }
}

async function followOn() {
  for (let wait = 500; !paused; wait = Math.min(wait * 2, 10000)) {
    stream = new AbortController();
    try {
      chart.add(...(await api.get("/api/v1/history")).samples);
      await api.events("/api/v1/events", stream.signal, (name, value) => {
        wait = 500;
        live("on", "Live");
        if (name === "status") status = value;
        if (name === "images") images = value;
        show();
      });
    } catch (e) {
      if (e instanceof api.Refused) {
        live("off", "Waiting for a token");
        await askToken();
        continue;
      }
    }
    if (paused) return;
    live("off", "The node does not answer; asking again");
    await new Promise(r => setTimeout(r, wait));
  }
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  text($("pause"), paused ? "Go on" : "Pause");
  if (!paused) {
    follow();
    return;
  }
  stream?.abort();
  live("", "Paused");
});
$("preheat-any").addEventListener("click", () => preheat(status, ""));
new ResizeObserver(() => show()).observe($("picture"));
document.addEventListener("evicted", async () => { images = await api.get("/api/v1/images"); show(); });
follow().catch(e => say(e.message));
