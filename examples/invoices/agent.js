// A rules engine for invoices. Amounts are whole cents: sums of fractions would not be exact.
/** @import {Host} from "agentfactory" */
import { standardRules } from "./rules.js";

const lines = {
  type: "array",
  maxItems: 1000,
  items: {
    type: "object",
    properties: {
      text: { type: "string" },
      quantity: { type: "integer", minimum: 1 },
      price_cents: { type: "integer" },
    },
    required: ["text", "quantity", "price_cents"],
  },
};

export const inputSchema = {
  type: "object",
  properties: {
    today: { type: "string" },
    suppliers: { type: "array", items: { type: "string" } },
    invoices: {
      type: "array",
      maxItems: 10000,
      items: {
        type: "object",
        properties: {
          number: { type: "string" },
          supplier: { type: "string" },
          date: { type: "string" },
          total_cents: { type: "integer" },
          lines,
        },
        required: ["number", "supplier", "date", "total_cents", "lines"],
      },
    },
  },
  required: ["today", "invoices"],
};

const comparisons = {
  "==": (a, b) => a === b,
  is: (a, b) => a === b,
  "!=": (a, b) => a !== b,
  ">": (a, b) => a > b,
  "<": (a, b) => a < b,
  in: (a, b) => b.includes(a),
};

const DAY_MS = 24 * 60 * 60 * 1000;

function facts(invoice, { today, suppliers = [] }, seen) {
  const sum = invoice.lines.reduce((total, line) => total + line.quantity * line.price_cents, 0);
  const key = `${invoice.supplier}\n${invoice.number}`;
  const isRepeat = seen.has(key);
  seen.add(key);
  return {
    ...invoice,
    difference_cents: invoice.total_cents - sum,
    supplier_known: suppliers.includes(invoice.supplier),
    is_repeat: isRepeat,
    age_days: Math.floor((Date.parse(today) - Date.parse(invoice.date)) / DAY_MS),
  };
}

function holds([field, comparison, value], known) {
  const compare = comparisons[comparison];
  if (!compare) throw new Error(`a rule compares with ${comparison}: it can with ${Object.keys(comparisons)}`);
  if (!(field in known)) throw new Error(`a rule names ${field}, which no invoice has`);
  return compare(known[field], value);
}

/**
 * @param {any} input
 * @param {Host} host
 */
export function run(input, host) {
  const rules = host.parameters.rules ?? standardRules;
  const seen = new Set();
  const decisions = input.invoices.map((invoice) => {
    const known = facts(invoice, input, seen);
    const rule = rules.find(({ when }) => when.every((condition) => holds(condition, known)));
    const decision = { number: invoice.number, decision: rule?.then ?? "ask", rule: rule?.name ?? "no rule holds" };
    return rule?.who ? { ...decision, who: rule.who } : decision;
  });
  const counts = { approve: 0, ask: 0, refuse: 0 };
  for (const { decision } of decisions) counts[decision] += 1;
  host.log.info("judged", counts);
  return { counts, decisions };
}
