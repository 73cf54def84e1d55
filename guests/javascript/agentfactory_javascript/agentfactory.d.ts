/** What an agent written in JavaScript is given: `export function run(input, host: Host)` in agent.js, or async. */

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
export type Fields = Record<string, null | boolean | number | string>;

/** Thrown when the host denied a call or could not carry it out. */
export interface HostError extends Error {
  /** A stable name, such as NOT_GRANTED. */
  readonly reason: string;
}

/** A handle: the host puts the value into a header, the agent never sees it. */
export interface Secret {
  readonly secret: string;
  readonly prefix?: string;
}

export interface FetchOptions {
  method?: "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE";
  headers?: Record<string, string | Secret>;
  /** Anything that is no string is sent as JSON. */
  body?: Json;
  /** 5000 unless named, at most 60000. */
  timeoutMs?: number;
}

export interface Response {
  readonly status: number;
  /** Where redirects led. */
  readonly url: string;
  readonly headers: Record<string, string>;
  bytes(): Uint8Array;
  text(): string;
  json(): any;
}

export type Message = { role: "system" | "developer" | "user" | "assistant" | "tool"; [name: string]: Json };

/** Something that a model may ask the agent to do; the agent does it, or does not. */
export interface Tool {
  name: string;
  description: string;
  /** JSON Schema of the arguments, an object. */
  parameters: { [name: string]: Json };
}

/** What a model asks the agent to do. Nothing of it is checked: a model says anything. */
export interface ToolCall {
  readonly id: string;
  readonly name: string;
  /** JSON, if the model wrote any. */
  readonly arguments: string;
  /** The message that tells the model what came of it. */
  answer(content: Json): Message;
}

export interface CompleteOptions {
  /** Of the answer; 1,024 or what is left unless named. */
  maxTokens?: number;
  timeoutMs?: number;
  tools?: Tool[];
  /** Those of docs/llm.md, as they are: `temperature`, `response_format` and more. */
  [option: string]: any;
}

export interface Completion {
  /** Empty where the model only calls tools. */
  readonly text: string;
  readonly toolCalls: ToolCall[];
  /** As it is, to be added to the messages of the next call. */
  readonly message: Message;
  readonly finishReason: string;
  readonly usage: { promptTokens: number; answerTokens: number; costMicros: number };
  /** Of the run's budget; `costMicros` only where the manifest bounds the cost. */
  readonly left: { tokens: number; costMicros?: number };
}

export interface Host {
  readonly http: { fetch(url: string, options?: FetchOptions): Response };
  /** Needs `kv = true`. Values are kept as JSON; they count when the result is accepted. */
  readonly kv: { get(key: string): any; put(key: string, value: Json): void; delete(key: string): void };
  /** Models that `llm` of agent.toml names, ENDPOINT/MODEL; a text is one message of a user. */
  readonly llm: { complete(model: string, messages: string | Message[], options?: CompleteOptions): Completion };
  /** A secret of agent.toml, for a header of `http.fetch`. */
  secret(name: string, prefix?: string): Secret;
  readonly log: Record<"debug" | "info" | "warning" | "error", (message: string, fields?: Fields) => void>;
  /** What is left of the limits, by their names. */
  budget(): Record<string, number>;
  readonly parameters: { [name: string]: Json };
  /** Any host call by its name. */
  call(method: string, params?: Json): any;
}
