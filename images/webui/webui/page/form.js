// The form: the node's own choices, what the user asks for, and the node's complaints beside the fields they are about.

const SIZES = [[256, 256], [384, 384], [512, 512], [512, 768], [768, 512], [1024, 576]];
const NUMBERS = ["width", "height", "frames", "fps", "steps", "cfg_scale"];
const NUMBERS_OR_NOTHING = ["context_batch_size", "context_overlap", "clip_skip", "loop_number"];
const MENUS = ["model", "motion_module", "sampler", "scheduler", "vae"];
const DRAFT = "animatediff.form";
const IMAGE_TEXT = 15 * 1024 * 1024; // what a request may hold, as base64
const FORMAT_NAMES = { mp4: "MP4", gif: "GIF", webp: "WebP", webm: "WebM", frames: "PNG frames" };

const find = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export class Form {
  constructor(submit) {
    this.element = find("form");
    this.image = null;
    this.choices = null;
    this.element.addEventListener("submit", (event) => { event.preventDefault(); this.clearErrors(); submit(); });
    this.element.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) this.element.requestSubmit();
    });
    this.element.addEventListener("input", (event) => { this.clearError(event.target.closest("[data-field]")); this.refresh(); });
    for (const [width, height] of SIZES) {
      const chip = make("button", { type: "button", textContent: `${width}×${height}` });
      chip.dataset.size = `${width}x${height}`;
      chip.addEventListener("click", () => this.setSize(width, height));
      find("sizes").append(chip);
    }
    find("swap").addEventListener("click", () => this.setSize(find("height").value, find("width").value));
    find("dice").addEventListener("click", () => { find("seed").value = randomSeed(); this.refresh(); });
    find("no-seed").addEventListener("click", () => { find("seed").value = ""; this.refresh(); find("seed").focus(); });
    find("lora-add").addEventListener("click", () => this.addLora(find("lora-choice").value, 1));
    this.listenToDrop();
  }

  // What the node offers; called again whenever it came back from a restart.
  setChoices(choices) {
    const first = this.choices === null;
    const kept = first ? null : this.read(true);
    this.choices = choices;
    for (const [name, limits] of Object.entries(choices.limits)) {
      const field = find(name);
      if (field) Object.assign(field, { min: limits.min, max: limits.max, step: limits.step });
    }
    for (const select of this.element.querySelectorAll("[data-menu]")) this.fillMenu(select);
    for (const field of this.element.querySelectorAll("[data-needs]")) field.hidden = !(field.dataset.needs in choices.defaults);
    find("loras").hidden = choices.loras.length === 0;
    find("lora-choice").replaceChildren(...choices.loras.map((name) => make("option", { value: name, textContent: name })));
    find("formats").replaceChildren(...choices.formats.map((name) =>
      make("label", {}, make("input", { type: "checkbox", name: "format", value: name, checked: name === "mp4" }), FORMAT_NAMES[name] ?? name)));
    this.fill({ ...choices.defaults, seed: "", ...(first ? draft() : kept) });
  }

  fillMenu(select) {
    const names = this.choices[select.dataset.menu] ?? [];
    const none = select.dataset.none;
    const options = names.map((name) => make("option", { value: name, textContent: name }));
    if (none) options.unshift(make("option", { value: "", textContent: none }));
    select.replaceChildren(...options);
    select.closest("[data-field]").hidden = names.length === 0;
  }

  // With values of a request, of this browser's draft or of an old run; what they do not name stays.
  fill(request) {
    for (const name of ["prompt", "negative_prompt", "denoising_strength", ...NUMBERS]) {
      if (request[name] !== undefined && request[name] !== null) find(name).value = request[name];
    }
    for (const name of NUMBERS_OR_NOTHING) if (name in request) find(name).value = request[name] ?? "";
    for (const name of MENUS) {
      const select = find(name);
      const known = [...select.options].some((option) => option.value === (request[name] ?? ""));
      if (name in request && known) select.value = request[name] ?? "";
    }
    if ("seed" in request) find("seed").value = request.seed === -1 ? "" : request.seed;
    for (const name of ["closed_loop", "free_init"]) if (name in request) find(name).checked = Boolean(request[name]);
    if (Array.isArray(request.loras)) {
      find("lora-list").replaceChildren();
      for (const { name, weight } of request.loras) this.addLora(name, weight);
    }
    if (Array.isArray(request.format)) {
      for (const box of this.element.querySelectorAll("[name=format]")) box.checked = request.format.includes(box.value);
    }
    this.refresh();
  }

  // With the whole of an old run: what it does not name is as the node has it, not as this form happens to be.
  fillAnew(request) {
    this.setImage(null);
    const nothing = Object.fromEntries([...NUMBERS_OR_NOTHING, ...MENUS, "closed_loop", "free_init"].map((name) => [name, null]));
    this.fill({ ...nothing, negative_prompt: "", loras: [], ...this.choices.defaults, ...request });
  }

  // The public request. What is left as it was is not sent, so that the node's own defaults hold.
  read(forDraft = false) {
    const request = { prompt: find("prompt").value };
    if (find("negative_prompt").value || forDraft) request.negative_prompt = find("negative_prompt").value;
    for (const name of NUMBERS) request[name] = number(find(name).value);
    for (const name of NUMBERS_OR_NOTHING) if (find(name).value !== "") request[name] = number(find(name).value);
    for (const name of MENUS) if (find(name).value) request[name] = find(name).value;
    for (const name of ["closed_loop"]) if (find(name).checked) request[name] = true;
    if (find("free_init").checked) request.free_init = {};
    const loras = [...find("lora-list").children].map((row) => ({ name: row.dataset.name, weight: number(row.querySelector("input").value) }));
    if (loras.length) request.loras = loras;
    request.format = [...this.element.querySelectorAll("[name=format]:checked")].map((box) => box.value);
    request.seed = forDraft ? find("seed").value : seed(find("seed").value);
    if (this.image && !forDraft) Object.assign(request, { init_image: this.image, denoising_strength: number(find("denoising_strength").value) });
    return request;
  }

  refresh() {
    const [width, height] = [find("width").value, find("height").value];
    for (const chip of find("sizes").children) chip.setAttribute("aria-pressed", chip.dataset.size === `${width}x${height}`);
    const seconds = find("frames").value / find("fps").value;
    const together = this.choices?.limits.context_frames.max;
    const long = together && Number(find("frames").value) > together && !find("context_batch_size").value;
    find("length").textContent = Number.isFinite(seconds) && seconds > 0 ? `${seconds.toFixed(1)} seconds of video` : "";
    if (long) find("length").textContent += `; more than ${together} frames want “Frames looked at together” under More`;
    find("strength").hidden = !this.image;
    find("strength-shown").textContent = `${Math.round(find("denoising_strength").value * 100)} %`;
    if (this.choices) store(DRAFT, this.read(true));
  }

  setSize(width, height) {
    find("width").value = width;
    find("height").value = height;
    for (const name of ["width", "height"]) this.clearError(find(name).closest("[data-field]"));
    this.refresh();
  }

  addLora(name, weight) {
    if (!name || [...find("lora-list").children].some((row) => row.dataset.name === name)) return;
    const input = make("input", { type: "number", min: -4, max: 4, step: 0.05, value: weight });
    input.setAttribute("aria-label", `Weight of ${name}`);
    const remove = make("button", { type: "button", className: "quiet", textContent: "✕" });
    remove.setAttribute("aria-label", `Remove ${name}`);
    const row = make("li", {}, make("span", { textContent: name }), input, remove);
    row.dataset.name = name;
    remove.addEventListener("click", () => { row.remove(); this.refresh(); find("lora-add").focus(); });
    find("lora-list").append(row);
    this.refresh();
  }

  listenToDrop() {
    const drop = find("drop");
    for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
    for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => { event.preventDefault(); this.takeImage(event.dataTransfer.files[0]); });
    find("init_image").addEventListener("change", (event) => this.takeImage(event.target.files[0]));
    find("drop-clear").addEventListener("click", () => { this.setImage(null); find("init_image").focus(); });
  }

  async takeImage(file) {
    if (!file) return;
    this.clearError(find("drop").closest("[data-field]"));
    const text = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => resolve(null);
      reader.readAsDataURL(file);
    });
    if (!/^data:image\/(png|jpeg|webp);/.test(text ?? "")) return this.showErrors([{ field: "init_image", message: "must be a PNG, JPEG or WebP image" }]);
    if (text.length > IMAGE_TEXT) return this.showErrors([{ field: "init_image", message: "is larger than 11 MB" }]);
    this.setImage(text, file.name);
  }

  setImage(text, name = "") {
    this.image = text;
    find("drop-image").hidden = find("drop-clear").hidden = !text;
    if (text) find("drop-image").src = text; else find("drop-image").removeAttribute("src");
    find("drop-text").textContent = text ? name : "Drop an image here, or choose one";
    if (!text) find("init_image").value = "";
    this.refresh();
  }

  showErrors(errors) {
    const elsewhere = [];
    let firstField = null;
    for (const { field, message } of errors) {
      const name = field.split(/[.[]/)[0];
      const holder = this.element.querySelector(`[data-field="${CSS.escape(name)}"]`);
      if (!holder || holder.hidden) { elsewhere.push(`${field}: ${message}`); continue; }
      const id = `${name}-error`;
      let note = document.getElementById(id);
      if (!note) holder.append(note = make("p", { className: "error", id }));
      note.textContent = field === name ? message : `${field.slice(name.length)}: ${message}`;
      const control = holder.querySelector("input, select, textarea");
      control?.setAttribute("aria-invalid", "true");
      if (control) describe(control, id, true);
      if (control && !(firstField && firstField.compareDocumentPosition(control) & Node.DOCUMENT_POSITION_FOLLOWING)) firstField = control;
    }
    this.say(elsewhere.join("\n"));
    const folded = firstField?.closest("details");
    if (folded) folded.open = true;
    firstField?.focus();
  }

  say(text) {
    find("form-error").textContent = text;
    find("form-error").hidden = !text;
  }

  clearError(holder) {
    const note = holder?.querySelector(":scope > .error");
    if (!note) return;
    note.remove();
    for (const control of holder.querySelectorAll("[aria-invalid]")) { control.removeAttribute("aria-invalid"); describe(control, note.id, false); }
  }

  clearErrors() {
    for (const holder of this.element.querySelectorAll("[data-field]")) this.clearError(holder);
    this.say("");
  }
}

// A browser may refuse to store anything; then the page forgets, and works.
export function store(name, value) { try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* full or forbidden */ } }
export function stored(name, otherwise) { try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; } }

// Among the texts that a screen reader reads with the control: a field's help stays where it is.
function describe(control, id, really) {
  const others = (control.getAttribute("aria-describedby") ?? "").split(" ").filter((one) => one && one !== id);
  const all = really ? [...others, id] : others;
  if (all.length) control.setAttribute("aria-describedby", all.join(" ")); else control.removeAttribute("aria-describedby");
}

function draft() {
  const kept = stored(DRAFT, {});
  return kept !== null && typeof kept === "object" ? kept : {};
}
function number(text) { return String(text).trim() === "" ? null : Number(text); }
function randomSeed() { return crypto.getRandomValues(new Uint32Array(1))[0]; }
// Drawn here when none is asked for, so that every video's seed is known, and small enough for JavaScript.
function seed(text) {
  const given = text.trim();
  if (given === "" || given === "-1") return randomSeed();
  return /^\d+$/.test(given) && Number.isSafeInteger(Number(given)) ? Number(given) : given;
}
