// This browser's runs: ids and settings are kept here, states and files come from the nodes, which may have forgotten.

import { make, store, stored } from "./form.js";
import { player } from "./stage.js";
import { ask, isOver } from "./run.js";

const NAME = "animatediff.runs";
const MOST = 24;
const SHORT = { queued: "in line", running: "in the making", error: "failed", cancelled: "cancelled", gone: "no longer there" };
const find = (id) => document.getElementById(id);

function entries() {
  const kept = stored(NAME, []);
  return Array.isArray(kept) ? kept.filter((entry) => typeof entry?.id === "string" && entry.request) : [];
}

export class History {
  constructor(select) {
    this.select = select;
    this.cards = new Map();
    this.runs = new Map();
    this.entries = entries();
    for (const entry of this.entries) this.runs.set(entry.id, { id: entry.id, state: "gone", request: entry.request });
    find("forget").addEventListener("click", () => this.clear());
    this.draw();
  }

  // Asks the node what became of them; `learn` hears of each run that it has, and then of those that another one has.
  async load(learn) {
    const asked = this.entries; // more may come while the node thinks
    const ids = asked.map((entry) => entry.id);
    if (!ids.length) return;
    const { ok, body } = await ask(`local/runs?ids=${ids.join(",")}`);
    if (!ok) return;
    const known = new Map(body.runs.map((run) => [run.id, run]));
    const missing = ids.filter((id) => !known.has(id));
    for (const id of missing) this.update({ id, state: "gone" });
    for (const run of body.runs) learn(run);
    this.search(missing, learn);
  }

  // A run's own address is one that the gateway looks for at all nodes. Nobody waits for this: some may be away.
  async search(ids, learn) {
    if (this.searching) return;
    this.searching = true;
    try {
      for (const id of ids) {
        const { ok, body } = await ask(`local/runs/${id}`).catch(() => ({ ok: false }));
        if (ok) learn(body);
      }
    } finally {
      this.searching = false;
    }
  }

  add(id, request) {
    const { init_image, ...kept } = request;
    const others = entries().filter((entry) => !this.runs.has(entry.id)); // of another tab, in the meantime
    for (const entry of others) this.runs.set(entry.id, { id: entry.id, state: "gone", request: entry.request });
    this.entries = [{ id, request: kept }, ...others, ...this.entries].slice(0, MOST);
    store(NAME, this.entries);
    this.runs.set(id, { id, state: "queued", position: 0, request: kept });
    this.draw();
  }

  update(run) {
    const entry = this.entries.find((one) => one.id === run.id);
    if (!entry) return;
    const before = this.runs.get(run.id);
    const now = { ...run, request: { ...(run.request ?? {}), ...entry.request } };
    this.runs.set(run.id, now);
    if (before?.state !== now.state) this.dress(run.id);
  }

  clear() {
    this.entries = this.entries.filter((entry) => !isOver(this.runs.get(entry.id)));
    store(NAME, this.entries);
    this.draw();
  }

  mark(id) {
    for (const [key, card] of this.cards) card.setAttribute("aria-current", key === id);
  }

  draw() {
    const current = [...this.cards].find(([, card]) => card.getAttribute("aria-current") === "true")?.[0];
    const items = this.entries.map(({ id }) => {
      const card = this.cards.get(id) ?? make("button", { type: "button", className: "card" });
      if (!this.cards.has(id)) card.addEventListener("click", () => this.select(id));
      this.cards.set(id, card);
      return make("li", {}, card);
    });
    for (const id of this.cards.keys()) if (!this.entries.some((entry) => entry.id === id)) this.cards.delete(id);
    find("history").replaceChildren(...items);
    for (const { id } of this.entries) if (!this.cards.get(id).hasChildNodes()) this.dress(id);
    find("history-empty").hidden = this.entries.length > 0;
    find("forget").hidden = this.entries.length === 0;
    if (current) this.mark(current);
  }

  dress(id) {
    const run = this.runs.get(id);
    const card = this.cards.get(id);
    if (!card) return;
    const file = run.state === "done" ? run.files.find((one) => /^(video|image)\//.test(one.media_type)) : null;
    const look = file ? player(file, run.request, true) : make("span", { textContent: SHORT[run.state] ?? run.state });
    if (file) {
      card.onmouseenter = card.onfocus = () => look.play?.().catch(() => {});
      card.onmouseleave = card.onblur = () => look.pause?.();
    }
    card.dataset.state = run.state;
    card.replaceChildren(make("div", { className: "thumb" }, look), make("div", { className: "title", textContent: run.request?.prompt || "(no prompt)" }));
  }
}
