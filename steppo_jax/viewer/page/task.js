// The episodes of one task as the tree of prefixes that the learner packs, at
// one update or at two side by side.

import { get } from "./api.js";
import { address, el, fault, many, outcome, short, visible } from "./dom.js";

const PREVIEW = 280;

export async function taskView(root, parameters, app, signal) {
  const given = { run: "0", ...parameters };
  const { played } = await get("task", { run: given.run, task: given.task }, signal);
  const name = (one) => `${one.at ?? ""}/${one.split}`;
  const left = given.at === undefined && given.split === undefined ? name(played[played.length - 1]) : `${given.at ?? ""}/${given.split ?? "train"}`;
  const second = given.beside ?? "";
  const pick = (label, value, others, onChange) => el("label", { class: "field" }, el("span", null, label), el("select", { change: (event) => onChange(event.target.value) },
    others.map((one) => {
      const of = played.find((other) => name(other) === one);
      const told = of ? `${of.at === null ? of.split : `update ${of.at}`}: ${of.success} of ${of.episodes} solved, reward ${short(of.reward)}` : "nothing";
      const option = el("option", { value: one }, told);
      option.selected = one === value;
      return option;
    })));
  const change = (values) => {
    const [at, split] = (values.left ?? left).split("/");
    app.go(address("task", { run: given.run, task: given.task, at, split, beside: values.second ?? second }));
  };
  const all = played.map(name);
  root.append(el("h1", null, "Task ", visible(given.task)),
    el("div", { class: "tools" }, pick("update", left, all, (value) => change({ left: value })),
      all.length > 1 ? pick("beside", second, ["", ...all.filter((one) => one !== left)], (value) => change({ second: value })) : el("p", { class: "hint" }, "It was played in one update that is still kept.")));
  const columns = el("div", { class: second ? "beside" : "" });
  root.append(columns);
  for (const one of [left, second].filter(Boolean)) {
    const [at, split] = one.split("/");
    const column = el("section", { class: "group" });
    columns.append(column);
    try {
      show(column, await get("task", { run: given.run, task: given.task, at, split }, signal), given.run);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      column.replaceChildren(fault(error));
    }
  }
  return {};
}

function show(column, group, run) {
  const { rows, packed, tree } = group.counts;
  const bar = (label, count, used) => {
    const fill = el("span", { class: used ? "fill used" : "fill" });
    fill.style.setProperty("width", `${rows ? (100 * count) / rows : 0}%`);
    return el("div", { class: "count" }, el("span", { class: "name" }, label), el("span", { class: "track" }, fill), el("span", { class: "value" }, `${count.toLocaleString("en")}${rows && count < rows ? ` (${(100 * (1 - count / rows)).toFixed(0)} % shared)` : ""}`));
  };
  column.append(
    el("h2", null, group.at === null ? group.split : `Update ${group.at}`),
    el("ol", { class: "members" }, group.episodes.map((one, index) => el("li", null, dot(index), el("a", { href: address("episode", { run, id: one.id }) }, visible(one.uid)), " ", outcome(one), ` reward ${short(one.reward)}, ${many(one.steps, "step")}`))),
    el("h3", null, "tokens that the learner reads"),
    el("div", { class: "counts" }, bar("a row for each step", rows, group.layout === "rows"), bar("each episode once", packed, group.layout === "packed"), bar("each prefix once", tree, group.layout === "tree")),
    el("p", { class: "hint" }, group.layout ? `This run packs with layout=${group.layout}.` : "Nobody says how this run packs."),
    el("h3", null, "prefixes that episodes share"), forest(group));
}

function dot(index) {
  return el("span", { class: `member c${(index % 8) + 1}`, title: `episode ${index + 1} of the group` }, String(index + 1));
}

/** The tree as lists within lists; what does not branch stays on one level. */
function forest(group) {
  if (!group.nodes.length) return el("p", { class: "hint" }, "Nothing was packed: every episode broke.");
  const children = new Map();
  group.nodes.forEach((node, index) => {
    const above = node.parent === null ? -1 : node.parent;
    if (!children.has(above)) children.set(above, []);
    children.get(above).push(index);
  });
  const build = (first) => {
    const list = el("ul", { class: "tree" });
    let index = first;
    while (index !== null) {
      const below = children.get(index) ?? [];
      const item = el("li", null, line(group.nodes[index]));
      list.append(item);
      if (below.length > 1) for (const one of below) item.append(build(one));
      index = below.length === 1 ? below[0] : null;
    }
    return list;
  };
  return el("div", { class: "forest" }, children.get(-1).map(build));
}

function line(node) {
  const sampled = node.step !== null;
  const controls = new Set(node.controls);
  const parts = node.texts.map((text, index) => (controls.has(index) ? el("span", { class: "token control" }, visible(text)) : visible(text)));
  const long = node.texts.join("").length > PREVIEW;
  const text = el("div", { class: `text ${sampled ? "response" : "prompt"}${long ? " cut" : ""}` }, parts);
  const more = long ? el("button", { type: "button", class: "small", "aria-expanded": "false", click: (event) => {
    const cut = text.classList.toggle("cut");
    event.target.setAttribute("aria-expanded", String(!cut));
    event.target.textContent = cut ? "show all" : "show less";
  } }, "show all") : "";
  const who = sampled ? `step ${node.step + 1}, response` : "prompt";
  return el("div", { class: "node" }, el("div", { class: "about" }, node.members.map(dot), ` ${who}, ${many(node.tokens, "token")}`, node.members.length > 1 ? el("strong", null, `, read once for ${node.members.length}`) : "", " ", more), text);
}
