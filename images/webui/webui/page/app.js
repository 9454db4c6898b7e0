// Puts the page together: the node's state in the head, the form, the stage, this browser's runs.

import { Form, make, store, stored } from "./form.js";
import { History } from "./history.js";
import { Follower, ask, isOver } from "./run.js";
import { Stage } from "./stage.js";

const NODE_SECONDS = 2;
const THEMES = { auto: "as the system", light: "light", dark: "dark" };
const FACTS = {
  status: "Status", message: "Message", engine: "Engine", checkpoint: "Checkpoint", motion_module: "Motion module",
  fingerprint: "Fingerprint", gpu: "GPU", busy: "Running", phase: "Phase", step: "Step", total_steps: "of", line: "Waiting here",
};
const find = (id) => document.getElementById(id);

const previews = new Map();
const followers = new Map();
let selected = null;
let nodeFailures = 0;
let node = null;

const form = new Form(submit);
const history = new History(select);
const stage = new Stage({
  cancel: async (id) => {
    const answer = await ask(`local/runs/${id}`, { method: "DELETE" }).catch(() => null);
    if (!answer?.ok) find("cancel").disabled = false;
  },
  reuse: (run) => { form.fillAnew(run.request); find("prompt").focus(); },
  reuseSeed: (run) => form.fill({ seed: run.request.seed }),
});

async function submit() {
  const button = find("generate");
  if (button.disabled) return; // the keyboard's way passes by the button
  button.disabled = true;
  const request = form.read();
  try {
    const { status, ok, body } = await ask("local/runs", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request) });
    if (ok) {
      history.add(body.id, request);
      follow(body.id);
      select(body.id);
      if (matchMedia("(max-width: 54rem)").matches) find("stage").scrollIntoView({ block: "start" });
    } else if (status === 422) form.showErrors(body.errors ?? [{ field: "body", message: body.detail }]);
    else form.say(refusal(status, body));
  } catch {
    form.say("The node does not answer. Nothing was started; try again in a moment.");
  } finally {
    button.disabled = false;
  }
}

function refusal(status, body) {
  if (status === 413) return "This is more than the node accepts; use a smaller start image.";
  if (status === 401 || status === 403) return "You are not signed in any more. Reload the page.";
  return `${body?.detail ?? `The node answered ${status}`}.`;
}

function follow(id) {
  if (followers.has(id)) return;
  followers.set(id, new Follower(id, {
    tell: (run) => {
      if (isOver(run)) { followers.delete(id); previews.delete(id); }
      learn(run);
    },
    show: (image) => { previews.set(id, image); if (selected === id) stage.preview(image); },
    lost: (seconds) => banner("run", seconds === null ? "" : "The connection to this node is lost. Trying again…"),
  }));
}

function learn(run) {
  history.update(run);
  if (!isOver(run)) follow(run.id);
  if (selected === run.id) stage.update(history.runs.get(run.id) ?? run);
}

function select(id) {
  selected = id;
  history.mark(id);
  stage.select(history.runs.get(id), previews.get(id));
}

// Several things can be wrong at once; the first that is shows.
const notes = new Map();
function banner(about, text) {
  if (text) notes.set(about, text); else notes.delete(about);
  const shown = [...notes.values()][0] ?? "";
  if (find("banner").textContent !== shown) find("banner").textContent = shown;
  find("banner").hidden = !shown;
}

async function watchNode() {
  if (!document.hidden || !node) {
    try {
      const { ok, status, body } = await ask("local/node");
      if (!ok) throw new Error(refusal(status, body));
      const wasAway = nodeFailures > 0 || node === null || (node.status !== "ok" && body.status === "ok") || node.fingerprint !== body.fingerprint;
      nodeFailures = 0;
      node = body;
      banner("node", "");
      showNode();
      if (wasAway) await comeBack();
    } catch {
      nodeFailures += 1;
      find("dot").dataset.state = "gone";
      find("node-status").textContent = "no answer";
      if (nodeFailures > 1) banner("node", "This node does not answer. The page goes on as soon as it does.");
    }
  }
  setTimeout(watchNode, 1000 * Math.min(10, NODE_SECONDS * (1 + nodeFailures)));
}

// The first contact, or one after a restart: the choices may be others, and runs may be gone.
async function comeBack() {
  const { ok, body } = await ask("local/choices");
  if (ok) form.setChoices(body);
  await history.load(learn);
  const latest = history.entries[0]?.id;
  if (selected === null && latest && history.runs.get(latest).state !== "gone") select(latest);
  else if (selected !== null) stage.update(history.runs.get(selected));
}

function showNode() {
  const busy = node.status === "ok" && node.busy;
  find("dot").dataset.state = busy ? "busy" : node.status;
  find("node-name").textContent = node.node;
  document.title = `${node.node} · AnimateDiff`;
  find("node-status").textContent = busy ? (node.busy === "local" ? "working" : "working for the cluster's queue")
    : { ok: "ready", loading: "loading the models", draining: "shutting down", error: node.message ?? "not working" }[node.status] ?? node.status;
  if (find("facts").hidden) return;
  find("facts").querySelector("dl").replaceChildren(...Object.entries(FACTS).flatMap(([name, label]) => {
    const value = fact(name, node[name]);
    return value === null ? [] : [make("dt", { textContent: label }), make("dd", { textContent: value, id: `fact-${name}` })];
  }));
}

function fact(name, value) {
  if (value === null || value === undefined) return name === "busy" ? "nothing" : null;
  if (name === "line") return String(value.waiting);
  if (name === "gpu") return `${value.name}, ${value.memory_used_mib} of ${value.memory_total_mib} MiB used`;
  if (name === "busy") return value === "local" ? "a video ordered on this page" : "a job of the cluster's queue";
  return String(value);
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  find("theme").setAttribute("aria-label", `Colours: ${THEMES[theme]}`);
  find("theme").title = `Colours: ${THEMES[theme]}`;
  store("animatediff.theme", theme);
}

let theme = stored("animatediff.theme", "auto");
if (!(theme in THEMES)) theme = "auto";
setTheme(theme);
find("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  setTheme(theme = names[(names.indexOf(theme) + 1) % names.length]);
});
find("facts-button").addEventListener("click", (event) => {
  find("facts").hidden = !find("facts").hidden;
  event.currentTarget.setAttribute("aria-expanded", !find("facts").hidden);
  if (node) showNode();
});
watchNode();
