// Counts the words of a text.
/** @import {Host} from "agentfactory" */

export const inputSchema = {
  type: "object",
  properties: { text: { type: "string" } },
  required: ["text"],
};

/**
 * @param {{text: string}} input
 * @param {Host} host
 */
export function run(input, host) {
  const words = input.text.toLowerCase().split(/\s+/).filter(Boolean);
  const counts = new Map();
  for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);
  const most = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 3);
  host.log.info("counted", { words: words.length });
  return { words: words.length, most_common: most.map(([word]) => word) };
}
