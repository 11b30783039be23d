// The form: what may be picked, and what the person made of it.

import { parse, stringify } from "./api.js";
import { byId, element, setOptions } from "./dom.js";

const TEXT = { user: "user", context: "context", candidates: "candidates", items: "candidates" };

/** A mistake in a field, found before anything is sent. */
export class FieldError extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

/** Fill the form for a model; what the address asked for is chosen. */
export function offer(model, asked) {
  const stored = model.stored.map((row, at) => [String(at), `${at + 1}: ${brief(row.user, row.item)}`]);
  setOptions(byId("stored"), [...stored, ["", "none: paste one"]]);
  byId("stored-field").hidden = stored.length === 0;
  byId("candidates-hint").textContent = model.catalogue
    ? `ids, one a line; ${model.catalogue.items} in the catalogue`
    : "JSON: a list of values for each column";
  const ready = model.versions.filter((each) => each.state === "ready").reverse();
  const versions = ready.map((each) => [
    each.version,
    each.version + (each.labels.length ? ` (${each.labels.join(", ")})` : ""),
  ]);
  setOptions(byId("version"), [["", "as requests get it"], ...versions], asked.version);
  setOptions(byId("compare"), [["", "nothing"], ...versions], asked.compare);
  const heads = model.heads.filter((head) => head.kind !== "multiclass");
  setOptions(byId("head"), heads.map((head) => [head.name, head.name]), asked.head);
  byId("head-field").hidden = heads.length < 2;
  byId("candidates").value = model.catalogue
    ? model.catalogue.ids.join("\n")
    : columnsText(itemsOf(model));
  byId("columns").replaceChildren(
    ...model.columns.map((column) =>
      element("li", {}, `${column.name}: ${column.type}${column.of_item ? ", of the item" : ""}`),
    ),
  );
  pick(model);
}

/** Put the chosen stored request's user into the form. */
export function pick(model) {
  const row = model.stored[byId("stored").value];
  if (row) byId("user").value = stringify(row.user, 1);
  else if (!model.stored.length) byId("user").value = stringify(blank(model), 1);
}

/** A row in a few words: what is null, empty or zero tells little. */
function brief(...parts) {
  const told = Object.entries(Object.assign({}, ...parts)).filter(([, value]) => value && value.length !== 0);
  const words = told.map(([name, value]) => (typeof value === "string" ? value : `${name} ${value}`));
  return words.join(", ").slice(0, 70) || "empty";
}

/** The items of all stored requests, each once, as columns. */
function itemsOf(model) {
  const names = model.columns.filter((column) => column.of_item).map((column) => column.name);
  const seen = new Map();
  for (const { item } of model.stored) seen.set(stringify(names.map((name) => item[name] ?? null)), item);
  return Object.fromEntries(names.map((name) => [name, [...seen.values()].map((item) => item[name] ?? null)]));
}

/** One column a line: short enough to see which is which. */
function columnsText(columns) {
  const lines = Object.entries(columns).map(([name, values]) => ` ${stringify(name)}: ${stringify(values)}`);
  return `{\n${lines.join(",\n")}\n}`;
}

function blank(model) {
  const of = model.columns.filter((column) => !column.of_item);
  return Object.fromEntries(of.map((column) => [column.name, null]));
}

/** Return the body of POST /v1/rank that the form stands for. */
export function readRequest(model) {
  const request = { user: object("user"), context: object("context"), ...candidates() };
  if (!Object.keys(request.context).length) delete request.context;
  if (byId("head").options.length > 1) request.head = byId("head").value;
  request.model = model.name;
  return request;
}

function object(field) {
  const value = parsed(field, byId(field).value.trim() || "{}");
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new FieldError(field, `${field}: expected an object {"column": value, …}`);
  }
  return value;
}

function parsed(field, text) {
  try {
    return parse(text);
  } catch (error) {
    throw new FieldError(field, `${field}: no JSON (${error.message})`);
  }
}

function candidates() {
  const text = byId("candidates").value.trim();
  if (text.startsWith("{")) return { items: parsed("candidates", text) };
  const ids = text.startsWith("[")
    ? parsed("candidates", text)
    : text.split("\n").map((line) => line.trim()).filter(Boolean);
  return { candidates: [...new Set(ids)] };
}

export const shownAtMost = () => Math.max(1, Math.min(500, Math.floor(Number(byId("k").value)) || 20));

/** Say what is wrong, and mark the field that it is in. */
export function showProblem(error) {
  const steps = (error.pointer ?? "").split("/");
  const field = error.field ?? TEXT[steps[1]];
  const place = error.pointer ? element("code", {}, error.pointer) : null;
  byId("problem").replaceChildren(...(place ? [place, " "] : []), error.message);
  byId("problem").hidden = false;
  if (field === "context") byId("context-field").open = true;
  if (field) {
    byId(field).setAttribute("aria-invalid", "true");
    byId(field).focus();
  }
}

export function clearProblem() {
  byId("problem").hidden = true;
  for (const field of Object.values(TEXT)) byId(field).removeAttribute("aria-invalid");
}
