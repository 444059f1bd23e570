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
function drawRate(svg, series, title) {
  const values = series.requests;
  const box = frame(svg, steps(Math.max(3, ...values)), rate);
  const x = place => LEFT + box.inner * place / (SECONDS - 1);
  const line = path(values, x, box.y);
  svg.append(make("path", {class: "under", d: `${line}V${box.y(0)}H${LEFT}Z`}),
    make("path", {class: "line", d: line}));
  timeAxis(svg, box);
  const last = values[SECONDS - 1], most = Math.max(...values);
  say(title, most ? `${plural(last, "request")} in the last second, at most ${number(most)} in any`
    : "No request in the last minute");
  svg.setAttribute("aria-label",
    `Requests per second over the last minute: most recently ${number(last)}, at most ${number(most)}`);
}
function drawLatency(svg, series, minute, title) {
  const known = series.p50_ns.filter(value => value !== null);
  const highest = Math.max(...series.p99_ns.map(value => value || 0)) || 1e7;
  const box = frame(svg, decades(Math.min(highest, ...known, 1e6), highest), time, Math.log10);
  const x = place => LEFT + box.inner * place / (SECONDS - 1);
  for (const [name, values] of [["line high", series.p99_ns], ["line", series.p50_ns]])
    svg.append(make("path", {class: name, d: path(values, x, box.y)}));
  timeAxis(svg, box);
  say(title, minute.requests ? `Half of the requests took at most ${time(minute.p50_ns)}, 99 of 100 at most ${
    time(minute.p99_ns)}` : "No request in the last minute");
  svg.setAttribute("aria-label", "Latency over the last minute: " + (known.length
    ? `p50 most recently ${time(known[known.length - 1])}, p99 at most ${time(highest)}`
    : "no requests"));
}
function drawBatches(svg, batches, title) {
  const total = batches.reduce((sum, each) => sum + each[1], 0);
  const box = frame(svg, steps(Math.max(0.01, ...batches.map(each => each[1] / total))), percent);
  const step = box.inner / Math.max(4, batches.length), wide = Math.min(34, 0.7 * step);
  batches.forEach(([rows, count], place) => {
    const middle = LEFT + step * (place + 0.5), top = box.y(count / total);
    svg.append(make("rect", {class: "column", x: middle - wide / 2, y: top, width: wide, rx: 2,
      height: Math.max(1, box.y(0) - top)}),
      make("text", {x: middle, y: box.height - 3, "text-anchor": "middle"}, rows));
  });
  const [often, times] = batches.reduce((most, each) => each[1] > most[1] ? each : most, [0, 0]);
  say(title, total ? `${percent(times / total)} of the batches had ${plural(often, "row")}` : "No batch yet");
  svg.setAttribute("aria-label", total ? `Batches by rows, since the start: ${batches.map(
    ([rows, count]) => `${rows}: ${percent(count / total)}`).join(", ")}` : "No batches yet");
}
