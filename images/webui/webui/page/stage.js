// The large view: the selected run from the line to the video.

import { make } from "./form.js";
import { address, isOver } from "./run.js";

const find = (id) => document.getElementById(id);
const PHASES = { load: "Preparing", step: "Drawing", decode: "Developing the frames", encode: "Writing the file" };
const LONG_FORM = { mp4: "MP4", gif: "GIF", webp: "WebP", webm: "WebM", png: "PNG" };

export class Stage {
  constructor({ cancel, reuse, reuseSeed }) {
    this.run = null;
    this.pace = null;
    this.file = 0;
    find("cancel").addEventListener("click", () => { find("cancel").disabled = true; cancel(this.run.id); });
    find("frame").addEventListener("input", (event) => this.show(this.run.files.filter(isFrame)[event.target.value - 1]));
    find("reuse").addEventListener("click", () => reuse(this.run));
    find("reuse-seed").addEventListener("click", () => reuseSeed(this.run));
  }

  select(run, preview) {
    this.file = 0;
    this.pace = null;
    this.playing = null;
    this.spoken = null;
    find("cancel").disabled = false;
    find("preview").hidden = true;
    this.update(run);
    if (preview && !isOver(run)) this.preview(preview);
  }

  preview(image) {
    find("preview").src = image;
    find("preview").hidden = false;
    find("empty").hidden = true;
  }

  update(run) {
    this.run = run;
    const over = isOver(run);
    find("progress").hidden = over;
    if (over) find("preview").hidden = true;
    else this.showProgress(run);
    this.reserve(over && run.state !== "done" ? null : run.request);
    this.say(run);
    find("run-error").hidden = !(run.error || run.state === "gone");
    find("run-error").textContent = run.error ? explain(run.error) : GONE;
    find("empty").hidden = run.state === "done" || !find("preview").hidden;
    find("empty").textContent = over ? { cancelled: "Cancelled.", error: "No video this time.", gone: "" }[run.state] ?? "" : "A preview comes with the first steps.";
    find("result").hidden = run.state !== "done";
    find("player").hidden = run.state !== "done";
    const warnings = run.parameters?.warnings ?? [];
    find("warnings").hidden = warnings.length === 0;
    find("warnings").replaceChildren(...warnings.map((text) => make("li", { textContent: text })));
    find("made-with").textContent = run.request ? madeWith(run) : "";
    if (run.state === "done") this.showFiles(run);
    else { this.playing = null; find("player").replaceChildren(); }
  }

  // The place of the picture, before there is one: nothing below it may move away from under a pointer.
  reserve(request) {
    if (request) find("screen").style.setProperty("--shape", `${request.width} / ${request.height}`);
    else find("screen").style.removeProperty("--shape");
  }

  showProgress(run) {
    const [text, share] = progressOf(run);
    find("phase").textContent = text;
    const bar = find("bar");
    if (share === null) bar.removeAttribute("value");
    else bar.value = share;
    bar.setAttribute("aria-valuetext", text);
    find("eta").textContent = this.eta(run);
  }

  eta(run) {
    if (run.phase !== "step" || run.step < 1) { this.pace = null; return ""; }
    const now = performance.now();
    this.pace ??= { step: run.step, at: now };
    const done = run.step - this.pace.step;
    if (done < 2) return "";
    return `about ${duration(((now - this.pace.at) / done / 1000) * (run.total_steps - run.step))} left`;
  }

  // For screen readers: what changed, not every step.
  say(run) {
    const text = run.state === "running" ? PHASES[run.phase] ?? "" : { queued: "Waiting in line", done: "The video is ready", error: "The video failed", cancelled: "Cancelled", gone: "Gone" }[run.state];
    if (this.spoken !== text) find("spoken").textContent = this.spoken = text;
  }

  showFiles(run) {
    const file = run.files[this.file] ?? run.files[0];
    if (!file) return;
    if (this.playing !== file.url) {
      this.playing = file.url;
      find("player").replaceChildren(player(file, run.request));
    }
    find("download").href = address(`${file.url}?download`);
    find("download").textContent = `Download ${LONG_FORM[extension(file)] ?? file.name} (${size(file.size_bytes)})`;
    const frames = run.files.filter(isFrame);
    const tabs = run.files.filter((one) => !isFrame(one) || one === frames[0]);
    find("tabs").hidden = tabs.length < 2;
    find("tabs").replaceChildren(...tabs.map((one, index) => {
      const tab = make("button", { type: "button", textContent: isFrame(one) ? "PNG frames" : LONG_FORM[extension(one)] ?? one.name });
      tab.setAttribute("aria-pressed", one === file || (isFrame(one) && isFrame(file)));
      tab.addEventListener("click", () => { this.show(one); find("tabs").children[index].focus(); });
      return tab;
    }));
    find("frame-choice").hidden = !isFrame(file);
    Object.assign(find("frame"), { max: frames.length, value: frames.indexOf(file) + 1 });
    find("frame-shown").textContent = `${frames.indexOf(file) + 1} of ${frames.length}`;
  }

  show(file) {
    this.file = this.run.files.indexOf(file);
    this.showFiles(this.run);
  }
}

const GONE = "No node that answers has this run any more: its node was restarted or is away, or newer results needed the room. Its settings are still here.";

export function player(file, request, small = false) {
  const text = `Video: ${request?.prompt ?? file.name}`;
  if (file.media_type.startsWith("video/")) {
    const video = make("video", { src: address(file.url), muted: true, loop: true, playsInline: true, preload: small ? "metadata" : "auto", controls: !small, autoplay: !small });
    video.setAttribute("aria-label", text);
    return video;
  }
  if (file.media_type.startsWith("image/")) return make("img", { src: address(file.url), alt: text, loading: "lazy" });
  return make("p", { className: "empty", textContent: `${file.name} can be downloaded.` });
}

export function progressOf(run) {
  if (run.state === "queued") {
    const ahead = run.position <= 1 ? "Next in line" : `Number ${run.position} in line`;
    const why = { cluster: "the cluster's queue is using this GPU", local: "another video is being made" }[run.blocked_by];
    return [why ? `${ahead}: ${why}` : ahead, null];
  }
  const name = PHASES[run.phase] ?? "Starting";
  const drawn = run.total_steps ? 0.9 * run.step / run.total_steps : 0.9; // a picture may only be passed on
  if (run.phase === "step") return [`${name}: step ${run.step} of ${run.total_steps}`, drawn];
  const part = run.parts ? run.part / run.parts : 0;
  const parts = run.parts ? ` (${run.part} of ${run.parts})` : "";
  if (run.phase === "decode") return [name + parts, 0.9 + 0.06 * part];
  if (run.phase === "encode") return [name + parts, 0.96 + 0.04 * part];
  return [name, run.step > 0 ? drawn : null];
}

function explain({ reason, message }) {
  const advice = { OOM: "The GPU ran out of memory. Try fewer frames or a smaller size.", HOST_OOM: "The node ran out of memory. Try fewer frames or a smaller size.", WORKER_LOST: "The node was shut down." }[reason];
  return advice ? `${advice} (${message})` : `${message} (${reason})`;
}

function madeWith(run) {
  const all = { ...run.request, ...run.parameters };
  const parts = [`${all.width}×${all.height}`, `${all.frames} frames at ${all.fps}/s`, `${all.steps} steps`, `CFG ${all.cfg_scale}`, `seed ${run.request.seed}`];
  for (const name of ["sampler", "model", "motion_module"]) if (all[name]) parts.push(all[name]);
  if (run.started_at && run.finished_at) parts.push(`made in ${duration(run.finished_at - run.started_at)}`);
  return parts.join(" · ");
}

const isFrame = (file) => file.media_type === "image/png";
const extension = (file) => file.name.split(".").pop().toLowerCase();
const size = (bytes) => bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
const duration = (seconds) => seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;
