"use strict";
const EVERY_MS = 1000, PATIENCE_MS = 5000, SECONDS = 60;
const NONE = "\u2013";
const SVG = "http://www.w3.org/2000/svg";
const $ = id => document.getElementById(id);

// -- words

const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const number = value => whole.format(value);
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
const percent = share => share > 0 && share < 0.001 ? "<0.1%" : `${+(100 * share).toFixed(1)}%`;
const digits = value => value >= 100 ? number(value) : String(+value.toPrecision(3));
const rate = value => value >= 100 ? number(value) : String(+value.toFixed(1));
function time(ns) {
  if (ns === null) return NONE;
  if (ns < 999.5e3) return `${digits(ns / 1e3)} µs`;
  return ns < 999.5e6 ? `${digits(ns / 1e6)} ms` : `${digits(ns / 1e9)} s`;
}
const bound = ns => ns === null ? "over 5 s" : time(ns);
function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit++; }
  return `${digits(bytes)} ${units[unit]}`;
}
function age(seconds) {
  const [s, m, h] = [seconds, seconds / 60, seconds / 3600].map(Math.floor);
  if (m < 1) return `${s} s`;
  if (h < 1) return `${m} min`;
  return h < 48 ? `${h} h ${m % 60} min` : `${Math.floor(h / 24)} days`;
}
const STATES = {
  READY: "ready", LOADING: "loading", UNLOADING: "unloading", UNAVAILABLE: "unavailable",
};
const TONES = {READY: "good", UNAVAILABLE: "bad"};
const STAGES = {
  parse: "reading the request", queue: "waiting in the queue", batch: "putting the batch together",
  compute: "computing", encode: "writing the answer", wait: "waiting for a thread",
  decode: "decoding",
};
const PARTS = {
  prepare: "preparing", run: "waiting and computing", decide: "deciding", cut: "cutting",
  choose: "choosing",
};
const stageName = ({node, stage}) =>
  PARTS[stage] && node ? `${node}: ${PARTS[stage]}` : STAGES[stage] || stage;
const KINDS = {
  INVALID: "invalid", INTERNAL: "failed in the engine", OVERLOADED: "refused under overload",
  LATE: "too late", UNAVAILABLE: "while unavailable",
};

// -- elements

function make(tag, attributes, ...content) {
  const made = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...content.map(each => typeof each === "object" ? each : String(each)));
  return made;
}
const SVG_TAGS = new Set(["svg", "path", "text", "line", "rect"]);
const flat = words => words.replace(/\s+/g, " ");
function say(element, words) {
  if (element.textContent !== words) element.textContent = words;
}
const show = (element, on) => { element.hidden = !on; };
function table(name, head) {
  const columns = head.map(words => make("th", {scope: "col"}, words));
  return make("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": name},
    make("table", {}, make("thead", {}, make("tr", {}, ...columns)), make("tbody")));
}
function fill(box, rows) {
  // Updated in place, to keep the reader's scroll position and selection.
  const body = box.querySelector("tbody");
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((row, at) => {
    const line = body.rows[at] || body.insertRow();
    row.forEach((words, place) => {
      if (!line.cells[place])
        line.append(place ? make("td") : make("th", {scope: "row"}));
      say(line.cells[place], words);
      line.cells[place].className = words.length > 26 ? "long" : "";
    });
  });
}
