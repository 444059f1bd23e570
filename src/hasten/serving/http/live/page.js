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
const KINDS = {
  INVALID: "invalid", INTERNAL: "the engine failed", OVERLOADED: "overloaded", LATE: "too late",
  UNAVAILABLE: "unavailable", GONE: "client gone",
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

// -- charts

const LEFT = 46, BOTTOM = 18, TOP = 8, RIGHT = 2;
function steps(highest) {
  // A few round numbers from zero to just above the highest value.
  const raw = highest / 3, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find(each => each * power >= raw) * power;
  const found = [];
  for (let at = 0; at < highest + step * 0.999; at += step) found.push(at);
  return found;
}
function decades(lowest, highest) {
  // 1, 2 and 5 times each power of ten that spans the values.
  const found = [];
  for (let power = 10 ** Math.floor(Math.log10(lowest)); power < 10 * highest; power *= 10)
    found.push(...[1, 2, 5].map(each => each * power));
  const first = found.findLastIndex(each => each <= lowest);
  const last = Math.max(first + 1, found.findIndex(each => each >= highest));
  return found.slice(first, last + 1);
}
function frame(svg, marks, words, scale = value => value) {
  const width = Math.max(120, svg.clientWidth), height = Math.max(80, svg.clientHeight);
  const least = scale(marks[0]), most = scale(marks[marks.length - 1]);
  const y = value => TOP + (height - TOP - BOTTOM) * (most - scale(value)) / (most - least);
  if (marks.length > 5) marks = marks.filter(mark => Number.isInteger(Math.log10(mark)));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(...marks.flatMap(mark => [
    make("line", {class: "rule", x1: LEFT, x2: width - RIGHT, y1: y(mark), y2: y(mark)}),
    make("text", {x: LEFT - 6, y: y(mark) + 4, "text-anchor": "end"}, words(mark)),
  ]));
  return {y, width, height, inner: width - LEFT - RIGHT};
}
function timeAxis(svg, {width, height}) {
  svg.append(make("text", {x: LEFT, y: height - 3}, "a minute ago"),
    make("text", {x: width - RIGHT, y: height - 3, "text-anchor": "end"}, "now"));
}
function path(values, x, y) {
  // Seconds without a request are gaps; a second between two gaps is a dot.
  let drawn = "", open = false;
  values.forEach((value, place) => {
    if (value === null) { open = false; return; }
    const at = `${x(place).toFixed(1)} ${y(value).toFixed(1)}`;
    drawn += open ? `L${at}` : `M${at}h0`;
    open = true;
  });
  return drawn;
}
function drawRate(svg, series) {
  const values = series.requests;
  const box = frame(svg, steps(Math.max(3, ...values)), rate);
  const x = place => LEFT + box.inner * place / (SECONDS - 1);
  const line = path(values, x, box.y);
  svg.append(make("path", {class: "under", d: `${line}V${box.y(0)}H${LEFT}Z`}),
    make("path", {class: "line", d: line}));
  timeAxis(svg, box);
  svg.setAttribute("aria-label", `Requests per second over the last minute: most recently ${
    rate(values[SECONDS - 1])}, at most ${rate(Math.max(...values))}`);
}
function drawLatency(svg, series) {
  const known = series.p50_ns.filter(value => value !== null);
  const highest = Math.max(...series.p99_ns.map(value => value || 0)) || 1e7;
  const box = frame(svg, decades(Math.min(highest, ...known, 1e6), highest), time, Math.log10);
  const x = place => LEFT + box.inner * place / (SECONDS - 1);
  for (const [name, values] of [["line high", series.p99_ns], ["line", series.p50_ns]])
    svg.append(make("path", {class: name, d: path(values, x, box.y)}));
  timeAxis(svg, box);
  svg.setAttribute("aria-label", "Latency over the last minute: " + (known.length
    ? `p50 most recently ${time(known[known.length - 1])}, p99 at most ${time(highest)}`
    : "no requests"));
}
function drawBatches(svg, batches) {
  const total = batches.reduce((sum, each) => sum + each[1], 0);
  const box = frame(svg, steps(Math.max(0.01, ...batches.map(each => each[1] / total))), percent);
  const step = box.inner / Math.max(4, batches.length), wide = Math.min(34, 0.7 * step);
  batches.forEach(([rows, count], place) => {
    const middle = LEFT + step * (place + 0.5), top = box.y(count / total);
    svg.append(make("rect", {class: "column", x: middle - wide / 2, y: top, width: wide, rx: 2,
      height: Math.max(1, box.y(0) - top)}),
      make("text", {x: middle, y: box.height - 3, "text-anchor": "middle"}, rows));
  });
  svg.setAttribute("aria-label", total ? `Batches by rows, since the start: ${batches.map(
    ([rows, count]) => `${rows}: ${percent(count / total)}`).join(", ")}` : "No batches yet");
}

// -- one model

const CARDS = [
  ["rate", "Throughput"], ["middle", "Latency, p50"], ["high", "Latency, p99"],
  ["queue", "Waiting"],
];
class View {
  constructor(model) {
    this.heading = make("h2", {}, model.name + " ",
      make("span", {class: "quiet"}, `version ${model.version} `));
    this.state = make("span", {class: "state"});
    this.heading.append(this.state);
    this.why = make("p", {class: "quiet why"});
    this.cards = {};
    const cards = CARDS.map(([key, title]) => {
      const figure = make("p", {class: "figure"}), below = make("p", {class: "quiet"});
      this.cards[key] = [figure, below];
      return make("li", {}, make("h3", {}, title), figure, below);
    });
    this.charts = {};
    const charts = [
      ["rate", "Requests per second", "each second of the last minute"],
      ["latency", "Latency", make("span", {},
        make("span", {class: "key"}, "p50"), make("span", {class: "key high"}, "p99"))],
      ["batches", "Rows in a batch", "share of batches since the start"],
    ].map(([key, title, below]) => {
      this.charts[key] = make("svg", {role: "img"});
      return make("figure", {}, make("h3", {}, title), make("figcaption", {}, below),
        this.charts[key]);
    });
    this.facts = make("dl", {});
    this.sizes = table("Batches by rows", ["Rows in a batch", "Batches", "Share"]);
    this.seconds = table("Second by second", ["Second", "Requests", "p50", "p99"]);
    this.stages = table("Where the time goes", ["Stage", "Share of the time", "p50 at most", "p99 at most"]);
    this.numbers = make("details", {}, make("summary", {}, "The numbers"), this.sizes, this.seconds,
      this.stages);
    this.numbers.addEventListener("toggle", () => this.table());
    this.live = make("div", {}, make("ul", {class: "answers"}, ...cards),
      make("div", {class: "charts"}, ...charts), this.facts, this.numbers);
    this.section = make("section", {}, this.heading, this.why, this.live);
    new ResizeObserver(() => this.draw()).observe(this.charts.rate);
  }
  update(model, nowSeconds) {
    const served = this.served = model.served;
    say(this.state, STATES[model.state] || model.state);
    this.state.className = `state ${TONES[model.state] || "quiet"}`;
    show(this.live, served);
    say(this.why, served ? answering(served) : model.reason);
    if (!served) return;
    const {now, minute} = served;
    this.card("rate", `${rate(now.throughput_per_s)}/s`, `${number(minute.requests)} in a minute`);
    this.card("middle", time(now.p50_ns),
      now.requests ? `p90 ${time(now.p90_ns)}` : `nothing for ${nowSeconds} s`);
    this.card("high", time(now.p99_ns),
      minute.requests ? `${time(minute.p99_ns)} over a minute` : "nothing for a minute");
    this.card("queue", plural(served.queue.rows, "row"), served.queue.wait_ns
      ? `the next waits ${time(served.queue.wait_ns)}` : "the next runs at once");
    this.tell();
    this.draw();
    this.table();
  }
  card(key, figure, below) {
    say(this.cards[key][0], figure);
    say(this.cards[key][1], below);
  }
  tell() {
    const facts = facts_of(this.served), told = JSON.stringify(facts);
    if (told === this.told) return;
    this.told = told;
    this.facts.replaceChildren(...facts.flatMap(([name, words]) =>
      [make("dt", {}, name), make("dd", {}, flat(words))]));
  }
  draw() {
    if (!this.served || !this.section.isConnected) return;
    drawRate(this.charts.rate, this.served.series);
    drawLatency(this.charts.latency, this.served.series);
    drawBatches(this.charts.batches, this.served.batches);
  }
  table() {
    if (!this.numbers.open || !this.served) return;
    const {series: {requests, p50_ns, p99_ns}, batches, stages} = this.served;
    const total = batches.reduce((sum, each) => sum + each[1], 0);
    fill(this.sizes, batches.map(([rows, count]) =>
      [number(rows), number(count), percent(count / total)]));
    fill(this.seconds, requests.map((count, place) => [`${SECONDS - place} s ago`, number(count),
      time(p50_ns[place]), time(p99_ns[place])]).reverse());
    fill(this.stages, stages.map(each =>
      [each.stage, percent(each.share), bound(each.p50_ns), bound(each.p99_ns)]));
  }
}
function answering(served) {
  const status = served.status === "uncertified" ? "not certified" : served.status;
  if (served.monitor && served.monitor.taken_over)
    return "The exact model answers, since the monitor raised an alarm.";
  if (served.fell_back) return "The exact model answers, since the fast one failed.";
  if (served.answers === "exact") return "The exact model answers.";
  return `The winner answers, ${status}: ${served.why}`;
}
function facts_of(served) {
  const refusals = Object.entries(served.refusals).map(([kind, count]) =>
    `${KINDS[kind] || kind.toLowerCase().replaceAll("_", " ")} ${number(count)}`);
  const facts = [
    ["Model", `${served.label} · ${served.platform}`],
    ["Answered", `${plural(served.requests, "request")}, ${plural(served.rows, "row")}`],
    ["Refused or failed", refusals.join(", ") || "none"],
    ["Given up by clients", number(served.cancelled)],
  ];
  if (served.replaced) facts.push(["Answered by the exact model", number(served.replaced)]);
  if (served.cache) {
    const {hits, misses, entries, size_bytes, most_bytes} = served.cache, asked = hits + misses;
    facts.push(["Cached answers", `${percent(hits / (asked || 1))} of ${plural(asked, "look-up")} found
      one; ${number(entries)} cached, ${size(size_bytes)} of ${size(most_bytes)}`]);
  }
  if (served.shadow) {
    const {rows, disagreed} = served.shadow;
    facts.push(["Compared with the exact model", rows ? `${plural(rows, "row")}, ${number(disagreed)}
      answered differently (${percent(disagreed / rows)})` : "nothing yet"]);
  }
  if (served.monitor) facts.push(...watched(served.monitor));
  for (const note of served.notes) facts.push(["Note", note]);
  return facts;
}
const WATCHED = {
  changed: "Changed answers",
  lost: "Lost answers, by labels",
  net: "Net loss, by labels",
};
function watched(monitor) {
  const facts = [];
  if (monitor.blind) facts.push(["Monitor", `blind: ${monitor.blind}`]);
  for (const alarm of monitor.alarms) facts.push(["Alarm", alarm]);
  for (const {what, limit, n, low, high, alarm} of monitor.limits) {
    const seen = n ? `${percent(Math.max(low, 0))} to ${percent(high)} of ${plural(n, "audited answer")}`
      : "nothing yet";
    const verdict = alarm ? "broken" : n ? "no evidence that it is broken" : "";
    facts.push([WATCHED[what], flat(`${seen}; limit ${percent(limit)}${verdict && `, ${verdict}`}`)]);
  }
  if (monitor.why) facts.push(["Monitor", monitor.why]);
  const missed = [
    monitor.dropped && `${number(monitor.dropped)} without idle time`,
    monitor.failed && `${number(monitor.failed)} that the exact model failed on`,
    monitor.begun_anew && `evidence started again ${plural(monitor.begun_anew, "time")}`,
  ].filter(Boolean);
  if (missed.length) facts.push(["Not audited", missed.join(", ")]);
  const {asked_again, margin, outside} = monitor.drift;
  const signals = [
    asked_again && asked_again[1] && `cascade asked again ${percent(asked_again[0] / asked_again[1])}`,
    margin.n && `margin lately ${margin.recent.toPrecision(3)}, in all ${margin.mean.toPrecision(3)}`,
    outside.n && `inputs outside the bundle's range lately ${percent(outside.recent)}`,
  ].filter(Boolean);
  if (signals.length) facts.push(["Drift (signals, no proof)", signals.join("; ")]);
  return facts;
}

// -- the page

const views = new Map();
let states = null;
function update(figures) {
  const models = figures.models, ready = models.filter(model => model.state === "READY").length;
  const count = plural(models.length, "model");
  const headline = !models.length ? "No models" : ready === models.length ? `${count}, ready`
    : `${ready} of ${count} ready`;
  say($("headline"), headline);
  document.title = `hasten: ${headline}`;
  say($("server"), flat(`${figures.draining ? "Draining: no new work is accepted · " : ""}up for
    ${age(figures.uptime_s)} · ${plural(figures.connections, "connection")} ·
    ${figures.body_bytes ? size(figures.body_bytes) : "nothing"} in progress`));
  const keys = new Set();
  for (const model of models) {
    const key = JSON.stringify([model.name, model.version]);
    keys.add(key);
    if (!views.has(key)) {
      views.set(key, new View(model));
      $("models").append(views.get(key).section);
    }
    views.get(key).update(model, figures.now_s);
  }
  for (const [key, view] of views) if (!keys.has(key)) { view.section.remove(); views.delete(key); }
  overview(models);
  announce(models);
}
const all = table("All models",
  ["Model", "Version", "State", "Answers", "Throughput", "p50", "p99"]);
function overview(models) {
  show(all, models.length > 1);
  fill(all, models.map(({name, version, state, served}) => {
    const now = served && served.now, said = STATES[state] || state;
    return [name, version, said, ...(now ? [`${served.answers}, ${served.status}`,
      `${rate(now.throughput_per_s)}/s`, time(now.p50_ns), time(now.p99_ns)] : Array(4).fill(NONE))];
  }));
}
$("overview").append(all);
function announce(models) {
  const now = new Map(models.map(({name, version, state}) =>
    [`${name} version ${version}`, STATES[state] || state]));
  if (states) {
    const changes = [...now].filter(([key, state]) => states.get(key) !== state);
    if (changes.length)
      say($("said"), changes.map(([key, state]) => `${key} is ${state}`).join("; "));
  }
  states = now;
}

// -- asking

const began_ms = performance.now();
let timer = null, ticker = null, last_ms = null, gone = false, asking = false;
function token() {
  const found = /(?:^#|&)token=([^&]*)/.exec(location.hash);
  if (!found) return "";
  try { return decodeURIComponent(found[1]); } catch { return found[1]; }
}
async function ask() {
  const given = token(), headers = {Accept: "application/json"};
  if (given && /^[\x21-\x7e]+$/.test(given)) headers.Authorization = `Bearer ${given}`;
  // Credentials are the visitor's certificate, where the server asks for one: there are no cookies.
  const response = await fetch("live.json", {headers, cache: "no-store", credentials: "same-origin",
    redirect: "error", signal: AbortSignal.timeout(PATIENCE_MS)});
  if (response.ok) return {figures: await response.json()};
  if (response.status === 401) return {refused: given
    ? "The token in this page's address isn't the server's."
    : "This server requires a token: add #token=YOUR_TOKEN to this page's address."};
  if (response.status === 403) return {refused: `The server refuses: ${(await response.json()).error}.`};
  return {refused: `The server answers with status ${response.status}.`};
}
async function poll() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  const started_ms = performance.now();
  let answer = {};
  try { answer = await ask(); } catch { /* no answer: see tick */ }
  asking = false;
  if (answer.figures) { last_ms = performance.now(); update(answer.figures); }
  condition(answer);
  if (document.visibilityState === "visible")
    timer = setTimeout(poll, Math.max(100, EVERY_MS - (performance.now() - started_ms)));
}
function condition({figures, refused}) {
  const was = gone;
  gone = !figures && !refused;
  document.querySelector("main").className = figures ? "" : "stale";
  $("pulse").className = `quiet ${figures ? "live" : "gone"}`;
  if (gone) {
    tick();
  } else {
    say($("pulse-words"), figures ? "Live" : "Refused");
    say($("notice"), refused || "");
    show($("notice"), refused);
  }
  if (gone !== was)
    say($("said"), gone ? "The server stopped answering." : "The server answers again.");
}
function tick() {
  if (!gone) return;
  const since = `No answer for ${age((performance.now() - (last_ms ?? began_ms)) / 1000)}`;
  say($("pulse-words"), since);
  document.title = "hasten: no answer";
  say($("notice"), last_ms === null ? `${since}.` : `${since}. The figures are from before that.`);
  show($("notice"), true);
}
function look() {
  clearTimeout(timer);
  clearInterval(ticker);
  if (document.visibilityState !== "visible") return;
  ticker = setInterval(tick, EVERY_MS);
  poll();
}
document.addEventListener("visibilitychange", look);
addEventListener("hashchange", look);
look();
