// Where the data come from: the server, or the page itself where it was
// exported and opens from the disk.

const inlined = document.getElementById("data");
const kept = inlined ? JSON.parse(inlined.textContent) : null;

/** Whether this page was exported: there is no server, and nothing changes. */
export const exported = kept !== null;

const ROWS = 100;

/** Rows of an exported page in an order. */
function listed(parameters) {
  const order = parameters.order || "at";
  const name = order.replace(/^-/, "");
  const sign = order.startsWith("-") ? -1 : 1;
  const rows = kept.rows.filter((row) => row.run === Number(parameters.run ?? 0));
  const rank = (row) => (name === "uid" ? row.id : row[name]);
  rows.sort((a, b) => sign * ((rank(a) > rank(b)) - (rank(a) < rank(b))) || a.id - b.id);
  const page = Number(parameters.page ?? 0);
  return {
    rows: rows.slice(page * ROWS, (page + 1) * ROWS), total: rows.length,
    page, pages: Math.max(1, Math.ceil(rows.length / ROWS)),
  };
}

function found(what, parameters) {
  if (what === "about") return kept.about;
  if (what === "state") return kept.about.map((run) => ({ number: run.number, busy: false, faults: {}, credit: {} }));
  if (what === "episodes") return listed(parameters);
  if (what === "episode") {
    const one = kept.episodes[`${parameters.run ?? 0}/${parameters.id}`];
    if (one) return one;
  }
  throw new Error("This page was exported without that.");
}

async function answer(response) {
  const value = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new Error(value.error ?? `the server answered ${response.status}`);
  return value;
}

async function sent(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The viewer does not answer: was it ended? Start it again, and load its page.");
  }
  return answer(response);
}

/** Asks for something; see the handlers of viewer/app.py. */
export async function get(what, parameters = {}, signal = undefined) {
  if (exported) return found(what, parameters);
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null);
  return sent(`api/${what}?${new URLSearchParams(given)}`, { signal });
}

/** Sends a label, or the order to compute credit. */
export async function post(what, value) {
  const token = document.querySelector("meta[name=token]").content;
  return sent(`api/${what}`, {
    method: "POST", body: JSON.stringify(value),
    headers: { "Content-Type": "application/json", "X-Token": token },
  });
}
