// What the page has the node do, each after a dialog that can be left with Escape.

import { $, el, text } from "./dom.js";
import { bytes, plural } from "./format.js";
import * as api from "./api.js";

let saying;

// say tells what came of something, also to who cannot see it.
export function say(words) {
  clearTimeout(saying);
  text($("said"), words);
  $("said").hidden = false;
  saying = setTimeout(() => { $("said").hidden = true; }, 8000);
}

for (const b of document.querySelectorAll("[data-close]")) b.addEventListener("click", () => b.closest("dialog").close());

// open shows a dialog until do has succeeded with its form, or somebody closes it.
function open(name, act) {
  const dialog = $(`${name}-dialog`), form = $(`${name}-form`), error = form.querySelector(".error");
  const button = form.querySelector("button.primary");
  error.hidden = true;
  form.onsubmit = async e => {
    e.preventDefault();
    button.disabled = true;
    try {
      await act(form.elements);
      dialog.close();
    } catch (e) {
      error.hidden = false;
      text(error, e.message);
    } finally {
      button.disabled = false;
    }
  };
  dialog.showModal();
  return dialog;
}

export function preheat(status, ref) {
  const form = $("preheat-form"), where = form.elements.where;
  const zones = [...new Set((status?.cluster?.members || []).map(m => m.Zone))].filter(Boolean).sort();
  where.replaceChildren(el("option", { value: "here" }, "This node"));
  if (status?.cluster) where.append(el("option", { value: "all" }, `All members (${status.cluster.members.length})`));
  for (const z of zones) where.append(el("option", { value: `zone ${z}` }, `Zone ${z}`));
  form.elements.ref.value = ref;
  open("preheat", async f => {
    const body = { refs: [f.ref.value.trim()] };
    if (f.platform.value.trim()) body.platform = f.platform.value.trim();
    if (f.at.value.trim()) body.at = f.at.value.trim();
    if (f.where.value === "all") body.allNodes = true;
    if (f.where.value.startsWith("zone ")) body.zone = f.where.value.slice(5);
    const begun = await api.post("/api/v1/preheat", body);
    say(begun.state === "scheduled" ? `${begun.refs.join(", ")}: scheduled at ${begun.at}` : `Preheating ${begun.refs.join(", ")} on ${plural(begun.nodes.length, "node")}`);
  });
}

export function endPreheat(p) {
  text($("end-preheat-ref"), p.refs.join(", "));
  open("end-preheat", async () => {
    await api.remove(`/api/v1/preheat/${encodeURIComponent(p.id)}`);
    say(`The preheat of ${p.refs.join(", ")} was ended`);
  });
}

export function evict(status, image) {
  const ref = image.tags?.length ? `${image.repository}:${image.tags[0]}` : `${image.repository}@${image.digest}`;
  const form = $("evict-form");
  form.reset();
  text($("evict-ref"), ref);
  text($("evict-what"), `takes ${bytes(image.stored)} here. ${bytes(image.alone)} of that is its own and goes; what other images need stays.`);
  $("evict-all-part").hidden = !status?.cluster;
  $("evict-imported-part").hidden = !image.imported;
  open("evict", async f => {
    const done = await api.post("/api/v1/evict", { ref, allNodes: f.all.checked, imported: f.imported.checked });
    const failed = done.failed?.length ? `; ${plural(done.failed.length, "member")} did not: ${done.failed[0]}` : "";
    const kept = done.kept ? `; ${bytes(done.kept)} stay, for somebody reads them` : "";
    say(`${ref}: ${bytes(done.freed)} freed${kept}${failed}`);
    document.dispatchEvent(new Event("evicted"));
  });
}

// askToken asks for the token until there is one.
export function askToken() {
  api.clearToken();
  return new Promise(resolve => {
    const dialog = open("token", async f => {
      api.setToken(f.token.value.trim());
      f.token.value = "";
      await api.get("/api/v1/history"); // which says whether it is the right one
    });
    dialog.addEventListener("close", resolve, { once: true });
  });
}
