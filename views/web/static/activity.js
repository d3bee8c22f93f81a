// The Activity log page: draws the graph, opens its days, and shows what happens while somebody looks.
// Without it the page has the same numbers in its tables.
"use strict";

const chart = document.getElementById("chart");
const dayRow = document.getElementById("day-row");
const numbers = new Intl.NumberFormat("en");
const colours = ["ink", "muted", "rule", "level", "green", "red", "shade", "paper", "grey"];

let usage = null;
let view = null;
// The day whose row is shown under the graph.
let shown = chart.dataset.day;

// --- The graph

async function drawGraph() {
  const [spec, answer] = await Promise.all([fetched(chart.dataset.spec), usage || fetched(chart.dataset.usage)]);
  usage = answer;
  const style = getComputedStyle(document.documentElement);
  const width = Math.max(200, chart.clientWidth - 64);
  const days = Math.max(1, usage.days.length);
  const values = { chosen: shown, ticks: Math.min(width < 500 ? 4 : 10, days), day_width: width / days };
  for (const param of spec.params) {
    param.value = colours.includes(param.name) ? style.getPropertyValue("--" + param.name).trim() : values[param.name];
  }
  for (const plot of spec.vconcat) plot.width = width;
  delete spec.title;
  spec.data.values = usage.days;
  const place = document.createElement("div");
  // What it shows is said by the label of the graph, the row under it and the table.
  place.setAttribute("aria-hidden", "true");
  const embedded = await vegaEmbed(place, spec, {
    // The interpreter instead of generated code, and no styles of its own: our pages allow neither.
    // Errors only: that an element without a limit has none to draw is no news.
    ast: true, actions: false, defaultStyle: false, tooltip: false, renderer: "svg", logLevel: 1,
  });
  if (view) view.finalize();
  view = embedded.view;
  chart.replaceChildren(place);
  view.addEventListener("pointermove", (event, item) => item && item.datum && item.datum.day && item.datum.day !== shown && showDay(indexOf(item.datum.day)));
  view.addEventListener("click", (event, item) => item && item.datum && item.datum.day && openDay(item.datum.day));
  if (shown) showDay(indexOf(shown));
  chart.dataset.drawn = "true";
}

async function fetched(url) {
  const response = await fetch(url, { headers: { accept: "application/json" } });
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  return response.json();
}

function indexOf(day) {
  return usage.days.findIndex((row) => row.day === day);
}

function showDay(index) {
  const row = usage && usage.days[index];
  if (!row) return;
  shown = row.day;
  if (view) view.signal("chosen", row.day).runAsync();
  const taken = chart.dataset.kind === "counter" ? [["used", row.units_used]] : [["taken", row.activations], ["given back", row.deactivations]];
  const facts = [
    ["", row.day], ["min", row.min], ["max", row.max], ["limit", limitOf(row, "limit")], ["hard limit", limitOf(row, "hard_limit")],
    ["above the limit", row.overdraft_seconds ? `${duration(row.overdraft_seconds)}, by at most ${units(row.peak_overage)}` : "never"],
    ...taken, ["refused", row.denials], ["", row.state],
  ];
  const said = document.createElement("p");
  said.append(...facts.flatMap(([name, value]) => {
    const fact = document.createElement("span");
    const bold = document.createElement("b");
    bold.textContent = typeof value === "number" ? units(value) : value;
    fact.append(name ? name + " " : "", bold);
    return [fact, " "];
  }));
  // It is read aloud when it changes, so not otherwise.
  if (said.textContent !== dayRow.textContent) dayRow.replaceChildren(...said.childNodes);
}

function units(number) {
  return numbers.format(number).replaceAll(",", "\u202f");
}

function limitOf(row, name) {
  return row[name] === null ? (row.terms_known ? "unlimited" : "not set") : row[name];
}

function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return minutes ? `${minutes} min` : "< 1 min";
  return `${units(Math.floor(minutes / 60))} h ${String(minutes % 60).padStart(2, "0")} min`;
}

function openDay(day) {
  const url = new URL(location.href);
  url.searchParams.set("day", day);
  for (const name of ["cursor", "at"]) url.searchParams.delete(name);
  url.hash = "opened";
  location.assign(url);
}

chart.addEventListener("keydown", (event) => {
  if (!usage) return;
  const last = usage.days.length - 1;
  const at = indexOf(shown) < 0 ? last + 1 : indexOf(shown);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
  if (to !== undefined) {
    showDay(Math.min(last, Math.max(0, to)));
    event.preventDefault();
  } else if (event.key === "Enter" && shown) {
    openDay(shown);
  }
});

function drawOrSay() {
  drawGraph().catch((error) => {
    const said = document.createElement("p");
    said.className = "failed";
    said.textContent = `The graph cannot be drawn (${error.message}). The table below has the same numbers.`;
    chart.replaceChildren(said);
  });
}

let width = chart.clientWidth;
let resizing = 0;
new ResizeObserver(() => {
  if (Math.abs(chart.clientWidth - width) < 8) return;
  width = chart.clientWidth;
  clearTimeout(resizing);
  resizing = setTimeout(drawOrSay, 150);
}).observe(chart);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawOrSay);
drawOrSay();

// --- What happens now

const STALE_AFTER_MS = 15000;
const live = document.getElementById("live");
const liveText = document.getElementById("live-text");
let heardAt = 0;

function say(state, text) {
  if (live.dataset.state === state && liveText.textContent === text) return;
  live.dataset.state = state;
  liveText.textContent = text;
}

function clock(time) {
  return new Date(time).toLocaleTimeString("en-GB", { timeZone: chart.dataset.zone });
}

function heard() {
  heardAt = Date.now();
  say("live", "Live");
}

function stale(why) {
  say("stale", `Stale: ${why}; last heard of at ${heardAt ? clock(heardAt) : "never"}`);
}

// What is new is drawn by the server, as the rest of the page; here it only takes its place.
async function refresh() {
  const response = await fetch(location.href);
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const known = new Set([...document.querySelectorAll("#events tbody tr")].map((row) => row.textContent));
  for (const id of ["elements", "days", "history"]) {
    const here = document.getElementById(id);
    const there = page.getElementById(id);
    const focused = here?.contains(document.activeElement) ? document.activeElement : null;
    // Not a field under somebody's hands; a link may be the one that was clicked a minute ago.
    if (!here || !there || focused?.matches("input, select, button")) continue;
    here.replaceWith(document.adoptNode(there));
    if (focused) [...there.querySelectorAll("a")].find((link) => link.href === focused.href)?.focus({ preventScroll: true });
  }
  for (const row of document.querySelectorAll("#events tbody tr")) row.classList.toggle("new", !known.has(row.textContent));
  usage = null;
  drawOrSay();
}

let refreshedAt = 0;
let refreshing = 0;

function refreshSoon() {
  if (refreshing) return;
  refreshing = setTimeout(async () => {
    try {
      await refresh();
    } catch (error) {
      stale(`the page cannot be read again (${error.message})`);
    }
    refreshedAt = Date.now();
    refreshing = 0;
  }, Math.max(300, refreshedAt + 2000 - Date.now()));
}

const stream = new EventSource(chart.dataset.events);
stream.addEventListener("levels", heard);
stream.addEventListener("activity", () => { heard(); refreshSoon(); });
stream.addEventListener("stale", (event) => stale(JSON.parse(event.data).detail));
stream.addEventListener("error", () => setTimeout(() => stream.readyState !== EventSource.OPEN && stale("the connection is lost"), 3000));
setInterval(() => heardAt && Date.now() - heardAt > STALE_AFTER_MS && live.dataset.state === "live" && stale("nothing comes any more"), 1000);
addEventListener("pagehide", () => stream.close());
