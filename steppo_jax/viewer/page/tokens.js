// Tokens in colours: what each was worth, and how likely it was.

import { el, short, visible } from "./dom.js";

/**
 * What tokens can be coloured by. `middle` is the value without a colour of the
 * scales that have two sides; the others go from the least to the most.
 */
export const SCALES = [
  { key: "", name: "nothing" },
  { key: "behaviour_logp", name: "log-prob when sampled", low: true },
  { key: "logp", name: "log-prob of the policy", low: true },
  { key: "ratio_t", name: "ratio", middle: 1 },
  { key: "entropy", name: "entropy", },
  { key: "advantage_t", name: "advantage", middle: 0 },
  { key: "clipped", name: "clipped or not", least: 0, most: 1 },
  { key: "teacher_gap", name: "teacher minus policy", middle: 0 },
  { key: "thought", name: "thought or action", least: 0, most: 1 },
];

/** The numbers of the tokens of a step by name; null where there are none. */
export function numbersOf(step, index, credit) {
  const found = { behaviour_logp: step.logp, thought: step.thought ? step.thought.map(Number) : null };
  if (credit?.tokens) {
    const from = credit.first[index];
    const to = credit.first[index + 1];
    for (const [name, values] of Object.entries(credit.tokens)) {
      if (name !== "behaviour_logp") found[name] = values.slice(from, to);
    }
  }
  return found;
}

/** The ends of a scale over an episode: outliers do not bleach all others. */
export function limits(scale, values) {
  const finite = values.filter((value) => Number.isFinite(value)).sort((a, b) => a - b);
  if (!finite.length) return null;
  const low = scale.least ?? finite[Math.floor(0.02 * (finite.length - 1))];
  const high = scale.most ?? finite[Math.ceil(0.98 * (finite.length - 1))];
  if (scale.middle !== undefined) {
    const reach = Math.max(Math.abs(high - scale.middle), Math.abs(low - scale.middle), 1e-6);
    return [scale.middle - reach, scale.middle + reach];
  }
  if (scale.low) return [low, 0];
  return [low, high > low ? high : low + 1];
}

/** Which of the colours, and how strong, from 0 to 1. */
export function tint(scale, ends, value) {
  if (!Number.isFinite(value)) return null;
  const [low, high] = ends;
  const within = Math.min(1, Math.max(0, (value - low) / (high - low)));
  if (scale.middle !== undefined) {
    return within < 0.5 ? ["below", 1 - 2 * within] : ["above", 2 * within - 1];
  }
  return ["above", scale.low ? 1 - within : within];
}

/** Says in a block that what it shows has been read before. */
const NEWLINES = /\n/g;

/** One token as an element. */
function token(text, control, index) {
  const kind = control ? "token control" : "token";
  const shown = text === "" ? "\u25af" : text.replace(NEWLINES, "\u21b5\n");
  return el("span", { class: kind, "data-at": index }, visible(shown));
}

/** Tokens of a prompt: control tokens are marked, the rest is text. */
export function read(piece) {
  const controls = new Set(piece.controls);
  const nodes = [];
  let plain = "";
  piece.texts.forEach((text, index) => {
    if (!controls.has(index)) {
      plain += text;
      return;
    }
    if (plain) nodes.push(...visible(plain));
    plain = "";
    nodes.push(el("span", { class: "token control" }, visible(text)));
  });
  if (plain) nodes.push(...visible(plain));
  return nodes;
}

/**
 * Tokens that were sampled, in colours. The block can be walked through with the
 * arrow keys; `onShow` is told of the token that somebody points at.
 */
export function written(step, numbers, onShow) {
  const piece = step.response;
  const controls = new Set(piece.controls);
  const spans = piece.texts.map((text, index) => token(text, controls.has(index), index));
  step.sampled.forEach((sampled, index) => {
    if (!sampled) spans[index]?.classList.add("given");
  });
  let now = -1;
  const show = (index) => {
    if (index < 0 || index >= spans.length) return;
    spans[now]?.classList.remove("now");
    now = index;
    spans[now].classList.add("now");
    onShow({
      text: piece.texts[index] === "" ? "part of a character" : piece.texts[index],
      id: piece.ids[index], index, count: spans.length,
      sampled: step.sampled[index],
      numbers: Object.fromEntries(Object.entries(numbers).filter(([, values]) => values).map(([name, values]) => [name, values[index]])),
    });
  };
  const point = (event) => {
    const at = event.target.closest?.("[data-at]");
    if (at) show(Number(at.dataset.at));
  };
  const block = el("div", {
    class: "text response", tabindex: 0, role: "group",
    "aria-label": `response of ${spans.length} tokens; the arrow keys go through them`,
    pointerover: point, click: point,
    keydown: (event) => {
      const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!way) return;
      event.preventDefault();
      event.stopPropagation();
      show(now < 0 ? 0 : now + way);
    },
  }, spans.length ? spans : el("em", null, "no tokens"));
  return { block, paint: (scale, ends) => paint(spans, numbers[scale.key], scale, ends) };
}

function paint(spans, values, scale, ends) {
  spans.forEach((span, index) => {
    span.classList.remove("above", "below");
    span.style.removeProperty("--strength");
    const found = values && ends ? tint(scale, ends, values[index]) : null;
    if (found === null) return;
    span.classList.add(found[0]);
    span.style.setProperty("--strength", `${Math.round(found[1] * 85)}%`);
  });
}

/** The ends of a scale with their colours. */
export function scaleLegend(scale, ends) {
  if (!ends) return el("span", { class: "scale" });
  const stops = Array.from({ length: 11 }, (_, k) => {
    const value = ends[0] + (k / 10) * (ends[1] - ends[0]);
    const [kind, strength] = tint(scale, ends, value);
    const stop = el("span", { class: `token ${kind}` }, "\u00a0");
    stop.style.setProperty("--strength", `${Math.round(strength * 85)}%`);
    return stop;
  });
  return el("span", { class: "scale" }, short(ends[0]), el("span", { class: "stops", "aria-hidden": "true" }, stops), short(ends[1]));
}
