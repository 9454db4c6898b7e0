// One run on the node, followed by WebSocket; where none opens, by asking; across restarts of the node.

const SLOWEST = 8000;
const SILENCE = 40000; // the node says something every 15 s; after a sleep or in another network it may never again
const PATIENCE = { GET: 10000, DELETE: 10000, POST: 120000 }; // a start image may take its time on a slow line

// A page that was opened by an address with user and password in it may not fetch by such addresses, which relative
// ones then are.
export function address(path) {
  return Object.assign(new URL(path, document.baseURI), { username: "", password: "" });
}

// Throws when no answer comes.
export async function ask(path, options = {}) {
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(), PATIENCE[options.method ?? "GET"]);
  try {
    const answer = await fetch(address(path), { cache: "no-store", signal: late.signal, ...options });
    const text = answer.status === 204 ? "" : await answer.text();
    let body = null;
    try { body = text ? JSON.parse(text) : null; } catch { body = { detail: text.slice(0, 200) }; }
    return { status: answer.status, ok: answer.ok, body };
  } finally {
    clearTimeout(timer);
  }
}

export const isOver = (run) => ["done", "error", "cancelled", "gone"].includes(run.state);

export class Follower {
  // tell(run) at every change, show(image, step) for previews, lost(seconds or null) when the node does not answer.
  constructor(id, { tell, show, lost }) {
    Object.assign(this, { id, tell, show, lost });
    this.tries = 0;
    this.ended = false;
    this.open();
  }

  open() {
    if (this.ended) return;
    const url = address(`local/runs/${this.id}/ws`);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(url);
    this.socket.onmessage = (message) => { this.listen(); this.hear(JSON.parse(message.data)); };
    this.socket.onclose = () => this.leave();
    this.listen();
  }

  listen() {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => this.leave(), SILENCE);
  }

  // Waits for no farewell: a connection that is cut may take minutes to be closed.
  leave() {
    clearTimeout(this.silence);
    this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
    if (!this.ended) this.later();
  }

  hear(message) {
    this.tries = 0;
    this.lost(null);
    if (message.event === "preview") this.show(message.image, message.step);
    else this.take(message.run);
  }

  take(run) {
    if (this.ended) return;
    this.ended = isOver(run);
    if (this.ended) this.leave();
    this.tell(run);
  }

  later() {
    const pause = Math.min(SLOWEST, 500 * 2 ** Math.min(this.tries, 10));
    this.tries += 1;
    setTimeout(() => this.look(), pause);
  }

  async look() {
    try {
      const { status, ok, body } = await ask(`local/runs/${this.id}`);
      if (!ok && status !== 404) throw new Error(`HTTP ${status}`);
      this.lost(null);
      if (status === 404) return this.take({ id: this.id, state: "gone" });
      this.take(body);
      this.tries = Math.min(this.tries, 2); // it answers: a second is long enough to wait for the next socket
      this.open();
    } catch {
      this.lost(Math.min(SLOWEST, 500 * 2 ** this.tries) / 1000);
      this.later();
    }
  }
}
