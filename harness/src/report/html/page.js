"use strict";
// All text comes in by textContent: what a program is called, or has left, never becomes markup.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
};
const plural = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const expectedWords = { yes: "as expected", no: "NOT as expected", unclear: "unclear" };

// One row of the report: a strategy in a scenario.
class Row {
  constructor(scenario, row, n) {
    Object.assign(this, { scenario, row, id: `row-${n}` });
    this.outcomes = new Set(row.outcomes);
    this.cells = row.cells.length > 0;
    this.element = this.build();
  }

  build() {
    const { row, scenario } = this;
    const article = make("article", { id: this.id, "aria-labelledby": `${this.id}-title` },
      make("h3", { id: `${this.id}-title` }, `${row.name} in ${scenario.name}: `,
        make("span", { class: row.expected }, expectedWords[row.expected])),
      ...row.words.map((words) => make("p", { class: row.expected }, words)),
      make("p", {}, row.summary),
      ...row.notes.map((note) => make("p", { class: "quiet" }, `Note: ${note}`)));
    if (row.points) article.append(this.buildMap());
    if (this.cells) article.append(this.buildCells());
    if (row.violations.length) article.append(this.buildViolations());
    return article;
  }

  buildCells() {
    const table = make("table", {}, make("caption", { class: "quiet" }, "By file system"),
      make("thead", {}, make("tr", {}, ...["file system", "broken", "of", "what is left", "looked at"].map((t) => make("th", { scope: "col" }, t)))));
    const body = make("tbody");
    for (const cell of this.row.cells) {
      body.append(make("tr", {}, make("th", { scope: "row" }, cell.profile),
        make("td", { class: "number" }, cell.failed.toLocaleString("en")), make("td", { class: "number" }, cell.states.toLocaleString("en")),
        make("td", {}, cell.kinds || "none"), make("td", {}, cell.how)));
    }
    table.append(body);
    return make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `${this.row.name} in ${this.scenario.name} by file system` }, table);
  }

  buildViolations() {
    const { violations, left_out } = this.row;
    const box = make("div", {}, make("p", { class: "quiet" },
      `${plural(violations.length, "violation is", "violations are")} kept as examples${left_out ? `, ${left_out} more are in the run's directory` : ""}:`));
    for (const violation of violations) {
      const details = make("details", { "data-kind": violation.kind }, make("summary", {}, `${violation.kind}: ${violation.fault}`));
      // Built when it is opened: there may be hundreds.
      details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) details.append(this.buildViolation(violation)); });
      violation.element = details;
      box.append(details);
    }
    return box;
  }

  buildViolation(violation) {
    const list = make("dl");
    const say = (term, ...what) => list.append(make("dt", {}, term), make("dd", {}, ...what));
    violation.details.forEach((detail) => say("left", detail));
    if (violation.why) say("why", violation.why);
    if (violation.remedy) say("remedy", violation.remedy);
    for (const difference of violation.differences) say("against", this.buildDifference(difference));
    if (violation.steps.length) say("it did", make("ol", { class: "calls" }, ...violation.steps.map((step) => make("li", {}, make("code", {}, step)))));
    if (violation.op !== null) say("calls", this.buildTimeline(violation));
    const copy = make("button", { type: "button", onclick: async () => {
      await navigator.clipboard.writeText(violation.replay).then(() => { copy.textContent = "copied"; }, () => { copy.textContent = "select it by hand"; });
    } }, "copy");
    say("again", make("code", {}, violation.replay), " ", copy);
    return list;
  }

  buildDifference({ file, version, expected_bytes, left_bytes, at, before, expected, left }) {
    const size = (bytes) => bytes === null ? "no file" : plural(bytes, "byte", "bytes");
    const line = (sign, tag, text, bytes) => make("div", { "data-sign": sign }, `${at > 0 ? "…" : ""}${before}`, make(tag, {}, text || "∅"), ` (${size(bytes)})`);
    return make("div", {}, `version ${version} of ${file}, from byte ${at} on:`,
      make("div", { class: "diff bytes" }, line("−", "del", expected, expected_bytes), line("+", "ins", left, left_bytes)));
  }

  buildTimeline({ op, inside }) {
    const { ops } = this.row;
    const first = Math.max(0, op - 4), last = Math.min(ops.length, op + 5);
    const list = make("ol", { class: "calls", start: first });
    for (let n = first; n < last; n++) {
      list.append(make("li", n === op ? { class: "here" } : {}, make("code", {}, this.opWords(n)), n === op ? ` ← here, ${inside}` : ""));
    }
    return make("div", {}, `ops ${first} to ${last - 1} of ${ops.length}:`, list);
  }

  opWords(n) {
    const [call, path, , length] = this.row.ops[n];
    return `${this.row.calls[call]}(${this.row.paths[path]}${length ? `, ${length} bytes` : ""})`;
  }

  // The map: a lane for each outcome, and the places of the run from left to right.
  buildMap() {
    const { row } = this;
    this.view = [0, Math.max(1, row.end)];
    this.lanes = row.outcomes.map((name, code) => {
      const canvas = make("canvas", { "aria-hidden": "true" });
      const element = make("div", { class: "lane", "data-kind": name }, make("span", {}, `${name} ${row.counts[code].toLocaleString("en")}`), canvas);
      return { name, canvas, element };
    });
    this.cursor = make("div", { class: "cursor", hidden: "" });
    this.map = make("div", { class: "map", tabindex: "0", role: "slider", "aria-label": `Places at which ${row.name} was struck in ${this.scenario.name}`,
      "aria-valuemin": "0", "aria-valuemax": String(row.end), "aria-valuenow": "0", "aria-valuetext": "no place chosen",
      onkeydown: (event) => this.key(event), onclick: (event) => this.point(event) }, ...this.lanes.map((lane) => lane.element), this.cursor);
    this.info = make("p", { class: "quiet" }, "Click into the map, or use the arrow keys in it; + and − zoom.");
    const tool = (text, label, action) => make("button", { type: "button", "aria-label": label, onclick: action }, text);
    return make("div", {}, this.map, make("div", { class: "tools" },
      tool("+", `zoom into the map of ${row.name}`, () => this.zoom(0.5)), tool("−", `zoom out of the map of ${row.name}`, () => this.zoom(2)),
      tool("all", `show all of the map of ${row.name}`, () => { this.view = [0, Math.max(1, row.end)]; this.draw(); })), this.info);
  }

  async load() {
    if (this.points || !this.row.points) return;
    this.loading ??= unpack(this.row.points);
    this.points = await this.loading;
    this.draw();
  }

  draw() {
    if (!this.points) return;
    const { xs, codes, counts } = this.points, [from, to] = this.view;
    const ratio = window.devicePixelRatio || 1;
    const canvas = this.lanes[0].canvas;
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio)), height = Math.round(16 * ratio);
    const bins = this.lanes.map(() => new Float64Array(width));
    const scale = width / (to - from);
    for (let n = lowerBound(xs, from); n < xs.length && xs[n] < to; n++) bins[codes[n]][Math.min(width - 1, ((xs[n] - from) * scale) | 0)] += counts[n];
    const style = getComputedStyle(document.documentElement);
    this.lanes.forEach(({ canvas, name }, code) => {
      canvas.width = width; canvas.height = height;
      const context = canvas.getContext("2d"), lane = bins[code];
      context.fillStyle = style.getPropertyValue(`--k${name === "passed" ? 0 : 1 + (kindNumber(name) % 7)}`);
      // So that a single point is seen.
      const thick = Math.max(1, Math.round(Math.min(ratio * 2, scale)));
      for (let x = 0; x < width; x++) if (lane[x]) context.fillRect(x, 0, thick, height);
    });
    this.placeCursor();
  }

  zoom(factor) {
    const [from, to] = this.view, middle = this.at ?? (from + to) / 2, span = Math.min(Math.max((to - from) * factor, 8), this.row.end || 8);
    const start = Math.max(0, Math.min(middle - span / 2, Math.max(0, this.row.end - span)));
    this.view = [start, start + span];
    this.draw();
  }

  shownAt(n) { return !hiddenOutcomes.has(this.row.outcomes[this.points.codes[n]]); }

  async key(event) {
    await this.load();
    const { xs } = this.points, steps = { ArrowRight: 1, ArrowLeft: -1, PageUp: -Math.ceil(xs.length / 20), PageDown: Math.ceil(xs.length / 20) };
    let n = this.index ?? (event.key === "ArrowLeft" ? xs.length : -1);
    if (event.key === "Home") n = 0;
    else if (event.key === "End") n = xs.length - 1;
    else if (event.key === "+" || event.key === "-") { this.zoom(event.key === "+" ? 0.5 : 2); return; }
    else if (event.key === "Enter") { event.preventDefault(); this.openNearest(); return; }
    else if (event.key in steps) {
      const step = steps[event.key];
      n = Math.max(0, Math.min(xs.length - 1, n + step));
      for (const way = Math.sign(step); n > 0 && n < xs.length - 1 && !this.shownAt(n);) n += way;
    } else return;
    event.preventDefault();
    this.choose(n);
  }

  async point(event) {
    await this.load();
    const box = this.lanes[0].canvas.getBoundingClientRect(), [from, to] = this.view;
    const x = from + (event.clientX - box.left) / box.width * (to - from);
    const { xs } = this.points;
    if (!xs.length) return;
    const right = Math.min(xs.length - 1, lowerBound(xs, x)), left = Math.max(0, right - 1);
    this.choose(Math.abs(xs[left] - x) < Math.abs(xs[right] - x) ? left : right);
  }

  choose(n) {
    const { xs, codes, counts } = this.points, x = xs[n], here = [];
    this.index = n; this.at = x;
    for (let i = lowerBound(xs, x); i < xs.length && xs[i] === x; i++) here.push(`${this.row.outcomes[codes[i]]} ${counts[i]}`);
    const words = `${this.placeWords(x)}: ${here.join(", ")}`;
    const [from, to] = this.view;
    if (x < from || x >= to) { const span = to - from; this.view = [Math.max(0, x - span / 2), Math.max(0, x - span / 2) + span]; this.draw(); }
    this.map.setAttribute("aria-valuenow", String(x));
    this.map.setAttribute("aria-valuetext", words);
    this.info.textContent = `${words}. Enter opens the nearest example.`;
    this.placeCursor();
  }

  placeWords(x) {
    const { axis, ops } = this.row;
    if (axis === "free") return `${x} free`;
    if (axis === "state") return `byte ${x} of the state`;
    if (axis === "moments" || !ops.length) return `moment ${x}`;
    let n = 0;
    for (let low = 0, high = ops.length - 1; low <= high;) { const middle = (low + high) >> 1; if (ops[middle][2] <= x) { n = middle; low = middle + 1; } else high = middle - 1; }
    const [, , begin, length] = ops[n], inside = x - begin;
    return `${inside === 0 ? "before" : inside > length ? "after" : `after ${inside} of ${length} bytes of`} op ${n}, ${this.opWords(n)}`;
  }

  placeCursor() {
    const [from, to] = this.view, canvas = this.lanes[0].canvas;
    const there = this.at !== undefined && this.at >= from && this.at < to;
    this.cursor.hidden = !there;
    if (there) this.cursor.style.left = `${canvas.offsetLeft + (this.at - from) / (to - from) * canvas.clientWidth}px`;
  }

  openNearest() {
    const places = this.row.violations.filter((violation) => violation.x !== null && !violation.element.hidden);
    if (!places.length || this.at === undefined) return;
    const nearest = places.reduce((best, one) => Math.abs(one.x - this.at) < Math.abs(best.x - this.at) ? one : best);
    nearest.element.open = true;
    nearest.element.querySelector("summary").focus();
  }
}

const lowerBound = (xs, x) => { let low = 0, high = xs.length; while (low < high) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle + 1; else high = middle; } return low; };

// Points are packed: for each, how far it is from the one before, its outcome and how many trials it stands for.
const unpack = async ({ count, bytes }) => {
  const packed = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const plain = new Uint8Array(await new Response(stream).arrayBuffer());
  const xs = new Float64Array(count), codes = new Uint8Array(count), counts = new Float64Array(count);
  let at = 0, x = 0;
  const number = () => { let value = 0, scale = 1, byte; do { byte = plain[at++]; value += (byte & 127) * scale; scale *= 128; } while (byte & 128); return value; };
  for (let n = 0; n < count; n++) { x += number(); xs[n] = x; codes[n] = plain[at++]; counts[n] = number(); }
  return { xs, codes, counts };
};

const kinds = [...new Set(data.scenarios.flatMap((scenario) => scenario.rows.flatMap((row) => [...row.outcomes, ...row.kinds])))].sort();
const kindNumber = (name) => kinds.indexOf(name);
const hiddenOutcomes = new Set();
const rows = [];

const build = () => {
  const wrong = data.scenarios.flatMap((scenario) => scenario.rows).filter((row) => row.expected !== "yes").length;
  $("verdict").append(make("strong", { class: wrong ? "no" : "yes" }, wrong ? `${plural(wrong, "result is", "results are")} not as expected` : "Everything is as expected"));
  $("made").textContent = data.made;
  const results = $("results");
  for (const scenario of data.scenarios) {
    $("scenario").append(make("option", { value: scenario.name }, scenario.name));
    const twice = data.scenarios.filter((other) => other.name === scenario.name).length > 1;
    const section = make("section", { "aria-label": twice ? `${scenario.name}, ${scenario.about}, run ${data.scenarios.indexOf(scenario) + 1}` : scenario.name }, make("h2", {}, scenario.name), make("p", { class: "quiet" }, scenario.about));
    if (scenario.skipped) section.append(make("p", { class: "unclear" }, `Skipped: ${scenario.skipped}`));
    for (const row of scenario.rows) { const one = new Row(scenario, row, rows.length); rows.push(one); section.append(one.element); }
    scenario.section = section;
    results.append(section);
  }
  for (const kind of kinds) {
    const box = make("input", { type: "checkbox", checked: "", onchange: () => { box.checked ? hiddenOutcomes.delete(kind) : hiddenOutcomes.add(kind); filter(); } });
    $("outcomes").append(make("label", {}, box, ` ${kind}`));
  }
  buildTable();
  $("scenario").addEventListener("change", filter);
  $("strategy").addEventListener("input", filter);
  $("unexpected").addEventListener("change", filter);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
};

const buildTable = () => {
  const names = [...new Set(rows.map(({ row }) => row.name))];
  const table = $("table");
  table.append(make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "strategy"), ...data.scenarios.map(({ name }) => make("th", { scope: "col" }, name)))));
  const body = make("tbody");
  for (const name of names) {
    const line = make("tr", {}, make("th", { scope: "row" }, name));
    for (const scenario of data.scenarios) {
      const one = rows.find(({ row, scenario: its }) => its === scenario && row.name === name);
      line.append(one ? make("td", {}, make("a", { href: `#${one.id}` }, one.row.rate), make("div", {}, one.row.broken.join(", ")),
        make("div", { class: one.row.expected }, expectedWords[one.row.expected])) : make("td", {}, scenario.skipped ? "skipped" : "–"));
    }
    body.append(line);
  }
  table.append(body);
};

const filter = () => {
  const scenario = $("scenario").value, name = $("strategy").value.toLowerCase(), wrong = $("unexpected").checked;
  let shown = 0;
  for (const one of rows) {
    const { row } = one, all = [...row.outcomes, ...row.kinds];
    const fits = (!scenario || one.scenario.name === scenario) && row.name.toLowerCase().includes(name) && (!wrong || row.expected !== "yes") && (!all.length || all.some((kind) => !hiddenOutcomes.has(kind)));
    one.element.hidden = !fits;
    shown += fits;
    if (!fits) continue;
    one.element.querySelectorAll("[data-kind]").forEach((element) => { element.hidden = hiddenOutcomes.has(element.dataset.kind); });
    one.lanes && one.placeCursor();
  }
  for (const one of data.scenarios) one.section.hidden = Boolean(scenario && one.name !== scenario) || (one.rows.length > 0 && rows.every((row) => row.scenario !== one || row.element.hidden));
  $("shown").textContent = `${shown} of ${plural(rows.length, "result", "results")} shown`;
};

build();
filter();
// Maps are drawn when they come into sight, and all of them to be printed.
const byMap = new Map(rows.filter((row) => row.map).map((row) => [row.map, row]));
const sight = new IntersectionObserver((entries) => { for (const { target, isIntersecting } of entries) if (isIntersecting) byMap.get(target).load(); }, { rootMargin: "300px" });
for (const map of byMap.keys()) sight.observe(map);
const redraw = () => rows.forEach((row) => row.points && row.draw());
addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => rows.forEach((row) => row.load()));
document.documentElement.dataset.ready = "1";
