// The live page: Server-Sent Events in, clicks out. No library, no build step.

const ROWS = 10;
const WAIT_MS = 800; // a click without a list for so long deserves a word
const AGAIN_MS = 2000; // between two tries to find the demo again
const SPARK_S = 60;
const GUEST = "guest-";

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

const state = {
  user: sessionStorage.getItem("user") ?? newGuest(),
  source: null,
  list: null, // the one on the screen
  held: null, // a newer one, while somebody is about to choose
  heldCount: 0,
  clicks: new Map(), // those that no list has answered: id -> when
  answered: 0,
  titles: new Map(), // what the search knows: title -> item
  workers: [],
  active: [],
  ended: false,
};

// -- The stream -----------------------------------------------------------------------------------------------------

function connect() {
  state.source?.close();
  const source = new EventSource(`/live?user=${encodeURIComponent(state.user)}`);
  state.source = source;
  const on = (kind, take) => source.addEventListener(kind, (event) => take(JSON.parse(event.data)));
  source.addEventListener("open", opened);
  source.addEventListener("error", () => lost(source));
  on("list", takeList);
  on("figures", takeFigures);
  on("workers", takeWorkers);
  on("notice", takeNotice);
  on("end", ended);
}

function opened() {
  state.ended = false;
  document.querySelectorAll("button, input, select").forEach((control) => (control.disabled = false));
  $("notices").replaceChildren(element("li", "none", "Nothing yet.")); // the server tells them all again
  if (state.titles.size === 0) offerTitles();
}

function lost(source) {
  if (!state.ended) $("run").textContent = "Connecting …";
  if (source.readyState === EventSource.CLOSED && source === state.source) setTimeout(connect, AGAIN_MS);
}

function ended() {
  state.ended = true;
  state.source.close();
  state.titles.clear();
  $("run").textContent = "Ended.";
  say("The demo has ended. “make demo” starts it again, and this page goes on with it.");
  $("keep").hidden = true;
  document.querySelectorAll("button, input, select").forEach((control) => (control.disabled = true));
  setTimeout(connect, AGAIN_MS);
}

// -- The list -------------------------------------------------------------------------------------------------------

function takeList(list) {
  const mine = list.answers.filter(({ id }) => state.clicks.has(id));
  if (mine.length === 0 && state.list?.own && list.own && choosing()) {
    state.held = list;
    state.heldCount += 1;
    murmur(`${plural(state.heldCount, "newer list")} waiting while you choose.`);
    return;
  }
  showList(list);
  if (mine.length > 0) {
    const clicked = Math.min(...mine.map(({ id }) => state.clicks.get(id)));
    const ms = Math.max(...mine.map((answer) => answer.ms));
    mine.forEach(({ id }) => state.clicks.delete(id));
    state.answered += mine.length;
    showSince(ms);
    afterPaint((now) => sayPublished(list, ms, Math.round(now - clicked)));
  } else if (list.own) {
    showSince(list.wait_ms);
    murmur(`Event ${number.format(list.events)} of this user: list published ${list.wait_ms} ms after it reached Kafka.`);
  } else {
    showSince(null);
    murmur(isGuest() ? "Nobody knows you yet. Click what you like." : "No event of this user so far. This is everybody’s list.");
  }
}

function showList(list) {
  state.held = null;
  state.heldCount = 0;
  const before = new Map(state.list?.user === list.user ? state.list.rows.map((row, place) => [row.item, place]) : []);
  const comparable = before.size > 0 && state.list.own === list.own;
  state.list = list;
  $("list-title").textContent = list.own ? (isGuest() ? "Your list" : `The list of user ${list.user}`) : "Everybody’s list";
  rowElements().forEach((button, place) => {
    const row = list.rows[place];
    button.parentElement.hidden = row === undefined;
    if (row) showRow(button, row, place, comparable ? (before.get(row.item) ?? Infinity) - place : 0);
  });
  $("seen-label").textContent = isGuest() ? "Clicked so far" : "Seen lately";
  $("seen").textContent = list.seen.join(" · ") || "nothing yet";
  showWorkers();
}

function showRow(button, row, place, rise) {
  const changed = button.dataset.item !== row.item;
  button.dataset.item = row.item;
  button.classList.remove("sent", "changed");
  if (changed && rise !== 0) {
    void button.offsetWidth; // so that the animation begins anew
    button.classList.add("changed");
  }
  part(button, "place").textContent = place + 1;
  const move = part(button, "move");
  move.textContent = rise === 0 ? "" : rise === Infinity ? "new" : rise > 0 ? `▲${rise}` : `▼${-rise}`;
  move.classList.toggle("down", rise < 0);
  part(button, "title").textContent = row.title;
  part(button, "why").textContent =
    row.score === null ? row.detail : row.because === null ? "popular with everybody" : `because of ${row.because}`;
  const score = row.score === null ? [] : [element("span", "hidden", "score "), row.score.toFixed(2)];
  part(button, "score").replaceChildren(...score);
}

function showSince(ms) {
  rowElements().forEach((button) => (part(button, "ms").textContent = ms === null ? "" : `+${number.format(ms)} ms`));
}

function sayPublished(list, ms, screen) {
  const [first] = list.rows;
  const more = first?.because ? ` First now: ${first.title}, because of ${first.because}.` : "";
  say(
    "Published ", element("b", "", `${number.format(ms)} ms`), " after your click, on this screen after ",
    element("b", "", `${number.format(screen)} ms`), ".", element("span", "hidden", more),
  );
  Object.assign($("status").dataset, { ms, screen, answered: state.answered });
}

/** Whether somebody's pointer or keyboard is on the list: what stands there must not change under it. */
function choosing() {
  return $("list").matches(":hover") || $("list").querySelector(":focus-visible") !== null;
}

function release() {
  if (state.held && !choosing()) takeList(state.held);
}

async function click(item, when) {
  const id = crypto.randomUUID();
  state.clicks.set(id, when);
  setTimeout(() => {
    if (state.clicks.has(id)) say("Your click is kept in Kafka. The list comes as soon as a worker has taken over.");
  }, WAIT_MS);
  const problem = await post("/clicks", { id, user: state.user, item });
  if (problem) {
    state.clicks.delete(id);
    say(`The click did not get through: ${problem}`);
  }
}

function rowElements() {
  return [...$("list").querySelectorAll("button")];
}

function makeRows() {
  for (let place = 0; place < ROWS; place += 1) {
    const button = element("button", "row");
    button.type = "button";
    const rank = element("span", "rank");
    rank.append(element("span", "place"), element("span", "move"));
    const what = element("span", "what");
    what.append(element("span", "title"), element("span", "why"));
    part(rank, "move").ariaHidden = "true";
    button.append(rank, what, element("span", "score"), element("span", "ms"));
    button.addEventListener("click", (event) => {
      if (button.classList.contains("sent")) return; // a double click is one click
      button.classList.add("sent");
      click(button.dataset.item, event.timeStamp);
    });
    const line = element("li");
    line.hidden = true;
    line.append(button);
    $("list").append(line);
  }
}

// -- Who ------------------------------------------------------------------------------------------------------------

function newGuest() {
  return GUEST + crypto.randomUUID().slice(0, 8);
}

function isGuest() {
  return state.user.startsWith(GUEST);
}

function become(user) {
  state.user = user;
  state.clicks.clear();
  sessionStorage.setItem("user", user);
  offerUsers();
  connect();
}

function offerUsers() {
  const others = [...new Set([...(isGuest() ? [] : [state.user]), ...state.active])];
  const guest = isGuest() ? state.user : "";
  const group = element("optgroup");
  group.label = "users of the log, active now";
  group.append(...others.map((user) => option(user, `user ${user}`)));
  $("user").replaceChildren(option(guest, "a new user"), ...(others.length > 0 ? [group] : []));
  $("user").value = isGuest() ? guest : state.user;
}

function option(value, text) {
  const made = element("option", "", text);
  made.value = value;
  return made;
}

async function offerTitles() {
  const reply = await fetch("/titles");
  const titles = await reply.json();
  state.titles = new Map(titles.map(({ title, item }) => [title, item]));
  $("titles").replaceChildren(...titles.map(({ title, detail }) => option(title, detail)));
}

function find(event) {
  event.preventDefault();
  const text = $("title").value.trim();
  const item = state.titles.get(text) ?? [...state.titles].find(([title]) => title.toLowerCase().includes(text.toLowerCase()))?.[1];
  if (!text || item === undefined) {
    say(text ? `No title like “${text}”.` : "Type a title first.");
    return;
  }
  $("title").value = "";
  click(item, event.timeStamp);
}

// -- Workers --------------------------------------------------------------------------------------------------------

function takeWorkers(workers) {
  state.workers = workers;
  showWorkers();
}

function showWorkers() {
  const list = $("workers");
  while (list.children.length < state.workers.length) list.append(makeWorker());
  state.workers.forEach((worker, place) => showWorker(list.children[place], worker));
  const mine = state.list?.partition;
  const served = mine === undefined || state.workers.some((worker) => worker.partitions.includes(mine));
  $("served").textContent = served ? "" : `You are in partition ${mine}, which waits for its next worker.`;
}

function makeWorker() {
  const line = element("li", "worker");
  const text = element("div");
  const name = element("p", "name");
  name.append(element("span", "number"), element("small", "pid"), element("span", "you", "serves you"));
  text.append(name, element("p", "held"));
  const button = element("button");
  button.type = "button";
  button.addEventListener("click", async () => {
    const { number: which, runs } = button.dataset;
    button.disabled = true;
    const problem = await post(`/workers/${which}/${runs ? "kill" : "start"}`);
    button.disabled = false;
    if (problem) say(`Worker ${which}: ${problem}`);
  });
  line.append(text, button);
  return line;
}

function showWorker(line, worker) {
  const runs = worker.state === "running" || worker.state === "starting";
  line.classList.toggle("down", !runs);
  part(line, "number").textContent = `Worker ${worker.number}`;
  part(line, "pid").textContent = runs ? `pid ${worker.pid}` : `${worker.state} ${worker.since_s} s ago`;
  part(line, "you").hidden = !worker.partitions.includes(state.list?.partition);
  part(line, "held").textContent = held(worker, runs);
  const button = line.querySelector("button");
  button.textContent = runs ? "Kill -9" : "Bring back";
  button.classList.toggle("kill", runs);
  button.ariaLabel = runs ? `Kill -9 worker ${worker.number}` : `Bring back worker ${worker.number}`;
  button.dataset.number = worker.number;
  button.dataset.runs = runs ? "yes" : "";
}

function held(worker, runs) {
  if (!runs) return "no partitions now";
  if (worker.state === "starting") return "starting …";
  const noun = worker.partitions.length === 1 ? "partition" : "partitions";
  return `${noun} ${worker.partitions.join(", ")} · ${plural(worker.users, "user")}`;
}

function takeNotice({ text, at_s }) {
  const line = element("li");
  line.append(element("time", "", new Date(at_s * 1000).toLocaleTimeString("en-GB")), element("span", "", text));
  $("notices").querySelector(".none")?.remove();
  $("notices").prepend(line);
}

// -- Figures --------------------------------------------------------------------------------------------------------

function takeFigures(figures) {
  state.active = figures.active;
  if (document.activeElement !== $("user")) offerUsers();
  $("p50").textContent = milliseconds(figures.p50_ms);
  $("p99").textContent = milliseconds(figures.p99_ms);
  $("events").textContent = number.format(figures.events_s);
  $("lists").textContent = number.format(figures.lists_s.at(-1));
  $("pending").textContent = number.format(figures.waiting);
  showBars(figures);
  showSpark(figures.lists_s);
  showQuality(figures);
  showRun(figures);
}

function showBars({ bars, edges_ms, p50_ms, p99_ms }) {
  const box = $("bars");
  while (box.children.length < bars.length) {
    const column = element("div");
    const room = element("span");
    room.append(element("i"));
    column.append(room, element("small"));
    box.append(column);
  }
  const most = Math.max(1, ...bars);
  bars.forEach((count, place) => {
    const column = box.children[place];
    column.querySelector("i").style.blockSize = count === 0 ? "0" : `max(2px, ${(100 * count) / most}%)`;
    const edge = edges_ms[place];
    column.querySelector("small").textContent = place % 2 === 1 && edge ? edgeText(edge, place) : "";
  });
  box.ariaLabel = `Histogram of event to list: median ${milliseconds(p50_ms)} ms, 99 of 100 within ${milliseconds(p99_ms)} ms`;
}

/** The upper edge of a bar; the first one says the unit. */
function edgeText(edge, place) {
  if (edge >= 1000) return `${Math.round(edge / 1000)} s`;
  return place === 1 ? `${edge} ms` : edge;
}

function showSpark(lists) {
  const most = Math.max(1, ...lists);
  const start = SPARK_S - lists.length;
  const points = lists.map((value, place) => `${start + place},${(31 - (29 * value) / most).toFixed(1)}`);
  $("spark").firstElementChild.setAttribute("points", points.join(" "));
}

function showQuality({ judged, own_hits, popular_hits }) {
  const rates = { own: own_hits, popular: popular_hits };
  const most = Math.max(0.3, own_hits / judged || 0, popular_hits / judged || 0);
  for (const [name, hits] of Object.entries(rates)) {
    const rate = judged ? hits / judged : null;
    $(name).textContent = rate === null ? "–" : `${(100 * rate).toFixed(1)} %`;
    $(`${name}-bar`).style.inlineSize = `${(100 * (rate ?? 0)) / most}%`;
  }
  if (judged) $("judged").textContent = `First ten of each, on ${number.format(judged)} replayed events`;
}

function showRun({ seconds_left, replaying }) {
  $("keep").hidden = seconds_left === null;
  const left = Math.ceil(seconds_left ?? 0);
  const clock = `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
  const text = replaying ? "Replaying real events" : "The log has ended; your clicks go on";
  const wanted = seconds_left === null ? `${text}, until Ctrl-C.` : `${text}. The demo ends in ${clock}.`;
  $("run").textContent = wanted;
}

// -- Small things ---------------------------------------------------------------------------------------------------

async function post(path, body) {
  try {
    const reply = await fetch(path, { method: "POST", body: body && JSON.stringify(body) });
    return reply.ok ? "" : await reply.text();
  } catch {
    return "the demo does not answer.";
  }
}

/** Shown, and spoken by a screen reader. */
function say(...parts) {
  $("status").ariaLive = "polite";
  $("status").replaceChildren(...parts);
}

/** Shown only: what the log's users do is too much to be spoken. */
function murmur(text) {
  $("status").ariaLive = "off";
  $("status").replaceChildren(text);
}

function element(tag, name = "", text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = text;
  return made;
}

function part(within, name) {
  return within.getElementsByClassName(name)[0];
}

function plural(count, noun) {
  return `${number.format(count)} ${noun}${count === 1 ? "" : "s"}`;
}

function milliseconds(value) {
  if (value === null) return "–";
  return value < 100 ? value.toFixed(1) : number.format(Math.round(value));
}

function afterPaint(take) {
  if (document.visibilityState === "visible") requestAnimationFrame(() => take(performance.now()));
  else take(performance.now());
}

makeRows();
sessionStorage.setItem("user", state.user);
offerUsers();
$("user").addEventListener("change", () => become($("user").value || newGuest()));
$("renew").addEventListener("click", () => become(newGuest()));
$("find").addEventListener("submit", find);
$("keep").addEventListener("click", () => post("/keep"));
$("list").addEventListener("pointerleave", release);
$("list").addEventListener("focusout", () => setTimeout(release));
connect();
