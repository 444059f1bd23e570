// -- one model

const CARDS = [
  ["rate", "Requests answered", "Requests answered per second, as a mean over the last 10 seconds"],
  ["middle", "Half took at most", "Median latency (p50) in the server over the last 10 seconds"],
  ["high", "99 of 100 took at most", "99th percentile of the latency (p99) in the server over the last 10 seconds"],
  ["queue", "Waiting", "Rows in the queue now, and how long the next one waits for others to join its batch"],
];
const CHARTS = [
  ["rate", "requests per second"],
  ["latency", make("span", {}, make("span", {class: "key"}, "half took at most this"),
    make("span", {class: "key high"}, "99 of 100 did"))],
  ["batches", "share of all batches, by their rows"],
];
class View {
  constructor(model) {
    this.heading = make("h2", {}, model.name + " ",
      make("span", {class: "quiet"}, `version ${model.version} `));
    this.state = make("span", {class: "state"});
    this.heading.append(this.state);
    this.alarm = make("p", {class: "notice", hidden: ""});
    this.why = make("p", {class: "quiet why"});
    this.cards = {};
    const cards = CARDS.map(([key, title, meaning]) => {
      const figure = make("p", {class: "figure"}), below = make("p", {class: "quiet"});
      this.cards[key] = [figure, below];
      return make("li", {title: meaning}, make("h3", {}, title), figure, below);
    });
    this.charts = {};
    this.titles = {};
    const charts = CHARTS.map(([key, below]) => {
      this.charts[key] = make("svg", {role: "img"});
      this.titles[key] = make("h3");
      const said = typeof below === "string" ? below : below.cloneNode(true);
      return make("figure", {}, make("figcaption", {}, this.titles[key], make("p", {}, said)), this.charts[key]);
    });
    this.facts = make("dl", {});
    this.sizes = table(`Batches of ${model.name} by rows`, ["Rows in a batch", "Batches", "Share"]);
    this.seconds = table(`${model.name}, second by second`, ["Second", "Requests", "Half within", "99 of 100 within"]);
    this.stages = table(`Where the time of ${model.name} goes`, ["Stage", "Share of the time", "Half within", "99 of 100 within"]);
    this.numbers = make("details", {}, make("summary", {}, "The numbers"), this.sizes, this.seconds,
      this.stages);
    this.numbers.addEventListener("toggle", () => this.table());
    this.live = make("div", {}, make("ul", {class: "answers"}, ...cards),
      make("div", {class: "charts"}, ...charts), this.facts, this.numbers);
    this.section = make("section", {}, this.heading, this.alarm, this.why, this.live);
    new ResizeObserver(() => this.draw()).observe(this.charts.rate);
  }
  update(model, nowSeconds) {
    const served = this.served = model.served;
    say(this.state, STATES[model.state] || model.state);
    this.state.className = `state ${TONES[model.state] || "quiet"}`;
    show(this.live, served);
    const alarms = alarms_of(model);
    say(this.alarm, `Alarm: ${alarms.join("; ")}`);
    show(this.alarm, alarms.length);
    say(this.why, served ? answering(served) : STATES[model.state] === model.reason ? "" : model.reason);
    if (!served) return;
    const {now, minute} = served;
    this.card("rate", `${rate(now.throughput_per_s)}/s`, `${number(minute.requests)} in a minute`);
    this.card("middle", time(now.p50_ns),
      now.requests ? `9 of 10 took at most ${time(now.p90_ns)}` : `nothing for ${nowSeconds} s`);
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
    const {series, minute, batches} = this.served;
    drawRate(this.charts.rate, series, this.titles.rate);
    drawLatency(this.charts.latency, series, minute, this.titles.latency);
    drawBatches(this.charts.batches, batches, this.titles.batches);
  }
  table() {
    if (!this.numbers.open || !this.served) return;
    const {series: {requests, p50_ns, p99_ns}, batches, stages} = this.served;
    const total = batches.reduce((sum, each) => sum + each[1], 0);
    show(this.sizes, total);
    fill(this.sizes, batches.map(([rows, count]) =>
      [number(rows), number(count), percent(count / total)]));
    fill(this.seconds, requests.map((count, place) => [`${SECONDS - place} s ago`, number(count),
      time(p50_ns[place]), time(p99_ns[place])]).reverse());
    fill(this.stages, stages.map(each =>
      [stageName(each), percent(each.share), bound(each.p50_ns), bound(each.p99_ns)]));
  }
}
function answering(served) {
  const status = served.status === "uncertified" ? "not certified" : served.status;
  if (served.monitor && served.monitor.taken_over)
    return "The exact model answers, since the monitor raised an alarm.";
  if (served.fell_back) return "The exact model answers, since the fast one failed.";
  if (served.answers === "exact") return "The exact model answers.";
  return `The optimized model answers, ${status}: ${served.why}`;
}
const alarms_of = model => (model.served && model.served.monitor && model.served.monitor.alarms) || [];
function facts_of(served) {
  const refusals = Object.entries(served.refusals).map(([kind, count]) =>
    `${number(count)} ${KINDS[kind] || kind.toLowerCase().replaceAll("_", " ")}`);
  const facts = [
    ["Model", served.label],
    ["Answered", `${plural(served.requests, "request")}, ${plural(served.rows, "row")}`],
    ["Refused or failed", refusals.join(", ") || "none"],
    ["Given up by clients", number(served.cancelled)],
  ];
  if (served.replaced) facts.push(["Answered by the exact model", number(served.replaced)]);
  if (served.cache) {
    const {hits, misses, entries, size_bytes, most_bytes} = served.cache, asked = hits + misses;
    facts.push(["Cached answers", `${percent(hits / (asked || 1))} of ${plural(asked, "look-up")} found
      one; ${number(entries)} cached, ${size(size_bytes)} of ${size(most_bytes)} for all models`]);
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
  const headline = figures.draining ? "Draining: no new work is accepted"
    : !models.length ? "No models" : ready === models.length ? `${count}, ready` : `${ready} of ${count} ready`;
  say($("headline"), headline);
  show($("empty"), !models.length);
  document.title = `hasten: ${headline}`;
  say($("server"), flat(`up for
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
  ["Model", "Version", "State", "Answers", "Requests", "Half within", "99 of 100 within"]);
function overview(models) {
  show(all, models.length > 1);
  fill(all, models.map(({name, version, state, served}) => {
    const now = served && served.now, said = STATES[state] || state;
    const who = served && `${served.answers === "exact" ? "exact model" : "optimized model"}, ${
      served.status === "uncertified" ? "not certified" : served.status}`;
    return [name, version, said, ...(now ? [who,
      `${rate(now.throughput_per_s)}/s`, time(now.p50_ns), time(now.p99_ns)] : Array(4).fill(NONE))];
  }));
}
$("overview").append(all);
function announce(models) {
  const now = new Map(models.map(model => [`${model.name} version ${model.version}`,
    [STATES[model.state] || model.state, ...alarms_of(model).map(alarm => `in alarm: ${alarm}`)].join(" and ")]));
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
