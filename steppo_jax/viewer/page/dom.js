// Elements and texts. Text of models and environments gets into the page here,
// and as text alone: nothing in it is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

// Characters that are not seen, or that change how others are shown: controls,
// directions of writing, halves of surrogate pairs, separators of lines.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** Sets attributes; functions are listeners, null and false are left out. */
function dress(node, attributes) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "value" || name === "checked") node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  return node;
}

/** An element with attributes and children, which are nodes or plain text. */
export function el(tag, attributes, ...children) {
  const node = dress(document.createElement(tag), attributes);
  node.append(...children.flat(2).filter((one) => one !== null && one !== undefined && one !== false));
  return node;
}

/** The same for drawings. */
export function draw(tag, attributes, ...children) {
  const node = dress(document.createElementNS(SVG, tag), attributes);
  node.append(...children.flat(2).filter((one) => one !== null && one !== undefined));
  return node;
}

/** How a character that is not seen is spelt. */
function spelt(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}

/** Text as nodes, in which what is not seen is spelt. */
export function visible(text) {
  const nodes = [];
  let end = 0;
  for (const found of text.matchAll(UNSEEN)) {
    if (found[0] === "\n" || found[0] === "\t") continue;
    if (found.index > end) nodes.push(text.slice(end, found.index));
    nodes.push(el("span", { class: "unseen", title: "a character that is not seen" }, spelt(found[0])));
    end = found.index + found[0].length;
  }
  if (end < text.length) nodes.push(text.slice(end));
  return nodes;
}

/** A number in few digits; a dash where there is none. */
export function short(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2);
  return value.toPrecision(Math.max(digits, Math.ceil(Math.log10(size + 1)))).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

/** A count with its noun. */
export function many(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** What happened to an episode, as a badge with a word and not a colour alone. */
export function outcome(one) {
  const failed = one.cause ?? one.error;
  if (failed !== null && failed !== undefined) {
    return el("span", { class: "badge failed", title: "the episode broke" }, visible(String(failed).split(":")[0].slice(0, 40) || "failed"));
  }
  return one.success
    ? el("span", { class: "badge won" }, "solved")
    : el("span", { class: "badge lost" }, "not solved");
}

/** An address within the page. */
export function address(view, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const query = new URLSearchParams(given).toString();
  return `#/${view}${query ? `?${query}` : ""}`;
}

/** Says what went wrong, in place. */
export function fault(error) {
  return el("p", { class: "fault", role: "alert" }, visible(String(error.message ?? error)));
}

/** A choice of one of several values. */
export function choice(label, options, value, onChange) {
  return el("label", { class: "field" }, el("span", null, label),
    el("select", { change: (event) => onChange(event.target.value) },
      options.map(([key, text]) => {
        const option = el("option", { value: key }, text);
        option.selected = String(key) === String(value ?? "");
        return option;
      })));
}
