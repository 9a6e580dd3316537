// The page: filters, links, copied commands, and when a map is drawn. What is said in it is there without this.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const say = (words) => { $("said").textContent = words; };

const rows = [...document.querySelectorAll("article[data-row]")].map((element) => {
  const row = data[Number(element.dataset.row)];
  const all = [...element.querySelectorAll("details[data-kind]")].map((one) => ({ element: one, x: one.dataset.x === undefined ? null : Number(one.dataset.x) }));
  const plot = element.querySelector(".plot");
  const of = { row: row.name, scenario: row.scenario, examples: all.filter(({ x }) => x !== null) };
  const map = plot && row.map ? new ResultMap(plot, row.map, of) : null;
  return { row, element, map, examples: all, kept: element.querySelector(".kept"), kinds: [...element.querySelectorAll("[data-kind]")] };
});
const sections = [...document.querySelectorAll("#results > section")].map((element) => ({ element, rows: rows.filter((row) => element.contains(row.element)) }));

const filter = () => {
  const scenario = $("scenario").value, name = $("strategy").value.toLowerCase(), wrong = $("unexpected").checked;
  let shown = 0;
  for (const one of rows) {
    const { row } = one;
    const fits = (!scenario || row.scenario === scenario) && row.name.toLowerCase().includes(name) && (!wrong || row.expected !== "yes")
      && (!row.kinds.length || row.kinds.some((kind) => !hiddenOutcomes.has(kind)));
    one.element.hidden = !fits;
    shown += fits;
    if (!fits) continue;
    for (const element of one.kinds) element.hidden = hiddenOutcomes.has(element.dataset.kind);
    const open = one.examples.filter(({ element }) => !element.hidden).length;
    if (one.kept) one.kept.textContent = open === one.examples.length ? "" : `, ${grouped(open)} of them shown`;
    if (one.map?.points) one.map.tell();
  }
  for (const { element, rows: own } of sections) {
    element.hidden = Boolean(scenario && element.getAttribute("aria-label") !== scenario) || (own.length > 0 && own.every((row) => row.element.hidden));
  }
  $("shown").textContent = `${grouped(shown)} of ${grouped(rows.length)} ${rows.length === 1 ? "result" : "results"} shown`;
};

// A link to a row that a filter hides takes the filters away.
const lead = () => {
  let id;
  try { id = decodeURIComponent(location.hash.slice(1)); } catch { return; }
  const one = rows.find(({ row }) => row.id === id);
  if (!one) return;
  if (one.element.hidden || one.element.closest("[hidden]")) {
    $("filters").reset();
    hiddenOutcomes.clear();
    filter();
  }
  one.element.scrollIntoView();
  one.element.focus({ preventScroll: true });
};

// Outside of a secure context there is no clipboard: the text is then selected.
const copy = async (code, button) => {
  const words = (text) => { button.textContent = text; say(text); };
  try {
    await navigator.clipboard.writeText(code.textContent);
    words("copied");
  } catch {
    getSelection().selectAllChildren(code);
    words("selected: copy it by keyboard");
  }
};

// Buttons are made when an example is opened: there may be hundreds.
const opened = ({ target }) => {
  if (!target.open || !target.matches("details[data-kind]") || target.querySelector("button")) return;
  const code = target.querySelector("code.command"), of = target.querySelector("summary").textContent;
  const button = make("button", { type: "button", "aria-label": `copy the command of ${of}`, onclick: () => { button.removeAttribute("aria-label"); copy(code, button); } }, "copy");
  code.after(" ", button);
};

// The bar stays in sight only where it is no more than a part of what is seen, and what has the focus is not behind it.
const placeBar = () => {
  const bar = $("filters"), stays = bar.offsetHeight < innerHeight / 4 && innerWidth >= 640;
  bar.classList.toggle("stays", stays);
  document.documentElement.style.setProperty("--bar", stays ? `${bar.offsetHeight}px` : "0px");
};

const maps = rows.flatMap(({ map }) => map ?? []);
const byTrack = new Map(maps.map((map) => [map.track, map]));
const inSight = new Set();
const redraw = () => { for (const map of maps) { map.drawnWidth = undefined; if (inSight.has(map)) map.draw(); } };
const print = (now) => {
  printing = now;
  for (const map of maps) map.draw();
};
const idle = () => new Promise((done) => { "requestIdleCallback" in window ? requestIdleCallback(done, { timeout: 1000 }) : setTimeout(done); });
// All of them are unpacked once nothing else is to be done, so that they are there when a filter shows them, or are printed.
const unpackAll = async () => {
  for (const map of maps) { await idle(); await map.load(); }
  document.documentElement.dataset.unpacked = "1";
};

const start = () => {
  $("filters").hidden = false;
  for (const box of document.querySelectorAll("#outcomes input")) box.addEventListener("change", () => { box.checked ? hiddenOutcomes.delete(box.value) : hiddenOutcomes.add(box.value); filter(); });
  $("scenario").addEventListener("change", filter);
  $("strategy").addEventListener("input", filter);
  $("unexpected").addEventListener("change", filter);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("toggle", opened, true);
  for (const link of document.querySelectorAll("#table a")) link.addEventListener("click", () => setTimeout(lead));
  addEventListener("hashchange", lead);
  // A map that comes into sight is drawn, and one that gets another width, or comes back from being hidden.
  const sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const map = byTrack.get(target);
      isIntersecting ? inSight.add(map) : inSight.delete(map);
      if (isIntersecting) map.points ? map.refresh() : map.load();
    }
  }, { rootMargin: "300px" });
  const size = new ResizeObserver((entries) => { for (const { target } of entries) if (inSight.has(byTrack.get(target))) byTrack.get(target).refresh(); });
  for (const map of maps) { sight.observe(map.track); size.observe(map.track); }
  new ResizeObserver(placeBar).observe($("filters"));
  addEventListener("resize", placeBar);
  isDark.addEventListener("change", redraw);
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  placeBar();
  filter();
  if (location.hash) lead();
  unpackAll();
  document.documentElement.dataset.ready = "1";
};
start();
