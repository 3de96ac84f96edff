// What the node is asked, with the token of this tab.

const kept = "granary-token";

export const setToken = token => sessionStorage.setItem(kept, token);
export const clearToken = () => sessionStorage.removeItem(kept);

export class Refused extends Error {}

async function ask(method, path, body, signal) {
  const headers = {};
  const token = sessionStorage.getItem(kept);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, signal, cache: "no-store", body: body === undefined ? undefined : JSON.stringify(body) });
  if (answer.status === 401) throw new Refused("the node does not know this token");
  if (!answer.ok) throw new Error((await answer.text()).trim() || answer.statusText);
  return answer;
}

export const get = async path => (await ask("GET", path)).json();
export const post = async (path, body) => (await ask("POST", path, body)).json();
export const remove = async path => (await ask("DELETE", path)).json();

// events calls on with the name and data of each event, until the stream ends. EventSource could
// send no token.
export async function events(path, signal, on) {
  const answer = await ask("GET", path, undefined, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let pending = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      pending += value;
      const all = pending.split("\n\n");
      pending = all.pop();
      for (const one of all) {
        const field = name => one.split("\n").filter(l => l.startsWith(name + ": ")).map(l => l.slice(name.length + 2)).join("\n");
        if (field("data")) on(field("event"), JSON.parse(field("data")));
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // or each fault would hold a connection
  }
}
