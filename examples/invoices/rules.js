// The rules that hold where an agent's parameters bring none. The first one whose conditions all hold decides.
// A condition is [field, comparison, value]; a field may be computed: see facts() in agent.js.
export const standardRules = [
  { name: "sums do not add up", when: [["difference_cents", "!=", 0]], then: "refuse" },
  { name: "unknown supplier", when: [["supplier_known", "is", false]], then: "ask", who: "purchasing" },
  { name: "paid twice", when: [["is_repeat", "is", true]], then: "refuse" },
  { name: "large", when: [["total_cents", ">", 1_000_000]], then: "ask", who: "finance" },
  { name: "old", when: [["age_days", ">", 365]], then: "ask", who: "finance" },
  { name: "everything else", when: [], then: "approve" },
];
