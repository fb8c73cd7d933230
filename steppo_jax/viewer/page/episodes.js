// The table of episodes: filters, orders, pages.

import { exported, get } from "./api.js";
import { address, choice, el, fault, many, outcome, short, visible } from "./dom.js";

const COLUMNS = [
  ["uid", "episode"], ["at", "update"], ["task", "task"], ["family", "family"], ["success", "outcome"],
  ["reward", "reward"], ["steps", "steps"], ["tokens", "tokens"], ["version", "version"],
];
const NUMBERS = new Set(["at", "reward", "steps", "tokens", "version"]);
const RANGES = [["at", "update"], ["steps", "steps"], ["reward", "reward"], ["version", "policy version"]];
const TYPING_MS = 120;

export async function episodesView(root, parameters, app, signal) {
  const given = { run: "0", ...parameters };
  const body = el("tbody");
  const summary = el("p", { class: "summary", role: "status" });
  const pager = el("nav", { class: "pager", "aria-label": "pages" });
  const faults = el("div");
  let waiting = null;
  let newest = 0;

  async function load() {
    const number = (newest += 1);
    app.go(address("episodes", given), true);
    let found;
    try {
      found = await get("episodes", given, signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      summary.replaceChildren(fault(error));
      return;
    }
    if (number !== newest) return;
    app.listed = found.rows.map((row) => row.id);
    const focused = body.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    body.replaceChildren(...found.rows.map((row) => line(row, given.run)));
    if (focused) body.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
    const first = found.page * 100 + 1;
    summary.replaceChildren(found.total
      ? `${many(found.total, "episode")}${found.pages > 1 ? `, ${first.toLocaleString("en")} to ${(first + found.rows.length - 1).toLocaleString("en")}` : ""}`
      : nothing());
    turn(found);
    told();
  }

  function nothing() {
    const state = app.state[Number(given.run)] ?? {};
    if (state.busy) return "The episodes are being read.";
    if (state.episodes === 0 && !exported) return "This run keeps no episodes: keep_journals and record_every say which are kept.";
    return "No episode is left by these filters.";
  }

  function told() {
    const state = app.state[Number(given.run)] ?? {};
    const about = app.runs[Number(given.run)] ?? {};
    const lines = Object.entries(state.faults ?? {}).map(([name, text]) => el("li", null, el("code", null, visible(name)), " ", visible(text)));
    faults.replaceChildren(
      about.without_text ? el("p", { class: "hint" }, visible(about.without_text)) : "",
      lines.length ? el("details", { class: "faults" }, el("summary", null, `${many(lines.length, "file")} not read whole`), el("ul", null, lines.slice(0, 50))) : "");
  }

  function set(name, value, { wait = false } = {}) {
    if (value === "") delete given[name];
    else given[name] = value;
    if (name !== "page") delete given.page;
    clearTimeout(waiting);
    if (wait) waiting = setTimeout(load, TYPING_MS);
    else load();
  }

  function turn(found) {
    const to = (text, page, there) => el("button", { type: "button", disabled: !there, click: () => { set("page", page ? String(page) : ""); root.scrollIntoView(); } }, text);
    pager.replaceChildren(...(found.pages > 1 ? [
      to("First", 0, found.page > 0), to("Previous", found.page - 1, found.page > 0),
      el("span", null, `page ${found.page + 1} of ${found.pages.toLocaleString("en")}`),
      to("Next", found.page + 1, found.page + 1 < found.pages), to("Last", found.pages - 1, found.page + 1 < found.pages),
    ] : []));
  }

  const heads = COLUMNS.map(([name, text]) => {
    const button = el("button", { type: "button", click: () => {
      given.order = given.order === name ? `-${name}` : name;
      mark();
      load();
    } }, text);
    return el("th", { scope: "col", class: NUMBERS.has(name) ? "number" : null, "data-name": name }, button);
  });
  function mark() {
    for (const head of heads) {
      const order = given.order ?? (exported ? "at" : "-at");
      const way = { [head.dataset.name]: "ascending", [`-${head.dataset.name}`]: "descending" }[order];
      if (order.replace(/^-/, "") === head.dataset.name) head.setAttribute("aria-sort", way ?? (order.startsWith("-") ? "descending" : "ascending"));
      else head.removeAttribute("aria-sort");
    }
  }
  mark();

  const form = el("form", { class: "filters", role: "search", submit: (event) => { event.preventDefault(); load(); } });
  root.append(el("h1", null, "Episodes"), exported ? "" : form, faults, summary,
    el("div", { class: "scroll" }, el("table", { class: "episodes" }, el("thead", null, el("tr", null, heads)), body)), pager);
  const filling = exported ? null : fill(form, given, set, signal).catch((error) => {
    if (error.name !== "AbortError") form.append(fault(error));
  });
  await load();
  await filling;

  return {
    follow: load,
    key(event) {
      const links = [...body.querySelectorAll("a.open")];
      const now = links.indexOf(document.activeElement);
      const way = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
      if (!way || (event.key.startsWith("Arrow") && now < 0)) return;
      event.preventDefault();
      links[Math.min(links.length - 1, Math.max(0, now + way))]?.focus();
    },
    close: () => clearTimeout(waiting),
  };
}

/** The filters; what can be chosen is asked for first. */
async function fill(form, given, set, signal) {
  const search = el("input", {
    type: "search", placeholder: "words in prompts and responses", value: given.text ?? "", "aria-label": "words in prompts and responses",
    input: (event) => set("text", event.target.value, { wait: true }),
  });
  form.append(el("label", { class: "field wide" }, el("span", null, "text"), search));
  const choices = await get("choices", { run: given.run }, signal);
  const pick = (name, label) => {
    const values = choices[name];
    if (values.length < 2 && !given[name]) return "";
    return choice(label, [["", "all"], ...values.map(([value, count]) => [value, `${value} (${count.toLocaleString("en")})`])], given[name], (value) => set(name, value));
  };
  const range = (name, label) => {
    const [low, high] = choices[name];
    if (low === null) return "";
    const end = (ending, text, hint) => el("input", {
      type: "number", step: "any", placeholder: short(hint), value: given[`${name}_${ending}`] ?? "", "aria-label": `${label}, ${text}`,
      input: (event) => set(`${name}_${ending}`, event.target.value, { wait: true }),
    });
    return el("fieldset", { class: "field range" }, el("legend", null, label), end("min", "at least", low), el("span", { "aria-hidden": "true" }, "–"), end("max", "at most", high));
  };
  form.append(...[
    choice("outcome", [["", "all"], ["1", "solved"], ["0", "not solved"], ["failed", "failed"]], given.failed ? "failed" : given.success, (value) => {
      delete given.failed;
      if (value === "failed") {
        delete given.success;
        set("failed", "1");
      } else set("success", value);
    }),
    pick("family", "family"), pick("split", "split"), pick("cause", "error"), pick("env", "environment"),
    ...RANGES.map(([name, label]) => range(name, label)),
    choice("label", [["", "all"], ["keep", "keep"], ["exclude", "excluded"], ["note", "with a note"], ["none", "without"]], given.label, (value) => set("label", value)),
    given.task ? el("span", { class: "field" }, el("span", null, "task"), el("button", { type: "button", click: (event) => { event.target.parentElement.remove(); set("task", ""); } }, visible(given.task), " ✕")) : "",
  ].filter(Boolean));
}

function line(row, run) {
  const label = row.verdict || (row.note ? "note" : "");
  const cells = {
    uid: [el("a", { class: "open", href: address("episode", { run, id: row.id }) }, visible(row.uid)), label ? el("span", { class: `tag ${label}`, title: row.note ?? "" }, label) : ""],
    at: short(row.at),
    task: el("a", { class: "task", href: exported ? address("episode", { run, id: row.id }) : address("task", { run, task: row.task, at: row.at, split: row.split }), title: "all episodes of this task" }, visible(row.task)),
    family: visible(row.family ?? ""),
    success: outcome(row),
    reward: short(row.reward), steps: short(row.steps), tokens: short(row.tokens), version: short(row.version),
  };
  return el("tr", null, COLUMNS.map(([name, text]) => el("td", { class: NUMBERS.has(name) ? "number" : name, "data-label": text }, cells[name])));
}
