// What the page asks the server, and how an answer comes in pieces. The key stays in this tab alone.

const KEY = "beacon-key";

export class Problem extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const key = () => sessionStorage.getItem(KEY) ?? "";
export const keepKey = (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY));

// A path from its parts, each percent-encoded, and a query without what is empty.
export function path(parts, query = {}) {
  const asked = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const tail = asked.length ? "?" + new URLSearchParams(asked) : "";
  return "/v1/" + parts.map(encodeURIComponent).join("/") + tail;
}

async function sent(method, where, body, signal) {
  const headers = key() ? { Authorization: `Bearer ${key()}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(where, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("the server cannot be reached", 0);
  }
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    throw new Problem(told?.error?.message ?? `the server answered ${response.status}`, response.status);
  }
  return response;
}

export const get = async (where) => (await sent("GET", where)).json();
export const post = async (where, body) => (await sent("POST", where, body)).json();
export const remove = async (where) => (await sent("DELETE", where)).json();

// The events of an answer, as they come.
export async function* answer(body, signal) {
  const response = await sent("POST", path(["chat", "completions"]), { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Problem("the answer broke off", 0);
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const told = JSON.parse(data);
      if (told.error) throw new Problem(told.error.message, 500);
      yield told;
    }
  }
}
