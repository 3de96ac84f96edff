// What numbers look like: as the command line writes them.

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

export function bytes(n) {
  n = Math.max(n || 0, 0);
  if (n < 10) return `${n} B`;
  let e = 0, v = n;
  while (v >= 1024 && e < units.length - 1) { v /= 1024; e++; }
  v = Math.floor(v * 10 + 0.5) / 10;
  return `${v < 10 ? v.toFixed(1) : Math.round(v)} ${units[e]}`;
}

export const rate = n => `${bytes(Math.round(n))}/s`;

export const count = n => Math.max(n || 0, 0).toLocaleString("en");

export const percent = (n, of) => of > 0 ? Math.min(100, Math.floor(100 * n / of)) : 0;

export const plural = (n, one, many = one + "s") => `${count(n)} ${n === 1 ? one : many}`;

// duration writes nanoseconds.
export function duration(ns) {
  if (!ns) return "–";
  const ms = ns / 1e6;
  if (ms < 1) return `${Math.round(ns / 1e3)} µs`;
  return ms < 1000 ? `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

// ago writes how long something has lasted.
export function ago(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`;
}

export const short = digest => (digest || "").replace(/^.*:/, "").slice(0, 12);

// site shortens the IDs in the name of a site, of which the end tells most.
export const site = name => name.replace(/\b12D3KooW\w+/g, id => `…${id.slice(-8)}`);

// when writes a time on the reader's clock.
export const when = at => new Date(at).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
