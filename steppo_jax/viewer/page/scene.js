// What the environment showed, drawn as its own page: of text, as text.
// Nothing in it can be pressed: it shows what could have been.

import { el, many, visible } from "./dom.js";

const HEADINGS = { shop: "as a page of the shop", documents: "documents found", room: "what was seen", commands: "what could be answered" };
const DRAWN = { shop, documents, room, commands: () => [] };

/** The view of a step's scene; nothing where there is none. */
export function sceneView(scene) {
  if (!scene) return "";
  const key = (name, call = name) => el("span", { class: scene.taken.includes(call.toLowerCase()) ? "key taken" : "key" }, visible(name));
  return el("section", { class: `scene ${scene.kind}` }, el("h3", null, HEADINGS[scene.kind]),
    el("div", { class: "scene-body" }, DRAWN[scene.kind](scene, key)),
    scene.commands.length ? el("details", null, el("summary", null, many(scene.commands.length, "possible command")), el("p", { class: "keys" }, scene.commands.map((name) => key(name)))) : "");
}

function shop(scene, key) {
  const click = (name) => key(name, `click[${name}]`);
  const product = (one) => el("li", null, click(one.id), " ", el("span", { class: "title" }, visible(one.title)), " ", el("b", null, visible(one.price)));
  return [
    scene.refused ? el("p", null, el("span", { class: "tag bad" }, "refused")) : "",
    scene.page === "end" ? el("p", null, el("span", { class: "tag" }, "bought")) : "",
    scene.query === undefined ? "" : el("p", null, "Search: ", el("q", null, visible(scene.query)), scene.range ? `, ${scene.range[0]} to ${scene.range[1]} of ${scene.range[2]}` : ", nothing found"),
    scene.products ? el("ul", { class: "plain" }, scene.products.map(product)) : "",
    scene.title === undefined ? "" : el("p", null, el("span", { class: "title" }, visible(scene.title)), " ", el("b", null, visible(scene.price)), " ", el("small", null, visible(scene.id))),
    (scene.options ?? []).map((option) => el("p", { class: "keys" }, visible(option.name), ` (`, visible(option.chosen), `): `, option.values.map((value) => option.chosen === value ? el("span", { class: "key chosen" }, visible(value)) : click(value)))),
    scene.part ? el("h4", null, visible(scene.part)) : "",
    scene.text ? el("p", { class: "body" }, visible(scene.text)) : "",
    scene.buttons?.length ? el("p", { class: "keys" }, scene.buttons.map(click)) : "",
  ];
}

function documents(scene) {
  return [
    el("ol", { class: "plain" }, scene.found.map((one) => el("li", null,
      one.title === undefined ? "" : el("span", { class: "title" }, visible(one.title)), " ",
      one.id === undefined ? "" : el("small", null, visible(one.id)), typeof one.score === "number" ? ` ${one.score.toFixed(2)}` : "",
      one.text === undefined ? "" : el("div", { class: "body" }, visible(one.text))))),
    scene.notes.map((note) => el("p", { class: "hint" }, visible(note))),
  ];
}

function room(scene, key) {
  return scene.places.map((place) => el("p", { class: "keys" }, visible(place.where || "Here"), ": ", place.things.length ? place.things.map((thing) => key(thing)) : "nothing"));
}
