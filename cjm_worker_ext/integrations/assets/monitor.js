// Keeps the monitor page up to date. Described in nbs/11_integrations/12_monitor_page.ipynb.
"use strict";

const TEXT_LIMIT = 4000; // characters of streamed text on a card
const RANK = { running: 0, pending: 1, completed: 2, failed: 2, cancelled: 2 };
const byId = (id) => document.getElementById(id);
const field = (card, name) => card.querySelector(`[data-field="${name}"]`);
const keyOf = (row) => JSON.stringify([row.worker_type, row.job_id]);

const jobs = new Map(); // key -> {row, card, touched}
const workers = new Map(); // pid -> card
let touches = 0; // counts changes of jobs: an older state must not undo a newer event
let clockOffset = 0; // the server's clock minus ours, in ms
let more = 0;
let waits = {}; // worker type -> why a worker of it cannot start now

// ---- helpers
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function show(node, text) {
  setText(node, text || "");
  node.hidden = !text;
}

function duration(seconds) {
  if (seconds < 10) return `${Math.max(seconds, 0).toFixed(1)} s`;
  const whole = Math.floor(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

function when(row) {
  const attempt = row.attempts + (row.status === "pending" ? 1 : 0);
  return [time(row), attempt > 1 ? `attempt ${attempt}` : ""].filter(Boolean).join(", ");
}

function time(row) {
  if (row.status === "pending") return row.position ? `number ${row.position} in the queue` : "";
  if (!row.started_at) return "";
  const end = row.completed_at ? Date.parse(row.completed_at) : Date.now() + clockOffset;
  return duration((end - Date.parse(row.started_at)) / 1000);
}

// Rises during the life of a job: pending, running, pending again after the first attempt, running, and so on.
const stage = (row) => (RANK[row.status] === 2 ? Infinity : 2 * row.attempts - (row.status === "running" ? 1 : 0));

const asText = (chunk) => (typeof chunk === "string" ? chunk : JSON.stringify(chunk) + "\n");

// ---- announcements for screen readers, at most one every two seconds
let toSay = [];
function announce(sentence) {
  toSay.push(sentence);
  if (toSay.length === 1) {
    setTimeout(() => {
      byId("announcements").textContent = toSay.length > 3 ? `${toSay.length} jobs have ended` : toSay.join(". ");
      toSay = [];
    }, 2000);
  }
}

// ---- jobs
function drawJob(job) {
  const { row, card } = job;
  const running = row.status === "running";
  card.dataset.status = row.status;
  setText(field(card, "status"), row.status);
  setText(field(card, "plugin"), row.plugin_id);
  setText(field(card, "type"), row.worker_type);
  setText(field(card, "id"), row.job_id.slice(0, 8));
  field(card, "id").title = row.job_id;
  show(field(card, "when"), when(row));
  const bar = field(card, "progress");
  bar.hidden = !running;
  if (row.progress === null) bar.removeAttribute("value");
  else bar.value = row.progress;
  show(field(card, "message"), running ? row.message : row.position ? waits[row.worker_type] : "");
  const text = field(card, "text");
  const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 8;
  show(text, row.text);
  if (atEnd) text.scrollTop = text.scrollHeight;
  show(field(card, "error"), [row.error_type, row.error].filter(Boolean).join(": "));
  for (const form of card.querySelectorAll("form")) {
    const allowed = form.dataset.action === "cancel" ? row.can_cancel : row.can_retry;
    if (!allowed && form.contains(document.activeElement)) field(card, "plugin").focus();
    form.hidden = !allowed;
    form.elements.worker_type.value = row.worker_type;
    form.elements.job_id.value = row.job_id;
    const label = form.dataset.action === "cancel" ? "Cancel" : "Retry";
    form.querySelector("button").setAttribute("aria-label", `${label} ${row.plugin_id} ${row.job_id.slice(0, 8)}`);
  }
}

function change(row) {
  const key = keyOf(row);
  let job = jobs.get(key);
  if (!job) {
    const card = byId("job-template").content.firstElementChild.cloneNode(true);
    const blank = { status: "pending", attempts: 0, position: null, progress: null, text: null, next: 0, plugin_id: "" };
    job = { row: { ...blank, can_cancel: false, can_retry: false }, card };
    card.dataset.job = row.job_id;
    card.dataset.workerType = row.worker_type;
    jobs.set(key, job);
    byId("jobs").append(card);
  }
  job.touched = ++touches;
  const before = job.row;
  if (row.status && stage({ ...before, ...row }) < stage(before)) return job; // older than what the page shows
  const lacking = row.text === null && row.next > before.next; // it has ended, and chunks are missing here
  if (row.text === null || (row.next !== undefined && row.next < before.next)) {
    row = { ...row, text: before.text, next: before.next };
  }
  job.row = { ...before, ...row };
  if (RANK[before.status] !== 2 && RANK[job.row.status] === 2 && before.created_at) {
    announce(`${job.row.plugin_id} ${job.row.status}`);
  }
  if (RANK[job.row.status] === 2) Object.assign(job.row, { position: null, can_cancel: false });
  drawJob(job);
  if (lacking || before.status !== job.row.status) loadDetails(job, lacking);
  return job;
}

function addChunks(data) {
  const job = jobs.get(keyOf(data));
  if (!job) return;
  const skip = job.row.next - data.index;
  if (skip < 0) return refresh(); // chunks are missing in between
  const fresh = data.chunks.slice(skip);
  let text = "";
  for (let i = fresh.length - 1; i >= 0 && text.length < TEXT_LIMIT; i--) text = asText(fresh[i]).slice(-TEXT_LIMIT) + text;
  text = ((job.row.text || "") + text).slice(-TEXT_LIMIT);
  change({ worker_type: data.worker_type, job_id: data.job_id, text, next: job.row.next + fresh.length });
}

function order(a, b) {
  const [x, y] = [a.row, b.row];
  if (RANK[x.status] !== RANK[y.status]) return RANK[x.status] - RANK[y.status];
  if (x.status === "pending") return (x.position || 1e9) - (y.position || 1e9);
  if (x.status === "running") return (x.started_at || "~") < (y.started_at || "~") ? -1 : 1;
  return (x.completed_at || "~") > (y.completed_at || "~") ? -1 : 1;
}

function arrange() {
  const list = byId("jobs");
  const focused = document.activeElement;
  const counts = { running: 0, pending: 0, completed: 0, failed: 0, cancelled: 0 };
  let place = list.firstElementChild;
  for (const { row, card } of [...jobs.values()].sort(order)) {
    counts[row.status]++;
    if (card === place) place = place.nextElementSibling;
    else list.insertBefore(card, place);
  }
  if (focused !== document.activeElement && list.contains(focused)) focused.focus({ preventScroll: true });
  byId("no-jobs").hidden = jobs.size > 0;
  byId("more").hidden = !more;
  setText(byId("more"), `and ${more} more`);
  const said = Object.entries(counts).filter(([, n]) => n);
  setText(byId("counts"), said.map(([status, n]) => `${n} ${status}`).join(" · "));
  document.title = (counts.running ? `(${counts.running}) ` : "") + document.querySelector("h1").textContent;
}

// ---- workers
function drawLine(card, name, points, column, top) {
  const known = points.filter((p) => p[column] !== null);
  const place = (p) => `${(120 - p[0]).toFixed(1)},${(29 - (28 * p[column]) / top).toFixed(1)}`;
  card.querySelector(`[data-line="${name}"]`).setAttribute("points", known.map(place).join(" "));
}

function drawWorker(card, row) {
  card.dataset.status = row.status;
  setText(field(card, "status"), row.status);
  setText(field(card, "plugins"), row.plugins || "no plugin loaded");
  setText(field(card, "pid"), `pid ${row.pid}`);
  setText(field(card, "type"), row.worker_type);
  setText(field(card, "device"), row.device || "");
  setText(field(card, "job"), row.job_id ? `job ${row.job_id.slice(0, 8)}` : "");
  const figures = row.figures;
  field(card, "charts").hidden = !figures;
  if (!figures) return;
  const { cpu, memory, gpu, points } = figures;
  const mega = (bytes) => `${(bytes / 1048576).toFixed(0)} MB`;
  setText(field(card, "cpu"), cpu === null ? "–" : `${cpu.toFixed(0)} %`);
  setText(field(card, "memory"), (memory === null ? "–" : mega(memory)) + (gpu ? ` + ${mega(gpu)} GPU` : ""));
  drawLine(card, "cpu", points, 1, Math.max(100, ...points.map((p) => p[1] || 0)));
  drawLine(card, "memory", points, 2, 1.25 * Math.max(1, ...points.map((p) => p[2] || 0)));
}

function drawWorkers(rows) {
  const gone = new Set(workers.keys());
  for (const row of rows) {
    let card = workers.get(row.pid);
    if (!card) {
      card = byId("worker-template").content.firstElementChild.cloneNode(true);
      card.dataset.pid = row.pid;
      workers.set(row.pid, card);
      byId("workers").append(card);
    }
    gone.delete(row.pid);
    drawWorker(card, row);
  }
  for (const pid of gone) {
    workers.get(pid).remove();
    workers.delete(pid);
  }
  byId("no-workers").hidden = rows.length > 0;
}

// ---- machines and graphics cards
function drawLines(list, rows, tags, draw) {
  list.hidden = !rows.length;
  while (list.children.length > rows.length) list.lastElementChild.remove();
  rows.forEach((row, i) => {
    const line = list.children[i] || list.appendChild(document.createElement("li"));
    for (const tag of tags.slice(line.children.length)) line.append(document.createElement(tag));
    const parts = [...line.children];
    const meter = parts[tags.length];
    parts[0].className = "badge";
    const name = draw(row, parts, line);
    if (row.used === null) return meter && meter.remove();
    const bar = meter || line.appendChild(document.createElement("meter"));
    bar.value = row.used;
    bar.setAttribute("aria-label", `Memory in use on ${name}`);
  });
}

function drawGpus(rows) {
  drawLines(byId("gpus"), rows, ["span", "span"], (row, [label, text]) => {
    setText(label, row.label);
    setText(text, row.text);
    return row.label;
  });
}

function drawNodes(rows) {
  drawLines(byId("nodes"), rows, ["span", "b", "span"], (row, [status, host, text], line) => {
    line.dataset.status = row.status;
    setText(status, row.status);
    setText(host, row.host);
    setText(text, row.text);
    return row.host;
  });
}

function setWaits(found) {
  waits = found;
  for (const job of jobs.values()) if (job.row.status === "pending") drawJob(job);
}

// ---- details
async function loadDetails(job, always = false) {
  const { row, card } = job;
  if (!connected || !(always || card.querySelector("details").open)) return;
  const query = new URLSearchParams({ worker_type: row.worker_type, job_id: row.job_id });
  const answer = await fetch(`job?${query}`).catch(() => null);
  if (!answer || !answer.ok) return;
  const details = await answer.json();
  change({ worker_type: row.worker_type, job_id: row.job_id, text: details.text, next: details.next });
  const parts = { traceback: details.traceback, output: details.output.join("\n") };
  for (const [name, text] of Object.entries(parts)) {
    const part = card.querySelector(`[data-part="${name}"]`);
    part.hidden = !text;
    setText(part.querySelector("pre"), text || "");
  }
  card.querySelector('[data-part="nothing"]').hidden = Object.values(parts).some(Boolean);
  const facts = field(card, "facts");
  const clock = (at) => (at ? new Date(at).toLocaleTimeString() : "–");
  const pairs = [["Job", row.job_id], ["Type", row.worker_type], ["Queued", clock(row.created_at)]];
  pairs.push(["Started", clock(row.started_at)], ["Ended", clock(row.completed_at)]);
  facts.replaceChildren(
    ...pairs.map(([name, value]) => {
      const pair = document.createElement("div");
      pair.append(document.createElement("dt"), document.createElement("dd"));
      pair.firstChild.textContent = name;
      pair.lastChild.textContent = value;
      return pair;
    }),
  );
}

// ---- the state, as the server has it
let fetching = false;
let fetchTimer = null;
let jobsDue = false; // fetch jobs too, not only workers
let lastFetch = 0;

function refresh(withJobs = true) {
  jobsDue = jobsDue || withJobs;
  if (fetchTimer === null && connected) fetchTimer = setTimeout(fetchState, Math.max(100, lastFetch + 1000 - Date.now()));
}

async function fetchState() {
  clearTimeout(fetchTimer);
  fetchTimer = null;
  if (document.hidden) return; // fetched when the tab becomes visible
  if (fetching) return refresh(false);
  fetching = true;
  lastFetch = Date.now();
  const started = touches;
  const address = jobsDue ? "state" : "state?only=workers";
  jobsDue = false;
  try {
    const answer = await fetch(address, { signal: AbortSignal.timeout(10000) });
    if (!answer.ok) throw new Error(`state: ${answer.status}`);
    applyState(await answer.json(), started);
  } catch {
    jobsDue = true;
    disconnected();
  } finally {
    fetching = false;
  }
}

function applyState(state, started) {
  if (state.version !== document.body.dataset.version) return location.reload();
  clockOffset = Date.parse(state.now) - Date.now();
  for (const input of tokenInputs()) input.value = state.token;
  drawWorkers(state.workers);
  drawNodes(state.nodes);
  drawGpus(state.cards);
  setWaits(state.waits);
  show(byId("trouble"), state.trouble.join(" "));
  if (!state.jobs) return;
  more = state.more;
  const there = new Set(state.jobs.map(keyOf));
  for (const [key, job] of jobs) {
    if (!there.has(key) && (job.touched || 0) <= started) {
      job.card.remove();
      jobs.delete(key);
    }
  }
  for (const row of state.jobs) change(row);
  arrange();
}

// Also those in the template: a new card must have the right token.
const tokenInputs = () =>
  [document, byId("job-template").content].flatMap((root) => [...root.querySelectorAll('input[name="token"]')]);

// ---- the stream of events
let source = null;
let connected = false;
let retryDelay = 1000; // ms until the next try
let retryTimer = null;
let late = false; // the channel between the server's processes is away, so events are missing

function connect() {
  retryTimer = null;
  if (document.hidden) return; // see `pause`
  const opened = (source = new EventSource("events"));
  source.onopen = async () => {
    connected = true;
    jobsDue = true;
    setLate(false); // if it is away, the stream says so next
    await fetchState();
    if (!connected || source !== opened) return;
    retryDelay = 1000;
    setStale(false);
  };
  source.onerror = disconnected;
  const on = (types, react) => types.forEach((type) => source.addEventListener(type, (e) => react(JSON.parse(e.data), type)));
  on(["job:progress"], (e) => {
    const { worker_type, job_id, progress, message } = e;
    if (jobs.has(keyOf(e))) change({ worker_type, job_id, progress, message });
  });
  on(["job:chunk"], addChunks);
  on(["job:queued", "job:started", "job:retrying", "job:completed", "job:failed", "job:cancelled"], (e, type) => {
    const { worker_type, job_id, plugin_id, error, error_type, at } = e;
    const row = { worker_type, job_id, plugin_id };
    const known = (jobs.get(keyOf(e)) || { row: { status: "pending", attempts: 0 } }).row;
    if (type === "job:queued") Object.assign(row, { status: "pending", attempts: 0, created_at: at });
    else if (type === "job:started") {
      const attempts = known.attempts + (known.status === "pending" ? 1 : 0);
      Object.assign(row, { status: "running", attempts, started_at: at, position: null });
    } else if (type === "job:retrying") {
      known.attempts = Math.min(known.attempts, e.attempt); // counted twice, if a fetched state was faster than the event
      Object.assign(row, { status: "pending", attempts: e.attempt, started_at: null, position: null, progress: null });
    }
    else Object.assign(row, { status: e.status, error, error_type, completed_at: at });
    change(row);
    arrange();
    refresh();
  });
  on(["worker:started", "worker:ready", "worker:crashed", "worker:recycled", "worker:stopped", "plugin:loaded", "plugin:unloaded"], () => refresh());
  on(["snapshot", "gap", "resync"], () => refresh());
  on(["stale"], (e) => setLate(e.stale));
}

function setLate(value) {
  if (late && !value) refresh();
  late = value;
  byId("late").hidden = !late;
}

function setStale(stale) {
  document.body.classList.toggle("stale", stale);
  for (const button of document.querySelectorAll("main button")) button.disabled = stale;
  setText(byId("connection"), stale ? "Disconnected, trying again …" : "Live");
}

// Browsers open six connections to a server of HTTP/1.1, and each stream takes one. So a hidden tab has none.
function pause() {
  connected = false;
  if (source) source.close();
  source = null;
  clearTimeout(retryTimer);
  retryTimer = null;
}

function disconnected() {
  connected = false;
  if (!source) return; // paused
  setStale(true);
  setLate(false);
  source.close(); // after some errors a browser does not reconnect, so the page does it
  if (retryTimer !== null) return;
  retryTimer = setTimeout(connect, retryDelay * (0.8 + 0.4 * Math.random()));
  retryDelay = Math.min(retryDelay * 1.5, 15000);
}

// ---- user actions
document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.dataset.action) return;
  event.preventDefault();
  const button = form.querySelector("button");
  if (button.getAttribute("aria-disabled")) return;
  button.setAttribute("aria-disabled", "true");
  const body = new URLSearchParams(new FormData(form));
  const answer = await fetch(form.action, { method: "POST", body, headers: { Accept: "application/json" } }).catch(() => null);
  button.removeAttribute("aria-disabled");
  const problem = !answer ? "The server does not answer." : answer.ok ? "" : await answer.text();
  show(byId("problem"), problem);
  refresh();
});

document.addEventListener(
  "toggle",
  (event) => {
    const card = event.target.closest(".job");
    if (card && event.target.open) for (const job of jobs.values()) if (job.card === card) loadDetails(job);
  },
  true,
);

document.addEventListener("visibilitychange", () => {
  if (document.hidden) pause();
  else if (!source) connect();
});
setInterval(() => {
  for (const { row, card } of jobs.values()) if (row.status === "running") show(field(card, "when"), when(row));
}, 500);
setInterval(() => {
  if (document.hidden) return;
  refresh(late);
  for (const job of jobs.values()) if (job.row.status === "running") loadDetails(job);
}, 1000 * document.body.dataset.pollSeconds);

for (const card of document.querySelectorAll("#jobs > .job")) {
  const row = { worker_type: card.dataset.workerType, job_id: card.dataset.job };
  row.status = card.dataset.status;
  row.attempts = row.status === "pending" ? 0 : 1; // at least
  row.plugin_id = field(card, "plugin").textContent;
  const text = field(card, "text").textContent || null;
  field(card, "text").scrollTop = 1e6;
  jobs.set(keyOf(row), { row: { ...row, next: Number(card.dataset.next), text, progress: null, position: null }, card });
}
for (const card of document.querySelectorAll("#workers > .worker")) workers.set(Number(card.dataset.pid), card);
connect();
