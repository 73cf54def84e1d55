// Loaded at build time, before the agent. What stays of it after the start is __run.
const door = __host;
delete globalThis.__host;
delete globalThis.performance; // its origin would be the time of the build
Math.random = door.random;

const call = (method, params = {}) => {
  const answer = JSON.parse(door.call(JSON.stringify({ method, params })));
  if (answer.error) throw new HostError(answer.error.reason, answer.error.message);
  return answer.ok;
};

class HostError extends Error {
  constructor(reason, message) {
    super(`${reason}: ${message}`);
    this.name = "HostError";
    this.reason = reason;
  }
}
globalThis.HostError = HostError;

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const utf8 = (text) => {
  const bytes = [];
  for (const character of text) {
    const code = character.codePointAt(0);
    if (code < 0x80) bytes.push(code);
    else if (code < 0x800) bytes.push(0xc0 | (code >> 6), 0x80 | (code & 63));
    else if (code < 0x10000) bytes.push(0xe0 | (code >> 12), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63));
    else bytes.push(0xf0 | (code >> 18), 0x80 | ((code >> 12) & 63), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63));
  }
  return bytes;
};
const encode = (bytes) => {
  let text = "";
  for (let at = 0; at < bytes.length; at += 3) {
    const bits = (bytes[at] << 16) | ((bytes[at + 1] ?? 0) << 8) | (bytes[at + 2] ?? 0);
    const left = bytes.length - at;
    text += ALPHABET[bits >> 18] + ALPHABET[(bits >> 12) & 63];
    text += (left > 1 ? ALPHABET[(bits >> 6) & 63] : "=") + (left > 2 ? ALPHABET[bits & 63] : "=");
  }
  return text;
};
const decode = (text) => {
  const bytes = [];
  let bits = 0;
  let held = 0;
  for (const character of text) {
    const value = ALPHABET.indexOf(character);
    if (value < 0) break;
    bits = ((bits << 6) | value) & 0xffffff;
    held += 6;
    if (held >= 8) bytes.push((bits >> (held -= 8)) & 255);
  }
  return bytes;
};
const textOf = (bytes) => decodeURIComponent(bytes.map((byte) => "%" + byte.toString(16).padStart(2, "0")).join(""));

const line = (values) =>
  values.map((value) => (typeof value === "string" ? value : JSON.stringify(value) ?? String(value))).join(" ");
globalThis.console = {};
for (const level of ["debug", "log", "info", "warn", "error"]) console[level] = (...values) => door.write(line(values));

const log = (level) => (message, fields = {}) => void call("log", { level, message, fields });
const host = {
  http: {
    fetch(url, { method = "GET", headers = {}, body, timeoutMs } = {}) {
      const params = { method, url, headers };
      if (body !== undefined) params.body = typeof body === "string" ? body : JSON.stringify(body);
      if (timeoutMs !== undefined) params.timeout_ms = timeoutMs;
      const { status, url: final, headers: received, body_base64: encoded } = call("http.fetch", params);
      return {
        status,
        url: final,
        headers: received,
        bytes: () => Uint8Array.from(decode(encoded)),
        text: () => textOf(decode(encoded)),
        json: () => JSON.parse(textOf(decode(encoded))),
      };
    },
  },
  kv: {
    get(key) {
      const { found, value_base64: value } = call("kv.get", { key });
      return found ? JSON.parse(textOf(decode(value))) : undefined;
    },
    put: (key, value) => void call("kv.put", { key, value_base64: encode(utf8(JSON.stringify(value))) }),
    delete: (key) => void call("kv.put", { key }),
  },
  llm: {
    complete(model, messages, { maxTokens, timeoutMs, tools = [], ...options } = {}) {
      const asked = typeof messages === "string" ? [{ role: "user", content: messages }] : messages;
      const params = { model, messages: asked, ...options };
      if (tools.length) params.tools = tools.map((tool) => ({ type: "function", function: tool }));
      if (maxTokens !== undefined) params.max_tokens = maxTokens;
      if (timeoutMs !== undefined) params.timeout_ms = timeoutMs;
      const { message, finish_reason: finishReason, usage, left } = call("llm.complete", params);
      return {
        text: message.content ?? "",
        toolCalls: (message.tool_calls ?? []).map(({ id, function: asks }) => ({
          id,
          name: asks.name,
          arguments: asks.arguments,
          answer: (content) => ({
            role: "tool",
            tool_call_id: id,
            content: typeof content === "string" ? content : JSON.stringify(content),
          }),
        })),
        message,
        finishReason,
        usage: { promptTokens: usage.prompt_tokens, answerTokens: usage.answer_tokens, costMicros: usage.cost_micros },
        left: { tokens: left.tokens, costMicros: left.cost_micros },
      };
    },
  },
  secret: (name, prefix) => {
    const { handle } = call("secret.ref", { name });
    return prefix === undefined ? { secret: handle } : { secret: handle, prefix };
  },
  log: { debug: log("debug"), info: log("info"), warning: log("warning"), error: log("error") },
  budget: () => call("budget.left"),
  get parameters() {
    return JSON.parse(door.environment("AGENTFACTORY_PARAMETERS") || "{}");
  },
  call,
};

call("build.phase", { phase: "agent" });
const agent = await import("agent.js");
call("build.phase", { phase: "done" });
if (typeof agent.run !== "function") {
  call("build.refuse", {
    message: "agent.js exports no function named run",
    hint: "export function run(input, host) { … }",
  });
}
const schemas = {};
if (agent.inputSchema) schemas.input = agent.inputSchema;
if (agent.outputSchema) schemas.output = agent.outputSchema;
call("build.schemas", schemas);

globalThis.__run = async (text) => {
  const answer = await agent.run(text.trim() ? JSON.parse(text) : null, host);
  return JSON.stringify(answer === undefined ? null : answer);
};
