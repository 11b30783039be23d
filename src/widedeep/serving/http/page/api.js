// Talking to the server this page came from; the key lives in this tab's memory alone.

let key = "";

// Ids of 64 bits do not fit into a number of JavaScript: rounded, they would be another user's.
const exact = (_, value, source) =>
  Number.isInteger(value) && !Number.isSafeInteger(value) && /^-?\d+$/.test(source?.source ?? "")
    ? BigInt(source.source)
    : value;
const raw = (_, value) =>
  typeof value === "bigint" ? (JSON.rawJSON?.(String(value)) ?? Number(value)) : value;

/** JSON.parse and JSON.stringify, but that large whole numbers keep all their digits. */
export const parse = (text) => JSON.parse(text, exact);
export const stringify = (value, indent) => JSON.stringify(value, raw, indent);

export function useKey(given) {
  key = given;
}

/** An answer that is no 2xx, with the place in the request that it points to. */
export class Problem extends Error {
  constructor(status, message, pointer) {
    super(message);
    this.status = status;
    this.pointer = pointer;
  }
}

export const get = (path) => call(path, { method: "GET" });

export const post = (path, body) =>
  call(path, {
    method: "POST",
    body: stringify(body),
    headers: { "Content-Type": "application/json" },
  });

async function call(path, options) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch {
    throw new Problem(0, "the server does not answer");
  }
  let body = null;
  try {
    body = parse(await answer.text());
  } catch {
    // A proxy's own error page is no JSON; its status says enough.
  }
  if (!answer.ok) {
    throw new Problem(answer.status, body?.error ?? `HTTP ${answer.status}`, body?.pointer);
  }
  return body;
}
