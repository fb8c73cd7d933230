// Curves of several runs, where their time went, and how their options differ.

import { get } from "./api.js";
import { figure, legend } from "./chart.js";
import { address, choice, el, fault, many, short, visible } from "./dom.js";

const FIRST = [
  "eval/success", "rollout/success", "rollout/reward", "rollout/steps", "rollout/response_tokens", "critic/explained_variance",
  "policy/approx_kl", "policy/clip_fraction", "policy/entropy", "rollout/episodes_per_s",
];
const MOST = 6;
const COLORS = 8;
// Updates whose times are drawn.
const UPDATES = 150;
const CAUSES = { rollout: 1, environment: 2, update: 3, weights: 4, evaluation: 5, checkpoint: 6, metrics: 7, compile: 8, setup: 9, idle: 0 };

export async function runsView(root, parameters, app, signal) {
  const given = { x: "update", ...parameters };
  const names = await get("names", {}, signal);
  let chosen = given.names ? given.names.split(",").filter((name) => names.includes(name)) : FIRST.filter((name) => names.includes(name)).slice(0, MOST);
  if (!chosen.length) chosen = names.slice(0, MOST);
  let hidden = new Set((given.hide ?? "").split(",").filter(Boolean));
  const plots = el("div", { class: "plots" });
  const key = el("div");
  const times = el("div");
  const chips = el("div", { class: "chips" });

  function keep() {
    app.go(address("runs", { x: given.x === "update" ? "" : given.x, apart: given.apart, names: given.names, hide: [...hidden].join(",") }), true);
  }

  async function curves() {
    keep();
    const shown = app.runs.filter((run) => !hidden.has(String(run.number))).map((run) => run.number).join(",");
    const asked = { x: given.x, apart: given.apart ?? "", runs: shown };
    const found = await Promise.all(chosen.map((name) => get("curves", { ...asked, name }, signal)));
    const labels = [];
    const colored = found.map((lines) => lines.map((line) => {
      if (!labels.includes(line.label)) labels.push(line.label);
      return { ...line, color: (labels.indexOf(line.label) % COLORS) + 1 };
    }));
    plots.replaceChildren(...chosen.map((name, index) => (colored[index].length
      ? figure(name, colored[index], { xLabel: given.x })
      : el("figure", { class: "plot" }, el("figcaption", null, name), el("p", { class: "hint" }, "no numbers yet")))));
    key.replaceChildren(labels.length > 1 ? legend(labels.map((label, index) => ({ label, color: (index % COLORS) + 1 }))) : "");
  }

  async function where() {
    const found = await Promise.all(app.runs.map((run) => get("times", { run: run.number }, signal)));
    const open = [...times.children].map((one) => one.querySelector("details")?.open);
    times.replaceChildren(...app.runs.map((run, index) => time(run, found[index])));
    [...times.children].forEach((one, index) => {
      if (open[index]) one.querySelector("details")?.setAttribute("open", "");
    });
  }

  function pick() {
    const rest = names.filter((name) => !chosen.includes(name));
    const list = el("datalist", { id: "names" }, rest.map((name) => el("option", { value: name })));
    const input = el("input", { type: "search", list: "names", placeholder: `add one of ${names.length}`, "aria-label": "add a number", change: (event) => {
      const name = event.target.value.trim();
      if (names.includes(name) && !chosen.includes(name)) change([...chosen, name]);
    } });
    chips.replaceChildren(...chosen.map((name) => el("button", { type: "button", class: "chip", title: "remove", click: () => change(chosen.filter((other) => other !== name)) }, name, " ✕")), input, list);
  }

  function change(next) {
    chosen = next;
    given.names = chosen.join(",");
    pick();
    curves().catch((error) => plots.replaceChildren(fault(error)));
  }

  root.append(el("h1", null, "Runs"), table(app, hidden, (number, on) => {
    if (on) hidden.delete(number);
    else hidden.add(number);
    hidden = new Set(hidden);
    curves();
  }));
  if (names.length) {
    root.append(el("div", { class: "tools" },
      choice("over", [["update", "updates"], ["minutes", "minutes"], ["episodes", "episodes"]], given.x, (value) => { given.x = value; curves(); }),
      app.runs.length > 1 ? choice("seeds", [["", "together, with intervals"], ["1", "each alone"]], given.apart, (value) => { given.apart = value; curves(); }) : "",
      chips), key, plots, el("h2", null, "Where the time went"), times, options(app.runs));
  } else {
    root.append(el("p", { class: "hint" }, "There are no metrics: a run writes the first line after its first evaluation."), options(app.runs));
  }
  pick();
  await curves();
  await where();
  let sizes = "";
  return {
    async follow() {
      counts(root, app);
      const now = JSON.stringify(app.state.map((one) => one.files));
      if (now === sizes) return;
      sizes = now;
      await curves();
      await where();
    },
  };
}

function table(app, hidden, onTurn) {
  return el("div", { class: "scroll" }, el("table", { class: "runs" },
    el("thead", null, el("tr", null, ["shown", "run", "episodes", "algorithm", "environment", "began", "commit", "machine"].map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", null, app.runs.map((run) => {
      const box = el("input", { type: "checkbox", checked: !hidden.has(String(run.number)), "aria-label": `show ${run.label}`, change: (event) => onTurn(String(run.number), event.target.checked) });
      const options = run.options;
      return el("tr", null, [
        ["shown", box], ["run", el("a", { href: address("episodes", { run: run.number }) }, visible(run.label))],
        ["episodes", el("span", { class: "count", "data-run": run.number }, short(app.state[run.number]?.episodes))],
        ["algorithm", visible(String(options.algorithm?.name ?? "–"))], ["environment", visible(String(options.env?.name ?? "–"))],
        ["began", visible(String(run.facts.date ?? "–").slice(0, 16).replace("T", " "))], ["commit", visible(String(run.facts.commit ?? "–"))],
        ["machine", visible(String(run.facts.hardware ?? "–"))],
      ].map(([label, value]) => el("td", { "data-label": label }, value)));
    }))));
}

function counts(root, app) {
  for (const span of root.querySelectorAll(".count")) span.textContent = short(app.state[Number(span.dataset.run)]?.episodes);
}

/** The time of a run by cause: a bar for all of it, and bars for its updates. */
function time(run, found) {
  const heading = el("h3", null, visible(run.label));
  if (!found || !found.wall) return el("section", { class: "time" }, heading, el("p", { class: "hint" }, "no event log"));
  const causes = [...found.causes, "idle"].filter((cause) => found.seconds[cause] > 0);
  const bar = el("div", { class: "bar", role: "img", "aria-label": causes.map((cause) => `${cause} ${Math.round(100 * found.seconds[cause] / found.wall)} %`).join(", ") },
    causes.map((cause) => {
      const share = el("span", { class: `c${CAUSES[cause] ?? 0}`, title: `${cause}: ${short(found.seconds[cause])} s` });
      share.style.setProperty("flex-grow", String(found.seconds[cause]));
      return share;
    }));
  const list = el("ul", { class: "legend" }, causes.map((cause) => el("li", null, el("span", { class: `swatch c${CAUSES[cause] ?? 0}` }), `${cause} ${(100 * found.seconds[cause] / found.wall).toFixed(1)} %`)));
  const total = found.by_update.map((one) => Object.values(one).reduce((a, b) => a + b, 0));
  const middle = [...total].sort((a, b) => a - b)[Math.floor(total.length / 2)];
  return el("section", { class: "time" }, heading, bar, list, byUpdate(found),
    el("p", { class: "hint" }, `${short(found.wall / 60)} minutes in ${many(found.sessions, "session")}${found.sessions > 1 ? `, ${short(found.down / 60)} minutes between them` : ""}${total.length ? `; the median update took ${short(middle)} s` : ""}.`));
}

/** The seconds of the last updates by cause, one above the other. */
function byUpdate(found) {
  const x = found.updates.slice(-UPDATES);
  if (x.length < 2) return "";
  const spent = found.by_update.slice(-UPDATES);
  const base = x.map(() => 0);
  const series = found.causes.map((cause) => {
    const y = spent.map((one) => one[cause] ?? 0);
    const from = [...base];
    y.forEach((value, index) => { base[index] += value; });
    return { label: cause, color: CAUSES[cause] ?? 0, x, y, base: from, bars: true };
  }).filter((one) => one.y.some((value) => value > 0));
  return series.length ? el("details", null, el("summary", null, `seconds of ${x.length < found.updates.length ? `the last ${x.length} updates` : "each update"}`), figure("Seconds by cause", series, { xLabel: "update", wide: true })) : "";
}

/** Options as "algorithm.name" and their values as text. */
function flat(options, prefix = "") {
  return Object.entries(options).flatMap(([name, value]) => (value !== null && typeof value === "object" && !Array.isArray(value)
    ? flat(value, `${prefix}${name}.`) : [[prefix + name, JSON.stringify(value)]]));
}

function options(runs) {
  const maps = runs.map((run) => new Map(flat(run.options)));
  const keys = [...new Set(maps.flatMap((map) => [...map.keys()]))].sort();
  if (!keys.length) return "";
  const differs = keys.filter((name) => new Set(maps.map((map) => map.get(name))).size > 1);
  const body = el("tbody");
  const fill = (names) => body.replaceChildren(...names.map((name) => el("tr", null, el("th", { scope: "row" }, name), maps.map((map) => el("td", null, visible(map.get(name) ?? "–"))))));
  const several = runs.length > 1;
  let all = !several;
  const search = el("input", { type: "search", placeholder: "an option", "aria-label": "an option", input: () => look() });
  const look = () => fill((all ? keys : differs).filter((name) => name.includes(search.value)));
  look();
  return el("section", { class: "options" }, el("h2", null, "Options"),
    el("div", { class: "tools" }, several ? choice("show", [["", `the ${differs.length} that differ`], ["1", `all ${keys.length}`]], "", (value) => { all = value === "1"; look(); }) : "", search),
    el("div", { class: "scroll" }, el("table", { class: "options" }, el("thead", null, el("tr", null, el("th", { scope: "col" }, "option"), runs.map((run) => el("th", { scope: "col" }, visible(run.label))))), body)));
}
