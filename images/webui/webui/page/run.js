// One run on the node, followed by WebSocket; where none opens, by asking; across restarts of the node.

const SLOWEST = 8000;

export async function ask(path, options = {}) {
  const answer = await fetch(path, { cache: "no-store", ...options });
  const text = answer.status === 204 ? "" : await answer.text();
  let body = null;
  try { body = text ? JSON.parse(text) : null; } catch { body = { detail: text.slice(0, 200) }; }
  return { status: answer.status, ok: answer.ok, body };
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
    const url = new URL(`local/runs/${this.id}/ws`, document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(url);
    this.socket.onmessage = (message) => this.hear(JSON.parse(message.data));
    this.socket.onclose = () => { if (!this.ended) this.later(); };
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
    if (this.ended) this.socket.close();
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
