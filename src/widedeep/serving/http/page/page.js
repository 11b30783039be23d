// The page: pick or paste a user, rank, ask why, compare two versions, watch the figures.

import { get, useKey } from "./api.js";
import { byId, setOptions } from "./dom.js";
import { clearProblem, offer, pick, readRequest, showProblem, shownAtMost } from "./form.js";
import * as live from "./live.js";
import { rank } from "./ranking.js";

const REMEMBERED = ["model", "version", "compare", "head", "k"];

let models = [];
const asked = Object.fromEntries(new URLSearchParams(location.search));

const chosen = () => models.find((model) => model.name === byId("model").value) ?? models[0];

async function load() {
  try {
    const found = await get("v1/page/choices");
    models = found.models;
    byId("key-form").hidden = true;
    setOptions(byId("model"), models.map((model) => [model.name, model.name]), asked.model);
    byId("model-field").hidden = models.length < 2;
    if (asked.k) byId("k").value = asked.k;
    change();
    await live.start();
    if (chosen().stored.length) await ask();
  } catch (error) {
    byId("state").textContent = error.message;
    byId("key-form").hidden = error.status !== 401 && error.status !== 403;
  }
}

/** Show the model that is chosen now. */
function change() {
  const model = chosen();
  const ready = model.versions.filter((each) => each.state === "ready").map((each) => each.version);
  const failed = model.versions.filter((each) => each.error);
  byId("state").textContent =
    `${model.name}: ${ready.length ? `version ${ready.join(", ")} ready` : "no version is ready"}` +
    failed.map((each) => `; ${each.version} failed: ${each.error}`).join("");
  offer(model, asked);
  live.watch(model.name);
}

async function ask() {
  clearProblem();
  byId("rank").disabled = true;
  try {
    const model = chosen();
    const choice = {
      version: byId("version").value,
      compare: byId("compare").value,
      shown: shownAtMost(),
      model,
    };
    live.lead(await rank(readRequest(model), choice));
    remember();
    await live.look();
  } catch (error) {
    showProblem(error);
  } finally {
    byId("rank").disabled = false;
  }
}

/** Put what was chosen, but nothing of the user, into the address: it can be sent to a colleague. */
function remember() {
  const kept = new URLSearchParams();
  for (const name of REMEMBERED) {
    const field = byId(name);
    if (field.value && !(name === "model" && models.length < 2) && field.value !== field.defaultValue) {
      kept.set(name, field.value);
    }
  }
  history.replaceState(null, "", kept.size ? `?${kept}` : location.pathname);
}

byId("model").addEventListener("change", change);
byId("stored").addEventListener("change", () => pick(chosen()));
byId("request").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
byId("request").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    ask();
  }
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  load();
});

load();
