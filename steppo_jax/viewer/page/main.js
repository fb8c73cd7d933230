// The page: which view the address names, and what goes on meanwhile.

import { exported, get } from "./api.js";
import { address, el, fault, many, visible } from "./dom.js";
import { episodeView } from "./episode.js";
import { episodesView } from "./episodes.js";
import { runsView } from "./runs.js";
import { taskView } from "./task.js";

const LOOK_MS = 2000;
const VIEWS = { runs: runsView, episodes: episodesView, episode: episodeView, task: taskView };

/**
 * What the views share: `runs` as they are described once, `state` as it was
 * told last, and `listed`, the episodes of the page that was seen last.
 */
const app = { runs: [], state: [], listed: [], go };
let view = null;
let asking = null;

/** Goes to an address; a view that only changes its own address replaces it. */
function go(where, replace = false) {
  if (replace) {
    history.replaceState(null, "", where);
    return;
  }
  location.hash = where;
}

function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const name = VIEWS[path] ? path : exported ? "episodes" : "runs";
  return { name, parameters: Object.fromEntries(new URLSearchParams(query ?? "")) };
}

function header(name, parameters) {
  const run = parameters.run ?? "0";
  const tabs = [["runs", "Runs", {}], ["episodes", "Episodes", { run }]];
  const current = { runs: "runs" }[name] ?? "episodes";
  document.getElementById("top").replaceChildren(
    el("span", { class: "brand" }, "steppo_jax"),
    el("nav", { "aria-label": "views" }, tabs.filter(([key]) => !(exported && key === "runs")).map(([key, text, given]) =>
      el("a", { href: address(key, given), "aria-current": key === current ? "page" : null }, text))),
    app.runs.length > 1 && name !== "runs"
      ? el("label", { class: "field inline" }, el("span", { class: "hidden" }, "run"),
        el("select", { "aria-label": "run", change: (event) => go(address("episodes", { run: event.target.value })) },
          app.runs.map((one) => {
            const option = el("option", { value: one.number }, visible(one.label));
            option.selected = String(one.number) === String(run);
            return option;
          })))
      : "",
    el("span", { id: "status", role: "status" }));
  status();
}

/** Tells what is being read, and whether a run goes on. */
function status() {
  const place_ = document.getElementById("status");
  if (!place_ || exported) return;
  const busy = app.state.filter((one) => one.busy);
  const live = app.state.filter((one) => one.live);
  const parts = [];
  if (busy.length) {
    const [done, all] = busy[0].indexed;
    parts.push(el("span", { class: "busy" }, `reading: ${done} of ${many(all, "file")} done`));
  }
  if (live.length) parts.push(el("span", { class: "live" }, "live"));
  place_.replaceChildren(...parts);
}

async function open() {
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  const { name, parameters } = place();
  const root = el("div", { class: `view ${name}` });
  header(name, parameters);
  try {
    view?.close?.();
    view = null;
    const made = VIEWS[name](root, parameters, app, signal);
    document.getElementById("main").replaceChildren(root);
    const opened = await made;
    // Somebody may have gone on meanwhile.
    if (signal.aborted) opened.close?.();
    else view = opened;
  } catch (error) {
    if (signal.aborted) return;
    root.replaceChildren(fault(error));
    document.getElementById("main").replaceChildren(root);
  }
}

/** Looks whether something has changed, and has the view follow. */
async function look() {
  if (document.visibilityState === "visible") {
    try {
      const before = JSON.stringify(app.state);
      app.state = await get("state");
      document.body.classList.remove("away");
      status();
      if (JSON.stringify(app.state) !== before) await view?.follow?.();
    } catch (error) {
      if (error.name !== "AbortError") {
        document.body.classList.add("away");
        document.getElementById("status")?.replaceChildren(el("span", { class: "fault" }, String(error.message)));
      }
    }
  }
  setTimeout(look, LOOK_MS);
}

function typed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "/") {
    const search = document.querySelector("input[type=search]");
    if (search) {
      event.preventDefault();
      search.focus();
    }
    return;
  }
  view?.key?.(event);
}

async function begin() {
  try {
    [app.runs, app.state] = await Promise.all([get("about"), get("state")]);
  } catch (error) {
    document.getElementById("main").replaceChildren(fault(error));
    return;
  }
  document.title = `${app.runs.map((one) => one.label).join(", ").slice(0, 80)} – steppo_jax`;
  window.addEventListener("hashchange", open);
  document.addEventListener("keydown", typed);
  await open();
  if (!exported) setTimeout(look, LOOK_MS / 4);
}

begin();
