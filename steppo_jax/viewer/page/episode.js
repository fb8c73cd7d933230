// One episode, step by step.

import { exported, get, post } from "./api.js";
import { figure, legend } from "./chart.js";
import { address, choice, el, fault, many, outcome, short, visible } from "./dom.js";
import { sceneView } from "./scene.js";
import { SCALES, limits, numbersOf, read, scaleLegend, written } from "./tokens.js";

const OF_STEP = [["reward", "reward"], ["value", "V"], ["delta", "δ"], ["advantage", "A"], ["target", "target"], ["ratio", "ratio"]];

export async function episodeView(root, parameters, app, signal) {
  const given = { run: "0", ...parameters };
  let one = await get("episode", { run: given.run, id: given.id }, signal);
  let cards = [];
  let now = 0;
  let blocks = [];
  let shownScale = given.by ?? "";
  const info = el("output", { class: "info", "aria-live": "polite" }, "Point at a token, or go to a response and use the arrow keys.");

  function update(values) {
    Object.assign(given, values);
    app.go(address("episode", given), true);
  }

  function show(step, { scroll = true } = {}) {
    if (step < 0 || step >= cards.length) return;
    cards[now]?.classList.remove("current");
    now = step;
    cards[now].classList.add("current");
    update({ step: String(now) });
    if (scroll) cards[now].scrollIntoView({ block: "start", behavior: "instant" });
  }

  function render() {
    const credit = one.credit.steps ? one.credit : null;
    const numbers = one.steps.map((step, index) => numbersOf(step, index, credit));
    const all = Object.fromEntries(SCALES.map((scale) => [scale.key, numbers.flatMap((of) => of[scale.key] ?? [])]));
    const prompts = whole(one);
    blocks = [];
    cards = one.steps.map((step, index) => card(one, step, index, numbers[index], prompts[index], credit, blocks, info));
    const scales = SCALES.filter((scale) => scale.key === "" || all[scale.key].some((value) => Number.isFinite(value)));
    const bar = el("span");
    const paint = (key) => {
      const scale = SCALES.find((of) => of.key === key) ?? SCALES[0];
      const ends = scale.key ? limits(scale, all[scale.key]) : null;
      for (const block of blocks) block.paint(scale, ends);
      bar.replaceChildren(scaleLegend(scale, ends));
      shownScale = scale.key;
      update({ by: scale.key });
    };
    root.replaceChildren(
      head(one, app, given),
      one.without_text ? el("p", { class: "hint" }, visible(one.without_text)) : "",
      el("div", { class: "columns" }, plot(one, credit, show), el("div", { class: "side" }, labels(one), worth(one, given))),
      el("div", { class: "tools" }, choice("colour tokens by", scales.map((scale) => [scale.key, scale.name]), shownScale, paint), bar, info),
      ...cards, end(one, prompts));
    paint(scales.some((scale) => scale.key === shownScale) ? shownScale : "");
    if (cards.length && given.step !== undefined) show(Math.min(Number(given.step) || 0, cards.length - 1), { scroll: Number(given.step) > 0 });
  }
  render();

  const step = (way) => {
    const index = app.listed.indexOf(one.id) + way;
    if (app.listed.includes(one.id) && index >= 0 && index < app.listed.length) app.go(address("episode", { run: given.run, id: app.listed[index], by: shownScale }));
  };
  return {
    async follow() {
      const state = app.state[Number(given.run)]?.credit?.[one.at];
      if (!state || one.credit.steps) return;
      if (!state.busy) {
        const found = await get("episode", { run: given.run, id: given.id }, signal);
        if (found.credit.steps) {
          one = found;
          render();
          return;
        }
      }
      root.querySelector(".worth")?.replaceWith(worth(one, given, state));
    },
    key(event) {
      const ways = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 };
      if (ways[event.key]) {
        event.preventDefault();
        show(now + ways[event.key]);
      } else if (event.key === "n") step(1);
      else if (event.key === "p") step(-1);
    },
  };
}

/** All prompts as they were read: what is shared is that of the step before. */
function whole(one) {
  let before = [];
  const join = (piece, kept) => {
    const marked = new Set(piece.controls);
    return [...kept, ...piece.texts.map((text, index) => [text, marked.has(index)])];
  };
  return [...one.steps.map((step) => {
    const prompt = join(step.prompt, before.slice(0, step.prompt.shared));
    before = join(step.response, prompt);
    return prompt;
  }), one.after ? join(one.after.prompt, before.slice(0, one.after.prompt.shared)) : null];
}

/** A whole prompt as a piece that `read` takes. */
function piece(pairs) {
  return { texts: pairs.map(([text]) => text), controls: pairs.flatMap(([, marked], index) => (marked ? [index] : [])) };
}

function head(one, app, given) {
  const at = app.listed.indexOf(one.id);
  const to = (text, id, key) => el("a", { class: "button", href: id === undefined ? null : address("episode", { run: given.run, id, by: given.by }), "aria-disabled": id === undefined ? "true" : null, title: `key ${key}` }, text);
  const task = exported ? visible(one.task.uid) : el("a", { href: address("task", { run: given.run, task: one.task.uid, at: one.at, split: one.split }) }, visible(one.task.uid));
  const facts = [
    ["task", task], ["family", visible(one.task.family)], ["environment", visible(one.task.env)], ["split", one.split], ["update", short(one.at)],
    ["reward", short(one.reward)], ["steps", `${one.steps.length}${one.task.golden_steps ? ` (shortest ${one.task.golden_steps})` : ""}`],
    ...Object.entries(one.scores).map(([name, value]) => [name, short(value)]),
  ];
  return el("section", { class: "head" },
    el("div", { class: "title" }, el("h1", null, "Episode ", visible(one.uid)), outcome(one),
      at < 0 ? "" : el("span", { class: "turns" }, to("← previous", app.listed[at - 1], "p"), to("next →", app.listed[at + 1], "n"))),
    el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", null, el("dt", null, name), el("dd", null, value)))),
    one.error === null ? "" : el("p", { class: "fault" }, "It broke: ", visible(one.error || "nobody says why")),
    one.retried.length ? el("p", { class: "hint" }, `It was played again after: `, visible(one.retried.join("; "))) : "",
    el("details", { class: "payload" }, el("summary", null, "the task as the environment was given it"), el("pre", { class: "text" }, visible(JSON.stringify(one.task.payload, null, 1)))));
}

function plot(one, credit, show) {
  const x = one.steps.map((_, index) => index + 1);
  const series = [{ label: "reward", color: 4, x, y: one.steps.map((step) => step.reward), bars: true }];
  if (credit) {
    const has = (name) => credit.steps[name].some((value) => value !== null);
    if (has("value")) series.push({ label: "V", color: 1, x, y: credit.steps.value, dots: true });
    if (has("target")) series.push({ label: "target", color: 3, x, y: credit.steps.target, dots: true });
    if (has("advantage")) series.push({ label: "A", color: 2, x, y: credit.steps.advantage, dots: true });
  }
  if (!x.length) return el("p", { class: "hint" }, "This episode has no steps.");
  return el("div", { class: "over" }, figure(credit ? "Value, target, advantage and reward" : "Reward", series, { xLabel: "step", zero: true, wide: true, onPick: (at) => show(at - 1) }), legend(series));
}

function card(one, step, index, numbers, prompt, credit, blocks, info) {
  const facts = OF_STEP.map(([name, text]) => [text, name === "reward" ? step.reward : credit?.steps[name][index]]).filter(([, value]) => value !== undefined && value !== null);
  facts.splice(1, 0, ["return", one.steps.slice(index).reduce((sum, later) => sum + (later.reward ?? 0), 0)]);
  facts.push(["version", step.version]);
  if (step.staleness) facts.push(["updates old", step.staleness]);
  for (const [name, value] of Object.entries(step.metadata)) if (name !== "invalid") facts.push([name, typeof value === "object" ? JSON.stringify(value) : value]);
  const flags = [
    step.metadata.invalid ? ["bad", "refused"] : null, step.stop === "length" ? ["bad", "cut by its limit"] : null,
    step.terminated ? ["", "episode ended"] : null, step.truncated ? ["bad", "episode cut off"] : null,
  ].filter(Boolean);
  const shown = written(step, numbers, (token) => tell(info, token));
  blocks.push(shown);
  return el("article", { class: "step", id: `step${index}`, "aria-label": `step ${index + 1}` },
    el("header", null, el("h2", null, `Step ${index + 1}`), flags.map(([kind, text]) => el("span", { class: `tag ${kind}` }, text)),
      el("dl", { class: "numbers" }, facts.map(([name, value]) => el("div", null, el("dt", null, visible(String(name))), el("dd", null, typeof value === "number" ? short(value) : visible(String(value))))))),
    promptBlock(step.prompt, prompt), sceneView(step.scene),
    el("h3", null, "response ", el("small", null, many(step.response.ids.length, "token"))), shown.block,
    step.anchor ? el("details", null, el("summary", null, "state as the environment names it"), el("pre", { class: "text" }, visible(step.anchor))) : "");
}

/** What is new of a prompt, and all of it when it is asked for. */
function promptBlock(prompt, pairs) {
  const text = el("div", { class: "text prompt" }, read(prompt));
  const heading = el("h3", null, "prompt ", el("small", null, prompt.shared
    ? `${many(prompt.length, "token")}, of which the first ${prompt.shared.toLocaleString("en")} are those before it`
    : many(prompt.length, "token")));
  if (!prompt.shared) return [heading, text];
  const button = el("button", { type: "button", class: "small", "aria-expanded": "false", click: () => {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    button.textContent = open ? "show all of it" : "show what is new";
    text.replaceChildren(...read(open ? prompt : piece(pairs)));
  } }, "show all of it");
  heading.append(" ", button);
  return [heading, text];
}

function tell(info, token) {
  const names = { behaviour_logp: "log-prob sampled", logp: "log-prob", ratio_t: "ratio", advantage_t: "A", teacher_gap: "teacher gap" };
  const numbers = Object.entries(token.numbers).filter(([, value]) => Number.isFinite(value)).map(([name, value]) =>
    name === "behaviour_logp" ? `p ${short(Math.exp(value))}  ·  ${names[name]} ${short(value)}` : `${names[name] ?? name} ${short(value)}`);
  info.replaceChildren(el("code", null, visible(JSON.stringify(token.text))), ` id ${token.id}, ${token.index + 1} of ${token.count}${token.sampled ? "" : ", not sampled"}  ·  ${numbers.join("  ·  ")}`);
}

function end(one, prompts) {
  if (!one.after) return "";
  return el("article", { class: "step after" }, el("header", null, el("h2", null, "After the last step"), el("span", { class: "tag" }, "never answered: its value is the bootstrap")), promptBlock(one.after.prompt, prompts[prompts.length - 1]), sceneView(one.after.scene));
}

function labels(one) {
  const told = el("p", { class: "hint", role: "status" });
  if (exported) {
    return one.verdict || one.note ? el("section", { class: "labels" }, el("h2", null, "Label"), el("p", null, one.verdict ? el("span", { class: `tag ${one.verdict}` }, one.verdict) : "", " ", visible(one.note))) : "";
  }
  const note = el("textarea", { rows: 2, "aria-label": "note", placeholder: "a note", value: one.note, maxlength: 10000 });
  const buttons = [["keep", "Keep"], ["exclude", "Exclude"], ["", "Neither"]].map(([verdict, text]) => el("button", { type: "button", "aria-pressed": String(one.verdict === verdict), "data-verdict": verdict, click: () => save(verdict) }, text));
  async function save(verdict) {
    try {
      const found = await post("labels", { run: one.run, id: one.id, verdict, note: note.value });
      Object.assign(one, { verdict: found.verdict, note: found.note });
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.verdict === found.verdict));
      told.replaceChildren(found.told ? `Saved; ${found.told}` : "Saved.");
    } catch (error) {
      told.replaceChildren(fault(error));
    }
  }
  return el("section", { class: "labels" }, el("h2", null, "Label"), el("div", { class: "buttons", role: "group", "aria-label": "label" }, buttons), note, el("button", { type: "button", class: "small", click: () => save(one.verdict) }, "Save the note"), told);
}

/** What is known of the credit, or how it can be had. */
function worth(one, given, state = null) {
  const credit = one.credit;
  if (credit.steps) {
    return el("section", { class: "worth" }, el("h2", null, "Credit"), el("p", null, `By ${credit.algorithm}, with the weights after ${many(credit.checkpoint_update, "update")}${credit.checkpoint_update === one.at ? ", those of this update." : `, the nearest that were kept; the update began with ${one.at}.`}`));
  }
  const told = el("p", { class: "hint", role: "status" });
  if (state?.busy) told.append(el("progress", { max: state.total || 1, value: state.total ? state.done : null }), state.total ? ` ${state.done} of ${state.total}` : " beginning");
  else if (state?.error) told.append(el("span", { class: "fault" }, "It could not be computed: ", visible(state.error)));
  const start = el("button", { type: "button", disabled: Boolean(state?.busy), click: async () => {
    try {
      await post("credit", { run: one.run, update: one.at });
      start.disabled = true;
      told.replaceChildren("Beginning; it needs the weights of a checkpoint and takes a while.");
    } catch (error) {
      told.replaceChildren(fault(error));
    }
  } }, state?.error ? "Try again" : `Compute it for update ${one.at}`);
  return el("section", { class: "worth" }, el("h2", null, "Credit"), el("p", null, "Values, advantages and ratios: ", visible(credit.why), "."), exported || !credit.can ? "" : start, told);
}
