// The page: sessions at the left, the conversation, and the memory laid open. All text becomes text nodes, never HTML.

import { answer, get, keepKey, key, path, post, Problem, remove } from "./wire.js";

const PAGE = 100; // messages, or names, that are shown at a time
const $ = (id) => document.getElementById(id);
const KINDS = { session: "sessions", context: "contexts" };

let model = "";
let open = null; // {kind, id}: what is looked at
let first = 0; // the place of the first message that is shown
let shown = []; // the messages that are shown, with their places
let coming = []; // the lines of a question that is being answered, behind them
let held = new Map(); // place -> how the message is kept
let sources = []; // passages that were found, the best first
let running = null; // stops the answer that is being given
let looking = null; // the newest look at what is open, until all of it is there
let opened = 0; // grows with each opening: what comes late belongs to none
let looks = 0; // grows with each look: only the newest one is shown
const listings = { session: 0, context: 0 }; // so do these with each listing
let asked = []; // questions to documents and their answers, which nobody remembers

// ---- elements

function make(tag, about = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(about)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null)); // strings become text nodes
  return made;
}

const button = (text, label, onclick, style) => make("button", { type: "button", "aria-label": label, class: style, onclick }, text);
const count = (number) => Number(number).toLocaleString("en");
const rate = (ratio) => (ratio === null ? "raw" : `${ratio}x`);
const style = (ratio) => (ratio === null ? "raw" : `r${ratio}`);
const say = (text) => ($("status").textContent = text);

function size(bytes) {
  let value = bytes;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024 || unit === "GiB") return `${unit === "B" ? value : value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
}

function complain(error) {
  if (error.name === "AbortError") return;
  if (error instanceof Problem && error.status === 401) $("key-form").hidden = false;
  $("problem").textContent = error instanceof Problem ? error.message : `the page failed: ${error.message}`;
  $("problem").hidden = false;
}

// Run what may fail, and say so.
async function attempt(act) {
  $("problem").hidden = true;
  try {
    return await act();
  } catch (error) {
    complain(error);
  }
}

const on = (id, event, act) =>
  $(id).addEventListener(event, (happened) => {
    happened.preventDefault();
    attempt(() => act(happened));
  });

function sure(title, text, yes) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}

// ---- the lists at the left

async function names(kind, after = "") {
  const list = $(KINDS[kind]), more = $(`more-${KINDS[kind]}`), mine = (listings[kind] += 1);
  const page = await get(path([KINDS[kind]], { prefix: $("prefix").value, limit: PAGE, after }));
  if (mine !== listings[kind]) return page.data;
  const lines = page.data.map((one) => {
    const here = open?.kind === kind && open.id === one.id;
    return make("li", {}, make("a", { href: `#${kind}/${encodeURIComponent(one.id)}`, "aria-current": here && "page" }, one.id));
  });
  if (after) list.append(...lines);
  else list.replaceChildren(...lines);
  more.hidden = !page.has_more;
  more.onclick = () => attempt(() => names(kind, page.last_id));
  return page.data;
}

async function lists() {
  const [, contexts] = await Promise.all([names("session"), names("context")]);
  const chosen = $("front").value;
  $("front").replaceChildren(make("option", { value: "" }, "none"), ...contexts.map((one) => make("option", { value: one.id }, one.id)));
  $("front").value = contexts.some((one) => one.id === chosen) ? chosen : "";
}

async function start() {
  const mine = opened;
  model = (await get(path(["models"]))).data[0].id;
  $("model").textContent = model;
  await lists();
  if (mine === opened) await follow(); // else something was opened meanwhile
}

// ---- opening

async function follow() {
  const [kind, id] = location.hash.slice(1).split("/");
  if (!(kind in KINDS) || !id) return;
  running?.abort();
  if ($("confirm").open) $("confirm").close("no"); // it asks about what was open
  open = { kind, id: decodeURIComponent(id) };
  opened += 1;
  sources = [];
  asked = [];
  coming = [];
  for (const link of document.querySelectorAll("nav li a")) {
    if (link.getAttribute("href") === location.hash) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  $("title").textContent = kind === "session" ? open.id : `Documents: ${open.id}`;
  $("hint").textContent = kind === "session" ? "" : "Answers here come from the documents; they are not remembered.";
  $("forget").textContent = kind === "session" ? "Forget this session" : "Forget these documents";
  for (const id of ["say", "send", "find", "read", "forget"]) $(id).disabled = false;
  $("front").hidden = $("front-label").hidden = kind !== "session";
  $("branches-part").hidden = kind !== "session";
  say("");
  // Nothing of what was open before is left to be pressed.
  shown = [];
  figures(null);
  messages();
  documents([]);
  branches([]);
  found("Sources of the answer");
  await look();
}

// Everything of what is open, as it is now: the newest messages, unless a place is to be seen.
const look = (place = null) => (looking = lookAt(place));

async function lookAt(place) {
  const mine = (looks += 1), { kind, id } = open, root = [KINDS[kind], id];
  let info = null;
  try {
    info = await get(path(root));
  } catch (error) {
    if (error.status !== 404) throw error; // a new one: the first message makes it
  }
  const last = (info?.messages ?? 0) - PAGE;
  const from = kind === "session" ? Math.max(0, place === null ? last : Math.min(place, last)) : 0;
  const told = kind === "session" && info ? (await get(path([...root, "messages"], { after: from - 1, limit: PAGE }))).data : [];
  if (mine !== looks) return;
  figures(info);
  first = from;
  shown = kind === "session" ? told : asked.map((message, at) => ({ ...message, place: at }));
  held = new Map();
  messages();
  if (place === null) $("log").scrollTop = $("log").scrollHeight;
  if (!info) {
    documents([]);
    return branches([]);
  }
  const [contents, texts, parted] = await Promise.all([
    kind === "session" ? get(path([...root, "contents"], { after: first - 1, limit: PAGE })) : { data: [] },
    get(path([...root, "contents"], { kind: kind === "session" ? "document" : "", limit: 1000 })),
    kind === "session" ? get(path([...root, "branches"])) : { data: [] },
  ]);
  if (mine !== looks) return;
  held = new Map(contents.data.map((one) => [one.place, one]));
  for (const line of $("messages").querySelectorAll("[data-place]")) {
    line.querySelector(".held").textContent = keeping(held.get(Number(line.dataset.place)));
  }
  documents(texts.data);
  branches(parted.data);
}

// ---- the conversation

// A text with the sources that are of it, marked.
function words(text, own) {
  const found = [];
  for (const source of own) {
    const at = text.indexOf(source.text);
    if (source.text && at >= 0) found.push([at, at + source.text.length, sources.indexOf(source)]);
  }
  found.sort((one, other) => one[0] - other[0]);
  const made = make("p", { class: "words" });
  let at = 0;
  for (const [begin, end, source] of found) {
    if (end <= at) continue;
    const from = Math.max(begin, at);
    made.append(text.slice(at, from), make("mark", { "data-source": source, tabindex: "-1" }, text.slice(from, end)));
    at = end;
  }
  made.append(text.slice(at));
  return made;
}

function keeping(one) {
  if (!one) return "";
  return one.held.map((part) => `${rate(part.ratio)} ${count(part.tokens)}`).join(", ") || `${count(one.tokens)} tokens`;
}

function line(message) {
  const marks = sources.filter((one) => one.message === message.place && one.session === open.id);
  const calls = (message.tool_calls ?? []).map((call) => `${call.name}(${JSON.stringify(call.args ?? {})})`);
  const text = [message.content, ...calls].filter(Boolean).join("\n");
  const forgettable = open.kind === "session" && message.place !== undefined;
  return make(
    "li",
    { class: `message ${message.role === "user" || message.role === "document" ? message.role : ""}`, "data-place": message.place },
    make(
      "div",
      { class: "about" },
      make("strong", {}, message.role),
      make("span", { class: "held", title: "tokens, raw or folded so many to a slot" }, keeping(held.get(message.place))),
      forgettable ? button("Forget", `Forget message ${message.place + 1}`, () => attempt(() => forgetMessage(message)), "danger") : null,
    ),
    words(text, marks),
  );
}

function messages() {
  $("messages").replaceChildren(...shown.map(line), ...coming);
  $("earlier").hidden = !(open.kind === "session" && first > 0);
}

async function forgetMessage(message) {
  const more = "What was folded behind it is folded again, as if it had never been said.";
  if (!(await sure("Forget this message?", `“${String(message.content).slice(0, 120)}” ${more}`, "Forget it"))) return;
  const root = ["sessions", open.id, "messages"];
  if (!message.id) {
    // Someone else may have moved it meanwhile: a place may be another message's now.
    const [now] = (await get(path(root, { after: message.place - 1, limit: 1 }))).data;
    if (now?.content !== message.content) throw new Problem("the session has changed meanwhile: nothing was forgotten", 409);
  }
  await remove(path([...root, message.id ?? String(message.place)]));
  sources = [];
  found();
  say("The message is forgotten.");
  await look(first);
  $("title").focus();
}

async function send() {
  const text = $("say").value.trim();
  if (!text || running || !open) return;
  const mine = opened, stop = (running = new AbortController());
  const question = { role: "user", content: text };
  const body = { model, messages: [question] };
  if (open.kind === "session") Object.assign(body, { session_id: open.id, history: "append", context_id: $("front").value || null });
  else Object.assign(body, { messages: [...asked, question], context_id: open.id });
  const said = make("p", { class: "words" }), log = $("log");
  coming = [
    line(question),
    make("li", { class: "message", "aria-busy": "true" }, make("div", { class: "about" }, make("strong", {}, "assistant")), said),
  ];
  const [, given] = coming;
  $("messages").append(...coming);
  log.scrollTop = log.scrollHeight;
  $("say").value = "";
  busy(true);
  say("The model reads and answers …");
  const last = shown.at(-1)?.place ?? -1;
  let told = null;
  try {
    for await (const event of answer(body, stop.signal)) {
      const piece = event.choices[0]?.delta?.content;
      const below = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      if (piece) said.append(piece);
      if (below) log.scrollTop = log.scrollHeight;
      told = event.beacon ?? told;
    }
  } catch (error) {
    if (mine === opened) await failed(error, text, last);
    throw error;
  } finally {
    if (running === stop) {
      running = null;
      busy(false);
    }
  }
  if (mine !== opened) return;
  given.removeAttribute("aria-busy");
  asked = open.kind === "session" ? [] : [...asked, question, { role: "assistant", content: said.textContent }];
  sources = told?.sources ?? [];
  found("Sources of the answer");
  say(`Answered from ${count(told?.beacon_tokens ?? 0)} slots and ${count(told?.raw_tokens ?? 0)} raw tokens.`);
  const answered = coming, before = shown;
  coming = [];
  const seen = await Promise.allSettled([look(), lists()]);
  if (mine === opened && seen[0].status === "rejected" && shown === before) {
    coming = answered; // it is remembered, whether it can be looked at now or not
    messages();
  }
  for (const one of seen) if (one.status === "rejected") throw one.reason;
}

// An answer that is not whole: nothing is remembered, unless it was whole there when it was stopped or lost.
async function failed(error, text, last) {
  const mine = opened, stopped = error.name === "AbortError";
  coming = [];
  messages();
  const there = open.kind === "session" && (await look().then(() => shown.some((one) => one.place > last && one.content === text), () => null));
  if (mine !== opened) return;
  if (!there) $("say").value ||= text;
  if (there) say("The answer was whole when it was stopped or lost: it is remembered.");
  else if (there === null) say(stopped ? "Stopped." : "");
  else say(stopped ? "Stopped: nothing was remembered." : "Nothing was remembered.");
}

function busy(yes) {
  const focused = document.activeElement;
  $("stop").hidden = !yes;
  $("send").disabled = yes;
  if (focused === $("send") && yes) $("stop").focus();
  if (focused === $("stop") && !yes) $("say").focus();
}

// ---- the memory laid open

function figures(info) {
  const kept = Object.entries(info?.ratios ?? {}).map(([ratio, tokens]) => [Number(ratio), tokens]);
  if (info?.tail) kept.push([null, info.tail]);
  const label = kept.map(([ratio, tokens]) => `${ratio === null ? "raw" : `folded ${ratio}x`}: ${count(tokens)} tokens`);
  $("bar").replaceChildren(
    ...kept.map(([ratio, tokens]) => {
      const part = make("span", { class: style(ratio) });
      part.style.flexGrow = tokens;
      return part;
    }),
  );
  $("bar").setAttribute("aria-label", label.join(", ") || "Nothing is read yet");
  $("ratios").replaceChildren(
    ...kept.map(([ratio], at) => make("li", {}, make("span", { class: `dot ${style(ratio)}` }), label[at])),
  );
  const rows = info && [
    ["tokens read", count(info.tokens)],
    ["slots kept", `${count(info.slots)} of ${count(info.budget)}`],
    ["bytes of slots", size(info.bytes)],
    ["as a raw cache", size(info.raw_bytes)],
    ["folded next", `${info.ratio}x`],
    ["messages", count(info.messages)],
    ["documents", count(info.documents)],
  ];
  $("figures").replaceChildren(...(rows ?? []).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function found(title) {
  if (title) $("sources-title").textContent = title;
  const lines = sources.map((one, at) => {
    const where = one.document ? `document ${one.document}` : one.message === undefined ? "what was said" : `message ${one.message + 1}`;
    return make(
      "li",
      {},
      make("p", { class: "quiet" }, `${where}, score ${one.score.toFixed(1)}`),
      make("p", { class: "words" }, one.text),
      button("Show in the text", `Show passage ${at + 1} in the text`, () => attempt(() => show(one))),
    );
  });
  $("sources").replaceChildren(...(lines.length ? lines : [make("li", { class: "quiet" }, "none")]));
}

async function show(source) {
  panel("memory", source.document !== undefined);
  await looking; // the documents may still be on their way
  const marked = (within) => within?.querySelector(`mark[data-source="${sources.indexOf(source)}"]`) ?? within;
  let target;
  if (source.document !== undefined && $("documents").querySelector(`[data-name="${CSS.escape(source.document)}"]`)) {
    const part = $("documents").querySelector(`[data-name="${CSS.escape(source.document)}"] details`);
    const reading = part.read();
    part.open = true;
    await reading;
    target = marked(part);
  } else if (source.document !== undefined) {
    location.hash = `#context/${encodeURIComponent(String(source.session).replace(/^context:/, ""))}`;
    return;
  } else {
    if (!shown.some((one) => one.place === source.message)) await look(source.message);
    else messages();
    target = marked($("messages").querySelector(`[data-place="${source.message}"]`));
  }
  if (!target) return;
  target.setAttribute("tabindex", "-1");
  target.scrollIntoView({ block: "center" });
  target.focus();
}

function documents(all) {
  const { kind, id } = open;
  const unfolded = new Set([...$("documents").querySelectorAll("details[open]")].map((part) => part.closest("li").dataset.name));
  const lines = all.map((one) => {
    const text = make("div", {});
    const part = make("details", { open: unfolded.has(one.document) }, make("summary", {}, "Text"), text);
    part.read = async () => {
      part.shown = true;
      const told = await get(path([KINDS[kind], id, "documents", one.document]));
      text.replaceChildren(words(told.text, sources.filter((source) => source.document === one.document)));
    };
    part.addEventListener("toggle", () => part.open && !part.shown && attempt(part.read));
    return make(
      "li",
      { "data-name": one.document },
      make("p", {}, make("strong", {}, one.document)),
      make("p", { class: "quiet" }, `${count(one.tokens)} tokens: ${keeping(one)}`),
      part,
      button("Forget", `Forget the document ${one.document}`, () => attempt(() => forgetDocument(one)), "danger"),
    );
  });
  $("documents").replaceChildren(...(lines.length ? lines : [make("li", { class: "quiet" }, "none")]));
}

async function forgetDocument(one) {
  const session = open.kind === "session";
  if (!(await sure("Forget this document?", one.document, "Forget it"))) return;
  await remove(path(session ? ["sessions", open.id, "messages", one.document] : ["contexts", open.id, "documents", one.document]));
  say("The document is forgotten.");
  await look();
  $("title").focus();
}

function branches(all) {
  const lines = all.map((one) => {
    const last = one.messages.at(-1);
    const goBack = async () => {
      if (!(await sure("Go back to this branch?", "Where the session stands now becomes a branch in its place.", "Go back"))) return;
      await post(path(["sessions", open.id, "checkout"]), { branch: one.id });
      say(`The session is at branch ${one.id} again.`);
      await look();
      $("title").focus();
    };
    return make(
      "li",
      {},
      make("p", {}, `Branch ${one.id}: ${count(one.messages.length)} messages`),
      make("p", { class: "quiet" }, last ? `ends with “${String(last.content).slice(0, 80)}”` : "empty"),
      button("Go back to it", `Go back to branch ${one.id}`, () => attempt(goBack)),
    );
  });
  $("branches").replaceChildren(...(lines.length ? lines : [make("li", { class: "quiet" }, "none")]));
}

// ---- what is pressed and typed

function panel(id, wanted) {
  for (const one of ["places", "memory"]) {
    const now = one === id && wanted;
    $(one).classList.toggle("open", now);
    $(`show-${one}`).setAttribute("aria-expanded", String(now));
  }
}

for (const id of ["places", "memory"]) on(`show-${id}`, "click", () => panel(id, !$(id).classList.contains("open")));
on("ask", "submit", send);
on("stop", "click", () => running?.abort());
$("say").addEventListener("keydown", (pressed) => {
  if (pressed.key !== "Enter" || pressed.shiftKey || pressed.isComposing) return;
  pressed.preventDefault();
  attempt(send);
});
on("new-form", "submit", () => {
  location.hash = `#session/${encodeURIComponent($("new-name").value.trim())}`;
  $("new-name").value = "";
});
on("prefix", "input", () => Promise.all([names("session"), names("context")]));
on("earlier", "click", () => look(Math.max(0, first - PAGE)));
on("key-form", "submit", async () => {
  keepKey($("key").value.trim());
  $("key").value = "";
  await start();
  say("The key opens this server.");
});
on("key-forget", "click", () => {
  keepKey("");
  location.hash = "";
  location.reload();
});
on("search-form", "submit", async () => {
  const mine = opened;
  const { data } = await post(path([KINDS[open.kind], open.id, "search"]), { query: $("query").value });
  if (mine !== opened) return;
  sources = data;
  found("Passages that were found");
  messages();
});
on("read-form", "submit", async () => {
  const [name, text] = [$("read-name").value, $("read-text").value];
  say("The text is read …");
  if (open.kind === "session") await post(path(["sessions", open.id, "documents"]), { name, text });
  else await post(path(["contexts", open.id, "documents"]), { documents: [{ key: name, text }] });
  $("read-form").reset();
  $("reading").open = false;
  say("The text is read.");
  await Promise.all([look(), lists()]);
});
on("forget", "click", async () => {
  const what = open.kind === "session" ? "The session, its documents and its branches" : "All documents of this name";
  if (!(await sure(`Forget ${open.id}?`, `${what} are removed. This cannot be undone.`, "Forget all of it"))) return;
  const told = await remove(path([KINDS[open.kind], open.id]));
  sources = [];
  found();
  say(["It is forgotten.", ...told.left_to_do].join(" "));
  await Promise.all([look(), lists()]);
  $("title").focus();
});
window.addEventListener("hashchange", () => {
  panel("places", false);
  $("title").focus();
  attempt(follow);
});

found();
$("key-form").hidden = !key();
attempt(start);
