// Figures that the server keeps, asked for every two seconds, drawn as tiles and small charts.

import { get } from "./api.js";
import { byId, element, shownSeconds, svg } from "./dom.js";

const EVERY_MS = 2000;
const KEPT = 301; // ten minutes
const WIDTH = 320;
const HEIGHT = 130;
const FLOOR = HEIGHT - 18;

let taken = [];
let paused = false;
let model = null;
let first = null;

export function watch(name) {
  model = name;
  draw();
}

/** Give a version the first colour, which it has in the ranking too. */
export function lead(version) {
  first = version;
}

/** Begin to ask; a page that nobody looks at does not. */
export function start() {
  byId("span").addEventListener("change", draw);
  byId("pause").addEventListener("click", () => {
    paused = !paused;
    byId("pause").setAttribute("aria-pressed", String(paused));
    byId("pause").textContent = paused ? "Go on" : "Pause";
  });
  setInterval(() => {
    if (!paused && !document.hidden) look();
  }, EVERY_MS);
  return look();
}

/** Ask now. */
export async function look() {
  try {
    const found = await get("v1/page/live");
    const last = taken.at(-1);
    // A server that was started anew counts from zero again.
    if (last && total(found.latency) < total(last.latency)) taken = [];
    taken = [...taken, found].slice(-KEPT);
    byId("live-state").textContent = "";
    draw();
  } catch (error) {
    byId("live-state").textContent = `No figures: ${error.message}`;
  }
}

const total = (counts) => counts.reduce((sum, count) => sum + count, 0);
const minus = (counts, before) => counts.map((count, at) => count - (before?.[at] ?? 0));

/** The look that a span of seconds begins with; null: the server's start. */
function base(span) {
  if (!span) return null;
  const now = taken.at(-1).time;
  return taken.find((each) => each.time >= now - span - 1);
}

function draw() {
  const now = taken.at(-1);
  if (!now) return;
  const since = base(Number(byId("span").value));
  const latency = minus(now.latency, since?.latency);
  tiles(now, since, latency);
  byId("charts").replaceChildren(
    overTime(),
    histogram("Latency of requests to rank or score", now.latency_edges.map(shownSeconds), [latency], ["requests"]),
    scores(now, since),
  );
}

function tiles(now, since, latency) {
  const recent = base(10);
  const seconds = now.time - recent.time;
  const answered = total(minus(now.latency, recent.latency));
  const failed = Object.keys(now.requests).filter((status) => status >= "400");
  const errors = failed.reduce((sum, status) => sum + now.requests[status] - (since?.requests[status] ?? 0), 0);
  const shown = [
    ["Requests", String(total(latency))],
    ["A second, now", seconds > 0 ? (answered / seconds).toFixed(1) : "–"],
    ["Median", shownQuantile(now.latency_edges, latency, 0.5)],
    ["99th percentile", shownQuantile(now.latency_edges, latency, 0.99)],
    ["Not answered (4xx, 5xx)", String(errors)],
    ["In flight", String(now.in_flight)],
  ];
  byId("tiles").replaceChildren(
    ...shown.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

/** A quantile read from a histogram, straight within a range; NaN without a request. */
function quantile(edges, counts, share) {
  const wanted = share * total(counts);
  let below = 0;
  for (let at = 0; at < counts.length; at++) {
    if (counts[at] && below + counts[at] >= wanted) {
      if (at === edges.length) return edges.at(-1);
      const low = at ? edges[at - 1] : 0;
      return low + ((edges[at] - low) * (wanted - below)) / counts[at];
    }
    below += counts[at];
  }
  return NaN;
}

function shownQuantile(edges, counts, share) {
  const found = quantile(edges, counts, share);
  const open = found === edges.at(-1) && counts.at(-1) > 0;
  return (open ? "above " : "") + shownSeconds(found);
}

/** Median and 99th percentile between one look and the next, over two minutes. */
function overTime() {
  const looks = taken.slice(-61);
  const edges = looks.at(-1).latency_edges;
  const points = looks.slice(1).map((look, at) => {
    const counts = minus(look.latency, looks[at].latency);
    return [0.5, 0.99].map((share) => quantile(edges, counts, share));
  });
  const top = Math.max(0.001, ...points.flat().filter(Number.isFinite)) * 1.1;
  const x = (at) => WIDTH - (points.length - 1 - at) * (WIDTH / 60);
  const y = (seconds) => 8 + (FLOOR - 8) * (1 - seconds / top);
  const lines = [0, 1].flatMap((which) =>
    runs(points.map((pair) => pair[which])).map((run) =>
      svg("polyline", {
        class: which ? "second" : null,
        points: run.map(([at, seconds]) => `${x(at) - (run.length === 1 ? 4 : 0)},${y(seconds)} ${x(at)},${y(seconds)}`).join(" "),
      }),
    ),
  );
  const known = points.filter(([median]) => Number.isFinite(median));
  const told = known.length
    ? `last: median ${shownSeconds(known.at(-1)[0])}, 99th percentile ${shownSeconds(known.at(-1)[1])}`
    : "no requests";
  const chart = frame(`Latency over the last two minutes; ${told}`, [
    svg("text", { x: 0, y: 10 }, shownSeconds(top)),
    svg("text", { x: 0, y: HEIGHT - 4 }, "2 min ago"),
    svg("text", { x: WIDTH, y: HEIGHT - 4, "text-anchor": "end" }, "now"),
    ...lines,
  ]);
  return figure("Latency over time", chart, ["median", "99th percentile"]);
}

/** Runs of neighbours that are numbers: where there was no request there is no line. */
function runs(values) {
  const found = [];
  values.forEach((value, at) => {
    if (!Number.isFinite(value)) return;
    if (at && Number.isFinite(values[at - 1])) found.at(-1).push([at, value]);
    else found.push([[at, value]]);
  });
  return found;
}

function scores(now, since) {
  const before = since?.scores[model] ?? {};
  const versions = Object.entries(now.scores[model] ?? {})
    .map(([version, counts]) => [version, minus(counts, before[version])])
    .filter(([, counts]) => total(counts) > 0)
    .slice(-2)
    .sort(([one], [other]) => (other === first) - (one === first));
  const edges = now.score_edges.map((edge) => String(edge));
  const counts = versions.length ? versions.map(([, each]) => each) : [minus(edges, edges).concat(0)];
  const names = versions.map(([version]) => `version ${version}`);
  return histogram("Scores given", edges, counts, names.length ? names : ["no scores"]);
}

/** Shares by range, the ranges of equal width; only those that hold something are drawn. */
function histogram(title, edges, series, names) {
  const sums = series.map(total);
  const held = edges.concat("more").map((_, at) => series.some((counts) => counts[at] > 0));
  const from = Math.max(0, held.indexOf(true) - 1);
  const to = Math.min(edges.length, held.lastIndexOf(true) + 1);
  if (!sums.some((sum) => sum > 0)) return figure(title, frame(`${title}: none`, [svg("text", { x: WIDTH / 2, y: 60, "text-anchor": "middle" }, "none in this time")]), names);
  const shares = series.map((counts, which) => counts.map((count) => count / (sums[which] || 1)));
  const top = Math.max(...shares.flat());
  const step = WIDTH / (to - from + 1);
  const wide = (step - Math.min(3, step / 4)) / series.length;
  const marks = [];
  const every = Math.ceil(44 / step);
  for (let at = from; at <= to; at++) {
    const left = (at - from) * step;
    shares.forEach((each, which) => {
      const height = (each[at] / top) * (FLOOR - 14);
      const range = `${at ? `above ${edges[at - 1]}, ` : ""}${at < edges.length ? `up to ${edges[at]}` : "without end"}`;
      marks.push(
        svg(
          "rect",
          { class: which ? "second" : null, x: left + which * wide, y: FLOOR - height, width: wide, height },
          svg("title", {}, `${range}: ${series[which][at]} (${(100 * each[at]).toFixed(1)} %), ${names[which]}`),
        ),
      );
    });
    if (at < edges.length && (at - from) % every === 0 && left + step < WIDTH - 8) {
      marks.push(svg("text", { x: left + step, y: HEIGHT - 4, "text-anchor": "middle" }, edges[at]));
    }
  }
  marks.push(svg("text", { x: 0, y: 10 }, `${(100 * top).toFixed(0)} %`));
  return figure(title, frame(`${title}; most often ${mode(edges, series[0])}`, marks), names);
}

function mode(edges, counts) {
  const at = counts.indexOf(Math.max(...counts));
  return at < edges.length ? `up to ${edges[at]}` : `above ${edges.at(-1)}`;
}

function frame(label, marks) {
  const floor = svg("line", { x1: 0, x2: WIDTH, y1: FLOOR, y2: FLOOR });
  return svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, marks, floor);
}

function figure(title, chart, names) {
  const entries = names.map((name, which) =>
    element("li", {}, element("span", { class: which ? "swatch second" : "swatch" }), name),
  );
  return element("figure", {}, element("figcaption", {}, title), chart, element("ul", { class: "legend" }, entries));
}
