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

export interface Host {
  readonly http: { fetch(url: string, options?: FetchOptions): Response };
  /** Needs `kv = true`. Values are kept as JSON; they count when the result is accepted. */
  readonly kv: { get(key: string): any; put(key: string, value: Json): void; delete(key: string): void };
  /** A secret of agent.toml, for a header of `http.fetch`. */
  secret(name: string, prefix?: string): Secret;
  readonly log: Record<"debug" | "info" | "warning" | "error", (message: string, fields?: Fields) => void>;
  /** What is left of the limits, by their names. */
  budget(): Record<string, number>;
  readonly parameters: { [name: string]: Json };
  /** Any host call by its name. */
  call(method: string, params?: Json): any;
}
