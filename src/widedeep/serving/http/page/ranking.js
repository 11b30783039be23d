// The answer: a table of items, best first, beside another version's, and why each got its score.

import { post } from "./api.js";
import { bar, byId, element, shownScore, shownSeconds, signed, signedBar } from "./dom.js";

const PATH = "v1/rank";
const TERMS = 12;

/** Ask one version, or two, and show what they answer; return the first one's name. */
export async function rank(request, { version, compare, shown, model }) {
  const start = performance.now();
  const reply = await post(PATH, version ? { ...request, version } : request);
  const seconds = (performance.now() - start) / 1e3;
  const other = compare ? await post(PATH, { ...request, version: compare }) : null;
  const table = new Table(request, [reply, other].filter(Boolean), shown, model);
  byId("ranking").replaceChildren(table.made);
  summarise(request, reply, seconds);
  if (other) table.compareInWords();
  const first = byId("ranking").querySelector("button");
  if (first) first.click();
  return reply.model_version;
}

function summarise(request, reply, seconds) {
  const count = reply.items.length;
  byId("summary").textContent =
    `${count} ${count === 1 ? "item" : "items"} ranked by version ${reply.model_version}; ` +
    `${shownSeconds(seconds)} there and back.`;
  const notes = [];
  if (reply.catalogue_version) notes.push(`Catalogue ${reply.catalogue_version.slice(0, 12)}.`);
  if (reply.unknown) {
    const names = reply.unknown.slice(0, 5).map((at) => String(reply.items[at])).join(", ");
    notes.push(`Not in the catalogue, scored by the id alone: ${reply.unknown.length} (${names}${reply.unknown.length > 5 ? ", …" : ""}).`);
  }
  for (const [key, column] of Object.entries(reply.misspelt ?? {})) notes.push(`${key} means nothing; did you mean ${column}?`);
  const absent = Object.keys(reply.absent ?? {});
  if (absent.length) notes.push(`Columns that the request did not bring, taken for null: ${absent.join(", ")}.`);
  showNotes(notes);
}

function showNotes(notes) {
  byId("notes").replaceChildren(...notes.map((note) => element("li", {}, note)));
  byId("notes").hidden = notes.length === 0;
}

/** Equal ids are told apart by their turn, which equal scores keep in both answers. */
function keysOf(reply) {
  const turns = new Map();
  return reply.items.map((item) => {
    const turn = turns.get(item) ?? 0;
    turns.set(item, turn + 1);
    return `${turn}:${item}`;
  });
}

class Table {
  constructor(request, replies, shown, model) {
    this.request = request;
    this.replies = replies;
    this.model = model;
    this.keys = replies.map(keysOf);
    this.places = this.keys.map((keys) => new Map(keys.map((key, at) => [key, at])));
    this.shown = Math.min(shown, replies[0].items.length);
    const most = Math.max(...replies.flatMap((reply) => reply.scores.map(Math.abs)), 0);
    this.top = most > 0 ? most : 1;
    this.unknown = new Set(replies[0].unknown ?? []);
    this.made = this.table();
  }

  get two() {
    return this.replies.length > 1;
  }

  table() {
    const [first, second] = this.replies.map((reply) => `Version ${reply.model_version}`);
    const heads = this.two
      ? [["number", "Rank"], ["number", "then"], ["item", "Item"], ["score", first], ["score second", second], ["number", "Change"]]
      : [["number", "Rank"], ["item", "Item"], ["score", "Score"]];
    const body = element("tbody");
    for (let at = 0; at < this.shown; at++) body.append(this.row(at));
    return element(
      "table",
      { class: this.two ? "two" : null },
      element("caption", { class: "unseen" }, "Items, best first; an item's name opens why it got its score"),
      element("thead", {}, element("tr", {}, heads.map(([kind, text]) => element("th", { scope: "col", class: kind }, text)))),
      body,
    );
  }

  row(at) {
    const [reply] = this.replies;
    const item = element("button", { type: "button", "aria-expanded": "false" }, this.nameOf(reply.items[at]));
    const tag = this.unknown.has(at) ? element("span", { class: "tag" }, "unknown") : null;
    const cells = [
      element("td", { class: "number" }, String(at + 1)),
      element("th", { class: "item", scope: "row" }, item, tag ? [" ", tag] : null),
      this.scoreCell(reply.scores[at], "score"),
    ];
    if (this.two) {
      const there = this.places[1].get(this.keys[0][at]);
      const score = this.replies[1].scores[there];
      cells.splice(1, 0, element("td", { class: "number" }, there === undefined ? "–" : moved(at, there)));
      cells.push(this.scoreCell(score, "score second"));
      cells.push(element("td", { class: "number" }, Number.isFinite(score) ? signed(score - reply.scores[at]) : "–"));
    }
    const row = element("tr", {}, cells);
    item.addEventListener("click", () => this.toggle(item, row, at, cells.length));
    return row;
  }

  scoreCell(score, kind) {
    return element("td", { class: kind }, shownScore(score), bar(score / this.top));
  }

  /** What an item is called: its id, or its values where it came without one. */
  nameOf(item) {
    const { items } = this.request;
    if (!items || !this.isPosition(item)) return String(item);
    const values = Object.entries(items).map(([name, column]) => `${name} = ${column[item]}`);
    return values.slice(0, 4).join(", ") || String(item);
  }

  isPosition(item) {
    const id = this.model.catalogue?.id_column;
    if (id && id in this.request.items) return false;
    return Number.isInteger(item);
  }

  /** The request for one item alone. */
  requestFor(item) {
    const { items, candidates, ...rest } = this.request;
    if (candidates) return { ...rest, candidates: [item] };
    const columns = Object.values(items);
    const at = this.isPosition(item)
      ? item
      : columns.map((column) => column.findIndex((value) => value === item)).find((found) => found >= 0);
    const one = Object.entries(items).map(([name, column]) => [name, [column[at]]]);
    return { ...rest, items: Object.fromEntries(one) };
  }

  async toggle(button, row, at, width) {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    row.classList.toggle("open", !open);
    if (open) {
      row.nextElementSibling.remove();
      return;
    }
    const cell = element("td", { colspan: width }, "Asking why …");
    row.after(element("tr", { class: "why" }, cell));
    const request = { ...this.requestFor(this.replies[0].items[at]), explain: true };
    try {
      const found = await Promise.all(
        this.replies.map((reply) => post(PATH, { ...request, version: reply.model_version })),
      );
      cell.replaceChildren(explanation(found.map((reply) => reply.explanations[0]), this.replies, this.column()));
    } catch (error) {
      cell.textContent = `Not explained: ${error.message}`;
    }
  }

  /** Which of the logits the ranking is by. */
  column() {
    const heads = this.model.heads.filter((head) => head.kind !== "multiclass");
    return (heads.find((head) => head.name === this.request.head) ?? heads[0]).column;
  }

  compareInWords() {
    const [first, second] = this.replies;
    const there = this.keys[0].map((key) => this.places[1].get(key));
    const both = there.map((to, at) => [at, to]).filter(([, to]) => to !== undefined);
    const apart = both.map(([at, to]) => Math.abs(second.scores[to] - first.scores[at]));
    const mean = apart.reduce((sum, each) => sum + each, 0) / Math.max(apart.length, 1);
    const shared = both.filter(([at, to]) => at < this.shown && to < this.shown).length;
    const words = [
      `Of the best ${this.shown} by version ${first.model_version}, ${shared} are among the best ${this.shown} by version ${second.model_version}.`,
      `Scores differ by ${shownScore(mean)} on average, by ${shownScore(Math.max(0, ...apart))} at most.`,
    ];
    const [at, to] = both.reduce((best, pair) => (Math.abs(pair[1] - pair[0]) > Math.abs(best[1] - best[0]) ? pair : best), [0, 0]);
    if (at !== to) words.push(`The largest move: ${this.nameOf(first.items[at])}, from ${at + 1} to ${to + 1}.`);
    showNotes([...words, ...[...byId("notes").children].map((note) => note.textContent)]);
  }
}

function moved(from, to) {
  const arrow = to < from ? " ↑" : to > from ? " ↓" : "";
  return `${to + 1}${arrow}`;
}

/** The logit taken apart; with two versions, their parts side by side. */
function explanation(found, replies, column) {
  const terms = new Map();
  found.forEach((each, version) => {
    for (const { feature, value, weights } of each.wide) {
      const name = `${feature} = ${value}`;
      if (!terms.has(name)) terms.set(name, found.map(() => 0));
      terms.get(name)[version] += weights[column];
    }
  });
  const size = ([, values]) => Math.max(...values.map(Math.abs));
  const rows = [...terms].filter((term) => size(term) > 0).sort((a, b) => size(b) - size(a));
  const rest = rows.splice(TERMS);
  if (rest.length) {
    rows.push([`${rest.length} more wide terms`, found.map((_, version) => rest.reduce((sum, [, values]) => sum + values[version], 0))]);
  }
  const parts = [
    ["deep part", found.map((each) => each.deep[column])],
    ["bias", found.map((each) => each.bias[column])],
  ];
  const widest = Math.max(...[...rows, ...parts].map(size), 1e-9);
  const line = ([name, values]) =>
    element("tr", {}, element("th", { scope: "row" }, name), values.map((value, version) => valueCell(value, widest, version)));
  const sum = found.map((each) => each.logits[column]);
  const heads = replies.map((reply) => element("th", { scope: "col" }, `Version ${reply.model_version}`));
  return element(
    "table",
    { class: found.length > 1 ? "two" : null },
    element("caption", {}, rows.length ? "What each part adds to the logit: wide terms, deep part, bias" : "No wide term fits this request"),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Wide term"), heads)),
    element("tbody", {}, rows.map(line)),
    element("tfoot", {}, parts.map(line), element("tr", {}, element("th", { scope: "row" }, "logit, before calibration"), sum.map((value) => element("td", {}, element("div", { class: "value" }, element("span", {}, signed(value))))))),
  );
}

function valueCell(value, widest, version) {
  return element(
    "td",
    { class: version ? "second" : null },
    element("div", { class: "value" }, element("span", {}, signed(value)), signedBar(value / widest)),
  );
}
