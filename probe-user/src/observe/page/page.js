"use strict";
// What the agent sends is text here, never markup: answers of endpoints are in it.

const WINDOW_MS = 180000; // of the plots
const SHOWN = 100; // services at once
const SVG = "http://www.w3.org/2000/svg";

const $ = (id) => document.getElementById(id);
const model = { status: null, changes: [], samples: {}, skew: 0, heard: 0, beat: 1000 };
const cards = new Map();

// ---- making elements -------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Only what changes is written, so that a selection of text and screen readers are left in peace.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function look(element, classes) {
  if (element.getAttribute("class") !== classes) element.setAttribute("class", classes);
}

// ---- words -----------------------------------------------------------------------------------

const now = () => Date.now() + model.skew;

function ago(ms) {
  const seconds = Math.max(0, Math.round((now() - ms) / 1000));
  if (seconds < 100) return `${seconds} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  if (seconds < 360000) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

function span(ms) {
  if (ms < 1000) return `${ms} ms`;
  return ms < 100000 ? `${ms / 1000} s` : `${Math.round(ms / 60000)} min`;
}

function micros(us) {
  if (us === null || us === undefined) return "-";
  if (us < 1000) return `${us} µs`;
  return us < 1e6 ? `${(us / 1000).toPrecision(3)} ms` : `${(us / 1e6).toPrecision(3)} s`;
}

// A power of ten microseconds.
const decade = (power) => `${10 ** (power % 3)} ${["µs", "ms", "s"][Math.floor(power / 3)]}`;

function count(number) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (number >= size * 10) return `${(number / size).toPrecision(3)} ${unit}`;
  }
  return String(number);
}

const bytes = (number) => count(number).replace(/( .)?$/, (unit) => `${unit || " "}B`);
const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });
const names = (list) => (list.length ? list.join(", ") : "nobody (refused)");

const REASONS = {
  initial: "first choice",
  inherited: "as the agent before left it",
  "master-down": "the one before went down",
  failback: "fail-back: a better one is up again",
  manual: "by order",
  "all-down": "no endpoint is up",
  "address-changed": "its address changed",
  "members-changed": "others of its tier came or went",
};

// HAProxy's words, and what they mean.
const LEGEND = [
  ["up", "UP", "passes its checks"],
  ["up backup", "UP", "the same, a backup"],
  ["falling", "UP 2/3 ↓", "going down: so many of the failures that take it down are still to come"],
  ["rising", "DOWN 1/2 ↑", "going up: so many of the good checks that bring it up have come"],
  ["down", "DOWN", "fails its checks"],
  ["drain", "DRAIN", "by order: keeps its connections, gets no new ones (NOLB)"],
  ["maint", "MAINT", "by order: out of service"],
  ["unknown", "no check", "not judged yet"],
];

// An endpoint's state as HAProxy's page shows it: a class and a word.
function stateOf(endpoint) {
  const { against = 0, needed = 0 } = endpoint;
  if (endpoint.mode === "maint") return ["maint", "MAINT"];
  if (endpoint.mode === "drain") return ["drain", endpoint.state === "down" ? "DRAIN, DOWN" : "DRAIN"];
  if (endpoint.state === "up") {
    if (against > 0) return ["falling", `UP ${needed - against}/${needed} ↓`];
    return [endpoint.tier > 0 ? "up backup" : "up", "UP"];
  }
  if (endpoint.state === "down") {
    return against > 0 ? ["rising", `DOWN ${against}/${needed} ↑`] : ["down", "DOWN"];
  }
  return ["unknown", "no check"];
}

function role(endpoint) {
  if (endpoint.tier === 0) return "active";
  return endpoint.tier === 1 ? "backup" : `backup ${endpoint.tier}`;
}

const by = (order) => order?.by?.user ?? (order?.by?.uid === undefined ? "an operator" : `uid ${order.by.uid}`);

function happened(change) {
  if (change.kind === "switch") {
    const why = REASONS[change.reason] ?? change.reason;
    // The tier stays: no switch.
    if (change.reason === "members-changed") return `new connections go to ${names(change.to)}: ${why}`;
    return `switched from ${names(change.from)} to ${names(change.to)}: ${why}`;
  }
  const what = `${change.endpoint} is ${change.to === "unknown" ? "not judged" : change.to.toUpperCase()}`;
  return change.detail ? `${what}: ${change.detail}` : what;
}

// ---- a service's card ------------------------------------------------------------------------

// What it is called, its kind of content, and its width.
const COLUMNS = [
  ["State", "", "middle"], ["Role", "", "narrow"], ["Selected", "", "middle"],
  ["Last check", "broad", "wide"], ["p50", "number", "narrow"], ["p99", "number", "narrow"],
  ["Checks", "number", "narrow"], ["Connections", "number", "middle"],
];

class Card {
  constructor(name, number) {
    this.name = name;
    this.rows = new Map();
    this.title = make("span", {}, name);
    this.vips = make("small");
    this.now = make("p", { class: "now" });
    this.orders = make("span");
    this.target = make("strong");
    this.why = make("span", { class: "why" });
    this.now.append(this.orders, "New connections go to ", this.target, this.why);
    const head = make("tr", { role: "row" }, make("th", { scope: "col", role: "columnheader" }, "Endpoint"));
    for (const [label, kind] of COLUMNS) {
      head.append(make("th", { scope: "col", role: "columnheader", class: kind }, label));
    }
    this.body = make("tbody", { role: "rowgroup" });
    const table = make("table", { role: "table" },
      make("caption", { class: "unseen" }, `Endpoints of ${name}`),
      make("colgroup", {}, make("col", { class: "name" }), ...COLUMNS.map(([, , width]) => make("col", { class: width }))),
      make("thead", { role: "rowgroup" }, head), this.body);
    this.latency = draw("svg", { role: "img" });
    this.key = make("div", { class: "key" });
    this.lanes = draw("svg", { role: "img" });
    this.list = make("ol");
    this.summary = make("summary");
    this.changes = make("details", { class: "changes" }, this.summary, this.list);
    this.changes.open = true;
    this.element = make("section", { class: "service", "aria-labelledby": `service-${number}` },
      make("h2", { id: `service-${number}` }, this.title, this.vips), this.now, table,
      make("div", { class: "plots" },
        make("figure", {}, make("figcaption", {}, "Duration of checks, 3 minutes"), this.latency, this.key),
        make("figure", {}, make("figcaption", {}, "States and selection, 3 minutes"), this.lanes)),
      this.changes);
  }

  row(endpoint) {
    let row = this.rows.get(endpoint.name);
    if (row) return row;
    const cells = {};
    const tr = make("tr", { role: "row" });
    const name = make("span", {}, endpoint.name);
    cells.address = make("span", { class: "small" });
    tr.append(make("th", { scope: "row", role: "rowheader" }, name, cells.address));
    for (const [label, kind] of COLUMNS) {
      const value = make("span");
      const small = make("span", { class: "small" });
      tr.append(make("td", { role: "cell", "data-label": label, class: kind }, value, small));
      cells[label] = [value, small];
    }
    row = { tr, cells };
    this.rows.set(endpoint.name, row);
    return row;
  }

  update(service) {
    const { selection } = service;
    say(this.vips, service.listeners.join(" "));
    const orders = [];
    if (service.frozen) orders.push(`FROZEN by ${by(service.frozen)}, ${ago(service.frozen.since_unix_ms)}`);
    if (service.promoted) orders.push(`PROMOTED ${service.promoted.what} by ${by(service.promoted)}`);
    say(this.orders, orders.join("; "));
    look(this.orders, orders.length ? "order" : "");
    say(this.target, names(selection.endpoints));
    let why = ` for ${ago(selection.since_unix_ms)}: ${REASONS[selection.reason] ?? selection.reason}`;
    why += `; ${selection.switches} ${selection.switches === 1 ? "switch" : "switches"}`;
    if (service.failback.due_unix_ms) {
      why += `; fail-back in ${Math.max(0, Math.ceil((service.failback.due_unix_ms - now()) / 1000))} s`;
    } else if (service.failback.mode === "manual") {
      why += "; fail-back by order";
    }
    for (const damped of service.failback.damped ?? []) {
      why += `; fail-backs wait ${span(damped.hold_ms)} after ${damped.relapses} relapses`;
    }
    say(this.why, why);
    for (const [name, row] of this.rows) {
      if (!service.endpoints.some((e) => e.name === name)) {
        row.tr.remove();
        this.rows.delete(name);
      }
    }
    service.endpoints.forEach((endpoint, position) => {
      const { tr, cells } = this.row(endpoint);
      if (this.body.children[position] !== tr) this.body.insertBefore(tr, this.body.children[position] ?? null);
      this.fill(endpoint, cells);
    });
    this.plot(service);
    this.timeline(service);
    this.tell();
  }

  fill(endpoint, cells) {
    const put = (label, value, small = "") => {
      say(cells[label][0], value);
      say(cells[label][1], small);
    };
    const resolved = endpoint.resolved.join(" ");
    const where = endpoint.unresolved ? `${resolved || "nowhere"}, does not resolve` : resolved;
    say(cells.address, where === endpoint.address ? where : `${endpoint.address} (${where})`);
    const [kind, word] = stateOf(endpoint);
    const order = endpoint.ordered ? `, by ${by(endpoint.ordered)}` : "";
    put("State", word, `for ${ago(endpoint.ordered?.since_unix_ms || endpoint.since_unix_ms)}${order}`);
    look(cells.State[0], `state ${kind}`);
    put("Role", role(endpoint), endpoint.weight === 1 ? "" : `weight ${endpoint.weight}`);
    let drain = "";
    if (endpoint.drain) {
      const flows = endpoint.drain.flows;
      drain = flows === null || flows === undefined ? "draining" : `draining ${count(flows)}`;
      if (endpoint.drain.until_unix_ms) {
        drain += `, ${Math.max(0, Math.ceil((endpoint.drain.until_unix_ms - now()) / 1000))} s left`;
      }
    }
    put("Selected", endpoint.serving ? "◀ here" : "-", drain);
    look(cells.Selected[0], endpoint.serving ? "serves" : "");
    put("Last check", endpoint.detail ?? endpoint.verdict ?? "none yet", endpoint.saw ? `saw ${endpoint.saw}` : "");
    put("p50", micros(endpoint.durations?.p50_us));
    put("p99", micros(endpoint.durations?.p99_us));
    put("Checks", count(endpoint.checks), `${count(endpoint.failures)} failed`);
    const { flows_opened: opened, flows_closed: closed, forward_bytes: sent, reverse_bytes: received } = endpoint.traffic;
    put("Connections", count(opened), `${count(closed)} ended, ${bytes(sent + received)}`);
  }

  // Medians as lines, 99th percentiles as dashes; by powers of ten, or the worst would hide the
  // usual.
  plot(service) {
    const width = breadth(this.latency);
    const [left, right, top, bottom] = [52, width - 4, 8, 128];
    this.latency.setAttribute("viewBox", `0 0 ${width} 150`);
    const end = now();
    const x = (at) => right - ((end - at) / WINDOW_MS) * (right - left);
    const series = service.endpoints.slice(0, 4).map((e) => [
      e.name,
      (model.samples[service.name]?.[e.name] ?? []).filter(([at]) => end - at <= WINDOW_MS),
    ]);
    const values = series.flatMap(([, points]) => points.flatMap((p) => [p[1], p[2]])).filter((us) => us > 0);
    const [least, most] = values.length ? [Math.min(...values), Math.max(...values)] : [100, 1000];
    const low = Math.floor(Math.log10(least));
    const high = Math.min(8, Math.max(low + 1, Math.ceil(Math.log10(most))));
    const y = (us) => bottom - ((Math.log10(Math.max(us, 10 ** low)) - low) / (high - low)) * (bottom - top);
    const parts = [];
    for (let power = low; power <= high; power += 1) {
      const at = y(10 ** power);
      parts.push(draw("line", { class: "grid", x1: left, x2: right, y1: at, y2: at }),
        draw("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, decade(power)));
    }
    parts.push(...axis(left, right, bottom));
    series.forEach(([, points], number) => {
      for (const [index, kind] of [[2, "p99"], [1, "p50"]]) {
        let path = "";
        let before = null;
        for (const point of points) {
          // A gap in time is one in the line.
          const go = before !== null && point[0] - before < 3.5 * model.beat ? "L" : "M";
          path += `${go}${x(point[0]).toFixed(1)} ${y(point[index]).toFixed(1)}`;
          before = point[0];
        }
        parts.push(draw("path", { class: `${kind} c${number}`, d: path || "M0 0" }));
      }
    });
    this.latency.replaceChildren(...parts);
    const said = service.endpoints.slice(0, 4).map((e) => `${e.name} ${micros(e.durations?.p50_us)}`);
    this.latency.setAttribute("aria-label", `Duration of checks of ${service.name}, medians now: ${said.join(", ")}`);
    if (this.keyed !== series.map(([name]) => name).join()) {
      this.keyed = series.map(([name]) => name).join();
      const sample = (kind) => draw("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" },
        draw("path", { class: kind, d: "M0 4L22 4" }));
      this.key.replaceChildren(
        ...series.map(([name], number) => make("span", {}, sample(`p50 c${number}`), name)),
        make("span", {}, sample("p50 c0"), "p50"), make("span", {}, sample("p99 c0"), "p99"));
    }
  }

  // A lane for each endpoint: its state as colour and height, whether it was selected as a line
  // on top; switches are marks across all lanes.
  timeline(service) {
    const endpoints = service.endpoints.slice(0, 8);
    const width = breadth(this.lanes);
    const [left, right, top, lane] = [92, width - 4, 8, 26];
    const bottom = top + endpoints.length * lane;
    const end = now();
    const begin = end - WINDOW_MS;
    const x = (at) => right - ((end - Math.max(at, begin)) / WINDOW_MS) * (right - left);
    const parts = [];
    const changes = model.changes.filter((c) => c.service === service.name && c.at_unix_ms > begin);
    const switches = changes.filter((c) => c.kind === "switch");
    endpoints.forEach((endpoint, number) => {
      const y = top + number * lane;
      const shown = endpoint.name.length > 13 ? `${endpoint.name.slice(0, 12)}…` : endpoint.name;
      parts.push(draw("text", { x: left - 6, y: y + 16, "text-anchor": "end" }, shown));
      const bar = (from, to, state) => {
        const height = state === "down" ? 7 : 14;
        parts.push(draw("rect", { class: `bar ${state}`, x: x(from).toFixed(1), y: y + 19 - height,
          width: Math.max(1, x(to) - x(from)).toFixed(1), height }));
      };
      let until = end;
      let state = endpoint.state;
      for (const change of changes.filter((c) => c.kind === "state" && c.endpoint === endpoint.name).reverse()) {
        bar(change.at_unix_ms, until, change.to);
        until = change.at_unix_ms;
        state = change.from ?? "unknown";
      }
      bar(Math.max(begin, model.status.agent.started_unix_ms), until, state);
      const line = (from, to) => parts.push(draw("rect", { class: "chosen", x: x(from).toFixed(1), y: y + 1,
        width: Math.max(1, x(to) - x(from)).toFixed(1), height: 3 }));
      until = end;
      let chosen = service.selection.endpoints;
      for (const change of [...switches].reverse()) {
        if (chosen.includes(endpoint.name)) line(change.at_unix_ms, until);
        until = change.at_unix_ms;
        chosen = change.from;
      }
      if (chosen.includes(endpoint.name)) line(Math.max(begin, model.status.agent.started_unix_ms), until);
    });
    for (const change of switches) {
      const at = x(change.at_unix_ms).toFixed(1);
      parts.push(draw("line", { class: "mark", x1: at, x2: at, y1: top - 4, y2: bottom },
        draw("title", {}, `${clock(change.at_unix_ms)} ${happened(change)}`)));
    }
    parts.push(...axis(left, right, bottom + 2));
    const more = service.endpoints.length - endpoints.length;
    if (more > 0) parts.push(draw("text", { x: left, y: bottom + 32 }, `and ${more} more`));
    this.lanes.setAttribute("viewBox", `0 0 ${width} ${bottom + (more > 0 ? 38 : 24)}`);
    this.lanes.replaceChildren(...parts);
    const states = endpoints.map((e) => `${e.name} ${stateOf(e)[1]}`).join(", ");
    this.lanes.setAttribute("aria-label",
      `States of ${service.name}: ${states}; ${switches.length} switches in 3 minutes. Black line: selected.`);
  }

  // The last changes, newest first.
  tell() {
    const all = model.changes.filter((c) => c.service === this.name);
    const last = all.slice(-8).reverse();
    const key = last.map((c) => `${c.at_unix_ms}${c.kind}${c.endpoint ?? ""}`).join();
    this.changes.hidden = all.length === 0;
    if (key === this.told) return;
    this.told = key;
    say(this.summary, `Last changes (${last.length} of ${all.length})`);
    this.list.replaceChildren(...last.map((change) => make("li", {},
      make("time", { datetime: new Date(change.at_unix_ms).toISOString() },
        new Date(change.at_unix_ms).toLocaleString([], { hour12: false, month: "short", day: "numeric",
          hour: "2-digit", minute: "2-digit", second: "2-digit" })),
      make("span", {}, happened(change)))));
  }
}

// Drawn as wide as it is shown, so that its letters are as large as all others.
const breadth = (svg) => Math.max(280, Math.round(svg.parentElement.clientWidth) || 560);

function axis(left, right, bottom) {
  const parts = [draw("line", { class: "grid", x1: left, x2: right, y1: bottom, y2: bottom })];
  for (const [minutes, text, anchor] of [[3, "3 min ago", "start"], [2, "2", "middle"], [1, "1", "middle"], [0, "now", "end"]]) {
    const x = right - (minutes / 3) * (right - left);
    parts.push(draw("text", { x, y: bottom + 15, "text-anchor": anchor }, text));
  }
  return parts;
}

// ---- the page --------------------------------------------------------------------------------

function render() {
  const { status } = model;
  if (!status) return;
  const { agent } = status;
  const late = agent.lateness ? `, checks begin ${micros(agent.lateness.p99_us ?? agent.lateness.max_us)} late (p99)` : "";
  say($("agent"), `${location.hostname}, version ${status.version}, process ${agent.pid}, running for ${ago(agent.started_unix_ms)}${late}`);
  const doubts = agent.distrust_since_unix_ms;
  $("distrust").hidden = !doubts;
  if (doubts) say($("distrust"), `Endpoints of all hosts fell silent together ${ago(doubts)} ago: the agent doubts itself and holds all selections.`);
  summarize(status.services);
  const wanted = $("filter").value.trim().toLowerCase();
  const fits = (text) => text.toLowerCase().includes(wanted);
  const found = status.services.filter((s) => fits(s.name) || s.endpoints.some((e) => fits(e.name) || fits(e.address)));
  const shown = found.slice(0, SHOWN);
  $("more").hidden = shown.length === status.services.length;
  say($("more"), `${shown.length} of ${status.services.length} services are shown.`);
  for (const [name, card] of cards) {
    if (!shown.some((s) => s.name === name)) {
      card.element.remove();
      cards.delete(name);
    }
  }
  shown.forEach((service, position) => {
    let card = cards.get(service.name);
    if (!card) cards.set(service.name, card = new Card(service.name, status.services.indexOf(service)));
    const place = $("services");
    if (place.children[position] !== card.element) place.insertBefore(card.element, place.children[position] ?? null);
    card.update(service);
  });
}

function summarize(services) {
  const endpoints = services.flatMap((s) => s.endpoints);
  const best = (s) => Math.min(...s.endpoints.map((e) => e.tier));
  const down = endpoints.filter((e) => e.state === "down").length;
  const backup = services.filter((s) => (s.selection.tier ?? 0) > best(s)).length;
  const dead = services.filter((s) => !s.endpoints.some((e) => e.state === "up")).length;
  const switches = services.reduce((sum, s) => sum + s.selection.switches, 0);
  const items = [["Services", services.length, false], ["on a backup", backup, backup > 0], ["no endpoint up", dead, dead > 0],
    ["Endpoints", endpoints.length, false], ["down", down, down > 0], ["Switches", switches, false]];
  const list = $("summary");
  items.forEach(([label, value, bad], position) => {
    let item = list.children[position];
    if (!item) list.append(item = make("div", {}, make("dt", {}, label), make("dd")));
    say(item.children[1], String(value));
    look(item, bad ? "bad" : "");
  });
  const title = dead ? `${dead} dead` : down ? `${down} down` : "all up";
  document.title = `${title} - probe`;
}

function take(frame) {
  model.skew = frame.now_unix_ms - Date.now();
  model.heard = Date.now();
  model.beat = frame.beat_ms;
  model.status = frame.status;
  if (frame.past) {
    model.changes = frame.past.changes;
    model.samples = frame.past.samples;
  }
  for (const change of frame.changes) {
    model.changes.push(change);
    const line = make("p", {}, `${change.service}: ${happened(change)}`);
    $("log").append(line);
    while ($("log").children.length > 20) $("log").firstChild.remove();
    const card = cards.get(change.service)?.element;
    if (card && change.kind === "switch") {
      card.classList.remove("fresh");
      requestAnimationFrame(() => card.classList.add("fresh"));
    }
  }
  if (model.changes.length > 4096) model.changes.splice(0, model.changes.length - 4096);
  if (frame.sample) {
    for (const service of frame.status.services) {
      const of = model.samples[service.name] ??= {};
      for (const { name, durations } of service.endpoints) {
        if (!durations) continue;
        const points = of[name] ??= [];
        points.push([frame.now_unix_ms, durations.p50_us, durations.p99_us]);
        while (points.length && frame.now_unix_ms - points[0][0] > WINDOW_MS) points.shift();
      }
    }
  }
  render();
}

function tellLive() {
  const late = Date.now() - model.heard;
  const lost = late > 3 * model.beat + 2000;
  look($("live"), lost ? "lost" : "");
  if (model.heard === 0) say($("live"), "connecting");
  else say($("live"), lost ? `no news for ${Math.round(late / 1000)} s` : "live");
}

let source = null;
function connect() {
  source?.close();
  source = new EventSource("events");
  source.onmessage = (message) => take(JSON.parse(message.data));
  // Browsers try again by themselves unless they were refused.
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  };
}

for (const [kind, word, meaning] of LEGEND) {
  $("legend").append(make("li", {}, make("span", { class: `state ${kind}` }, word), ` ${meaning}`));
}
$("filter").addEventListener("input", render);
addEventListener("resize", render);
setInterval(tellLive, 1000);
connect();
