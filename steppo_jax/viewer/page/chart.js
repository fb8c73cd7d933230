// Curves, bands and bars as SVG. A plotting library would be larger than all of
// this page, and would bring its own ways of making markup.

import { draw, el, short } from "./dom.js";

const NARROW = 420;
const WIDE = 900;
// From here on two columns stand beside each other (style.css).
const COLUMNS = 800;
const HEIGHT = 210;
const LEFT = 46;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 26;

/** Numbers at which an axis is labelled. */
function ticks(low, high, count) {
  const span = high - low;
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough) ?? 10 * power;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k += 1) {
    const value = k === 0 ? 0 : k * step;
    found.push([value, digits > 4 || Math.abs(value) >= 1e5 ? short(value) : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })]);
  }
  return found;
}

/** The least and the most, never the same. */
function range(values, zero = false) {
  const finite = values.filter((value) => Number.isFinite(value));
  if (zero) finite.push(0);
  if (!finite.length) return [0, 1];
  let low = finite[0];
  let high = finite[0];
  for (const value of finite) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low === high) return low === 0 ? [0, 1] : [low - Math.abs(low) / 2, high + Math.abs(high) / 2];
  return [low, high];
}

/** A path through points, broken where there is none. */
function path(points) {
  let command = "M";
  const parts = [];
  for (const [x, y] of points) {
    if (!Number.isFinite(x) || !Number.isFinite(y)) {
      command = "M";
      continue;
    }
    parts.push(`${command}${x.toFixed(1)} ${y.toFixed(1)}`);
    command = "L";
  }
  return parts.join("");
}

/**
 * A figure with curves.
 *
 * Each series has `label`, `color` (1 to 9), `x`, `y`, and may have `low` and
 * `high` (a band), `bars` (drawn as bars, from 0 or from `base`), or `dots`. `onPick` is called
 * with the x nearest to where somebody clicked.
 */
export function figure(title, series, { xLabel = "", zero = false, onPick = null, wide = false } = {}) {
  // About as wide as it is shown, so that its labels are as large as other text.
  const shown = window.innerWidth * (window.innerWidth > COLUMNS ? 0.55 : 0.95);
  const WIDTH = wide ? Math.min(WIDE, Math.max(320, Math.round(shown))) : NARROW;
  const xs = series.flatMap((one) => one.x).filter((value) => value !== null);
  const ys = series.flatMap((one) => [...one.y, ...(one.low ?? []), ...(one.high ?? []), ...(one.base ?? []).map((base, index) => base + one.y[index])]).filter((value) => value !== null);
  const any = series.some((one) => one.bars);
  let [x0, x1] = range(xs);
  if (any) [x0, x1] = [x0 - 0.6, x1 + 0.6];
  let [y0, y1] = range(ys, zero || any);
  const space = 0.06 * (y1 - y0);
  if (y1 !== 0) y1 += space;
  if (y0 !== 0) y0 -= space;
  const right = WIDTH - RIGHT;
  const bottom = HEIGHT - BOTTOM;
  const px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (right - LEFT);
  const py = (y) => bottom - ((y - y0) / (y1 - y0)) * (bottom - TOP);
  const at = (one, index) => [one.x[index] === null ? NaN : px(one.x[index]), one.y[index] === null ? NaN : py(one.y[index])];
  const drawing = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${series.map(told).join("; ")}`, class: onPick ? "chart picks" : "chart" });
  for (const [y, text] of ticks(y0, y1, 4)) {
    drawing.append(draw("line", { class: "grid", x1: LEFT, x2: right, y1: py(y), y2: py(y) }),
      draw("text", { class: "tick", x: LEFT - 6, y: py(y) + 4, "text-anchor": "end" }, text));
  }
  const whole = xs.every(Number.isInteger);
  for (const [x, text] of ticks(x0, x1, 5)) {
    if (whole && !Number.isInteger(x)) continue;
    drawing.append(draw("text", { class: "tick", x: px(x), y: bottom + 16, "text-anchor": "middle" }, text));
  }
  if (y0 < 0 && y1 > 0) drawing.append(draw("line", { class: "axis", x1: LEFT, x2: right, y1: py(0), y2: py(0) }));
  const width = Math.max(1.5, Math.min(18, (right - LEFT) / (x1 - x0) * 0.55));
  for (const one of series) {
    const indices = one.x.map((_, index) => index);
    if (one.low?.some((value) => value !== null)) {
      const known = indices.filter((index) => one.low[index] !== null && one.x[index] !== null);
      const edge = [...known.map((i) => [px(one.x[i]), py(one.high[i])]), ...known.reverse().map((i) => [px(one.x[i]), py(one.low[i])])];
      drawing.append(draw("path", { class: `band c${one.color}${known.length === 1 ? " alone" : ""}`, d: `${path(edge)}Z` }));
    }
    if (one.bars) {
      for (const index of indices) {
        const [x, y] = at(one, index);
        if (!Number.isFinite(y)) continue;
        const from = py(one.base?.[index] ?? 0);
        const to = one.base ? py(one.base[index] + one.y[index]) : y;
        drawing.append(draw("rect", { class: `bar c${one.color}${one.base ? " stacked" : ""}`, x: x - width / 2, width, y: Math.min(from, to), height: Math.max(0.7, Math.abs(from - to)) }));
      }
      continue;
    }
    const points = indices.map((index) => at(one, index));
    drawing.append(draw("path", { class: `line c${one.color}`, d: path(points) }));
    if (one.dots || points.length < 40) {
      for (const [x, y] of points) if (Number.isFinite(x) && Number.isFinite(y)) drawing.append(draw("circle", { class: `dot c${one.color}`, cx: x, cy: y, r: 2.2 }));
    }
  }
  const cursor = draw("line", { class: "cursor", y1: TOP, y2: bottom, visibility: "hidden" });
  drawing.append(cursor);
  const readout = el("p", { class: "readout", "aria-live": "off" }, xLabel);
  const nearest = (event) => {
    const box = drawing.getBoundingClientRect();
    const x = x0 + (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (right - LEFT) * (x1 - x0);
    let best = null;
    for (const value of xs) if (best === null || Math.abs(value - x) < Math.abs(best - x)) best = value;
    return best;
  };
  drawing.addEventListener("pointermove", (event) => {
    const x = nearest(event);
    if (x === null) return;
    cursor.setAttribute("x1", px(x));
    cursor.setAttribute("x2", px(x));
    cursor.setAttribute("visibility", "visible");
    const values = series.map((one) => {
      let best = -1;
      one.x.forEach((value, index) => {
        if (value !== null && (best < 0 || Math.abs(value - x) < Math.abs(one.x[best] - x))) best = index;
      });
      if (best < 0 || one.y[best] === null) return null;
      const band = one.low && one.low[best] !== null ? ` [${short(one.low[best])}, ${short(one.high[best])}]` : "";
      return `${one.label} ${short(one.y[best])}${band}`;
    }).filter(Boolean);
    readout.textContent = `${xLabel} ${short(x)}: ${values.join("  ·  ")}`;
  });
  drawing.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    readout.textContent = xLabel;
  });
  if (onPick) drawing.addEventListener("click", (event) => onPick(nearest(event)));
  return el("figure", { class: "plot" }, el("figcaption", null, title), drawing, readout);
}

/** What a curve says, for those who do not see it. */
function told(one) {
  const values = one.y.filter((value) => value !== null);
  return values.length ? `${one.label} from ${short(values[0])} to ${short(values[values.length - 1])}` : `${one.label} has no numbers`;
}

/** The names of the colours of a figure. */
export function legend(series) {
  return el("ul", { class: "legend" }, series.map((one) => el("li", null, el("span", { class: `swatch c${one.color}` }), one.label)));
}
