"use strict";
// Maps: a lane for each outcome, and the places of the run from left to right.

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  // All text comes in by textContent: what a program is called, or has left, never becomes markup.
  element.append(...children);
  return element;
};
const grouped = (number) => number.toLocaleString("en");
const hiddenOutcomes = new Set();

// The same outcome has the same colour in all reports; what is often met together differs.
const COLOURS = {
  light: { grey: "#6e7781", red: "#b3141c", purple: "#8250df", blue: "#0550ae", orange: "#9a5b00", pink: "#a0287a", teal: "#1b6e68", olive: "#4d4d00" },
  dark: { grey: "#8b98a5", red: "#ff7b72", purple: "#c297ff", blue: "#79c0ff", orange: "#e3a04b", pink: "#f47bc4", teal: "#55c8bd", olive: "#cdcd5a" },
};
const KINDS = { torn: "red", empty: "purple", zeroed: "blue", missing: "orange", mixed: "pink", alien: "teal", "not on disk": "olive", "lost ack": "teal", "damage taken": "pink",
  "double order": "red", "orphan order": "purple", diverged: "blue", "check failed": "blue", "schema broken": "orange", "invariant broken": "pink", "recovery failed": "blue",
  "recovery hung": "orange", reset: "olive", "cannot save again": "purple", "silent failure": "olive", leftovers: "orange" };
const isDark = matchMedia("(prefers-color-scheme: dark)");
let printing = false;
// What can't be judged is of no colour, as what passed.
const colour = (name) => COLOURS[isDark.matches && !printing ? "dark" : "light"][KINDS[name] ?? "grey"];

const LANE_HEIGHT = 16;
// How wide a letter under the map is.
const LETTER = 7;
// More calls than this are numbers under the map.
const NAMED_MAX = 400;

class ResultMap {
  constructor(place, data, { row, scenario, examples }) {
    Object.assign(this, { place, data, examples, name: `${row} in ${scenario}` });
    this.view = [0, Math.max(1, data.end)];
    this.build();
  }

  build() {
    const { data } = this;
    this.lanes = data.outcomes.map((name, code) => {
      const canvas = make("canvas", { "aria-hidden": "true" });
      const element = make("div", { class: "lane", "data-kind": name }, make("span", {}, `${name} ${grouped(data.counts[code])}`), canvas);
      return { name, canvas, element };
    });
    this.track = make("div", { class: "track", "aria-hidden": "true" });
    this.cursor = make("div", { class: "cursor", hidden: "" });
    this.map = make("div", { class: "map", tabindex: "0", role: "slider", "aria-label": `Places at which ${this.name} was struck`,
      "aria-valuemin": "0", "aria-valuemax": String(data.end), "aria-valuenow": "0", "aria-valuetext": "no place chosen",
      onkeydown: (event) => this.key(event), onclick: (event) => this.point(event) },
    ...this.lanes.map((lane) => lane.element), make("div", { class: "axis" }, make("span"), this.track), this.cursor);
    this.info = make("p", { class: "quiet place" }, "Click into the map, or use the arrow keys in it; + and − zoom.");
    const tool = (text, label, action) => make("button", { type: "button", "aria-label": `${label} of ${this.name}`, onclick: action }, text);
    this.tools = make("div", { class: "tools" }, tool("+", "zoom into the map", () => this.zoom(0.5)), tool("−", "zoom out of the map", () => this.zoom(2)),
      tool("all", "show all of the map", () => { this.view = [0, Math.max(1, data.end)]; this.draw(); }));
    if (this.examples.length) {
      this.nearest = tool("nearest example", "open the nearest example", () => this.openNearest());
      this.nearest.disabled = true;
      this.tools.append(this.nearest);
    }
    this.place.append(this.map, this.tools, this.info);
    if (data.ops.length < data.ops_count) this.place.append(make("p", { class: "quiet" }, `The list of ops is cut: the first ${grouped(data.ops.length)} of ${grouped(data.ops_count)} are named here.`));
  }

  // Unpacked in slices, so that the page goes on answering meanwhile.
  load() {
    this.loading ??= unpack(this.data).then((points) => { this.points = points; this.draw(); });
    return this.loading;
  }

  // The lanes of outcomes that are switched off have no width, but the line below them always has.
  refresh() {
    if (this.track.clientWidth !== this.drawnWidth) this.draw();
  }

  draw() {
    const wide = this.track.clientWidth;
    if (!this.points || !wide) return;
    this.drawnWidth = wide;
    const { xs, codes, counts } = this.points, [from, to] = this.view;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(wide * ratio)), height = Math.round(LANE_HEIGHT * ratio);
    const bins = this.lanes.map(() => new Float64Array(width));
    const scale = width / (to - from);
    for (let n = lowerBound(xs, from); n < xs.length && xs[n] < to; n++) bins[codes[n]][Math.min(width - 1, ((xs[n] - from) * scale) | 0)] += counts[n];
    // So that a single point is seen.
    const thick = Math.max(1, Math.round(Math.min(ratio * 6, scale)));
    this.lanes.forEach(({ canvas, name }, code) => {
      canvas.width = width;
      canvas.height = height;
      const context = canvas.getContext("2d"), lane = bins[code];
      context.fillStyle = colour(name);
      for (let x = 0; x < width; x++) if (lane[x]) context.fillRect(x, 0, thick, height);
    });
    this.drawAxis(wide);
    this.placeCursor();
  }

  drawAxis(wide) {
    const [from, to] = this.view, labels = [];
    // On paper the map is narrower, and the letters are not.
    const letter = (printing ? LETTER * Math.max(1, wide / 480) : LETTER) / wide * (to - from);
    let free = from;
    // From x on, or anywhere before its end; what begins too far to the right for that ends at the right.
    const label = (x, text, until = x) => {
      const long = text.length * letter, wanted = Math.min(Math.max(x, until - long > free ? free : x), Math.max(from, to - long)), end = wanted + long;
      if (wanted < free) return;
      labels.push(make("span", { style: `left: ${(wanted - from) / (to - from) * 100}%` }, text));
      free = end + letter;
    };
    for (const section of this.data.sections) {
      if (section.end <= from || section.begin >= to) continue;
      const first = Math.max(section.begin, Math.floor(from)), last = Math.min(section.end, Math.ceil(to)) - 1;
      if (section.what === "run" && this.data.ops.length) this.opLabels(first, last, label);
      else {
        label(first, this.placeWords(first));
        if (last > first) label(last, this.placeWords(last));
      }
    }
    this.track.replaceChildren(...labels);
  }

  opLabels(from, to, label) {
    const { ops, calls } = this.data, first = this.opAt(from), last = this.opAt(to);
    if (last - first > NAMED_MAX) {
      label(from, `op ${first}`);
      label(to, `op ${last}`);
      return;
    }
    for (let n = first; n <= last; n++) label(ops[n][2], calls[ops[n][0]], ops[n][2] + ops[n][3] + 2);
  }

  zoom(factor) {
    const { end } = this.data;
    const [from, to] = this.view, middle = this.at ?? (from + to) / 2, span = Math.min(Math.max((to - from) * factor, 8), end || 8);
    const start = Math.max(0, Math.min(middle - span / 2, Math.max(0, end - span)));
    this.view = [start, start + span];
    this.draw();
  }

  isShown(n) { return !hiddenOutcomes.has(this.data.outcomes[this.points.codes[n]]); }

  // The place after so many points, in one direction; what is switched off is passed over. −1 if there is none.
  next(n, way) {
    const { xs } = this.points;
    while (n >= 0 && n < xs.length && !this.isShown(n)) n += way;
    return n >= 0 && n < xs.length ? n : -1;
  }

  async key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const known = ["Home", "End", "+", "-", "Enter", "ArrowLeft", "ArrowRight", "PageUp", "PageDown"];
    if (!known.includes(event.key)) return;
    event.preventDefault();
    if (event.key === "Enter") return this.openNearest();
    await this.load();
    if (event.key === "+" || event.key === "-") return this.zoom(event.key === "+" ? 0.5 : 2);
    const n = this.target(event.key);
    if (n >= 0) this.choose(n);
  }

  // To which point a key leads.
  target(key) {
    const { xs } = this.points, last = xs.length - 1, page = Math.ceil(xs.length / 20), now = this.index;
    if (key === "Home") return this.next(0, 1);
    if (key === "End") return this.next(last, -1);
    if (now === undefined) return key === "ArrowLeft" || key === "PageUp" ? this.next(last, -1) : this.next(0, 1);
    if (key === "PageUp") return this.next(Math.max(0, now - page), 1);
    if (key === "PageDown") return this.next(Math.min(last, now + page), -1);
    // Several outcomes of one place are one place.
    return key === "ArrowRight" ? this.next(lowerBound(xs, this.at + 0.5), 1) : this.next(lowerBound(xs, this.at) - 1, -1);
  }

  async point(event) {
    await this.load();
    const box = this.track.getBoundingClientRect(), [from, to] = this.view;
    const x = from + (event.clientX - box.left) / box.width * (to - from);
    const { xs } = this.points, at = lowerBound(xs, x);
    const right = this.next(at, 1), left = this.next(at - 1, -1);
    const nearest = right < 0 || (left >= 0 && Math.abs(xs[left] - x) < Math.abs(xs[right] - x)) ? left : right;
    if (nearest >= 0) this.choose(nearest);
  }

  choose(n) {
    const { xs } = this.points, x = xs[n], [from, to] = this.view, span = to - from;
    this.index = n; this.at = x;
    if (x < from || x >= to) { const start = Math.max(0, x - span / 2); this.view = [start, start + span]; this.draw(); }
    this.map.setAttribute("aria-valuenow", String(x));
    if (this.nearest) this.nearest.disabled = false;
    this.tell();
    this.placeCursor();
  }

  // What is there, of the outcomes that are switched on.
  tell() {
    if (this.at === undefined) return;
    const { xs, codes, counts } = this.points, here = [];
    for (let i = lowerBound(xs, this.at); i < xs.length && xs[i] === this.at; i++) if (this.isShown(i)) here.push(`${this.data.outcomes[codes[i]]} ${grouped(counts[i])}`);
    const words = `${this.placeWords(this.at)}: ${here.join(", ") || "nothing that is shown"}`;
    this.map.setAttribute("aria-valuetext", words);
    this.info.textContent = this.nearest ? `${words}. Enter opens the nearest example.` : `${words}.`;
  }

  opAt(x) {
    const { ops } = this.data;
    let n = 0;
    for (let low = 0, high = ops.length - 1; low <= high;) { const middle = (low + high) >> 1; if (ops[middle][2] <= x) { n = middle; low = middle + 1; } else high = middle - 1; }
    return n;
  }

  placeWords(x) {
    const { sections, ops, ops_count: count, calls, paths } = this.data;
    const { what, unit, begin } = sections.find((section) => x < section.end) ?? sections[sections.length - 1], at = x - begin;
    if (what === "free") return `${grouped(at)} ${unit} free`;
    if (what === "state") return at === 0 ? "the whole file" : `byte ${grouped(at - 1)} of the state`;
    if (what === "acks") return `after ${grouped(at)} ${at === 1 ? "ack" : "acks"}`;
    if (what === "moments" || !ops.length) return `moment ${grouped(at)}`;
    const n = this.opAt(at), [call, path, start, length] = ops[n], inside = at - start;
    const words = `op ${n}, ${calls[call]}(${paths[path]}${length ? `, ${grouped(length)} bytes` : ""})`;
    if (inside === 0) return `before ${words}`;
    if (inside > length + 1 && ops.length < count) return `somewhere after ${words}`;
    return inside > length ? `after ${words}` : `after ${grouped(inside)} bytes of ${words}`;
  }

  placeCursor() {
    const [from, to] = this.view;
    const there = this.at !== undefined && this.at >= from && this.at < to;
    this.cursor.hidden = !there;
    if (there) this.cursor.style.left = `${this.track.offsetLeft + (this.at - from) / (to - from) * this.track.clientWidth}px`;
  }

  openNearest() {
    const places = this.examples.filter(({ element }) => !element.hidden);
    if (!places.length || this.at === undefined) return;
    const { element } = places.reduce((best, one) => Math.abs(one.x - this.at) < Math.abs(best.x - this.at) ? one : best);
    element.open = true;
    element.querySelector("summary").focus();
  }
}

const lowerBound = (xs, x) => { let low = 0, high = xs.length; while (low < high) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle + 1; else high = middle; } return low; };

// Lets everything else that waits have its turn.
const turn = () => new Promise((done) => setTimeout(done));
const SLICE_MS = 8;

const plainBytes = (text) => {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let n = 0; n < bytes.length; n++) bytes[n] = letters.charCodeAt(n);
  return bytes;
};

// Points are packed: for each, how far it is from the one before, its outcome and how many trials it stands for.
const unpack = async ({ count, bytes }) => {
  const stream = new Blob([plainBytes(bytes)]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const plain = new Uint8Array(await new Response(stream).arrayBuffer());
  const xs = new Float64Array(count), codes = new Uint8Array(count), counts = new Float64Array(count);
  let at = 0, x = 0, until = performance.now() + SLICE_MS;
  const long = (value) => { for (let scale = 128, byte = 128; byte & 128; scale *= 128) { byte = plain[at++]; value += (byte & 127) * scale; } return value; };
  for (let n = 0; n < count; n++) {
    let byte = plain[at++];
    x += byte < 128 ? byte : long(byte & 127);
    xs[n] = x; codes[n] = plain[at++];
    byte = plain[at++];
    counts[n] = byte < 128 ? byte : long(byte & 127);
    if ((n & 0x3fff) === 0x3fff && performance.now() > until) { await turn(); until = performance.now() + SLICE_MS; }
  }
  return { xs, codes, counts };
};
