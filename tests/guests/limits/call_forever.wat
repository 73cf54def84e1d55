;; Calls its node again and again.
(module
  (import "agentfactory" "call" (func $call (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "{\"method\":\"budget.left\"}")
  (func (export "_start")
    (loop $again
      (drop (call $call (i32.const 0) (i32.const 24) (i32.const 1024) (i32.const 32768)))
      (br $again)))
)
