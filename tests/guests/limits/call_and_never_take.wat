;; Calls its node with request after request, and has no room for any answer.
(module
  (import "agentfactory" "call" (func $call (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $n i32)
    (loop $again
      (i32.store (i32.const 0) (local.get $n))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (drop (call $call (i32.const 0) (i32.const 4) (i32.const 0) (i32.const 0)))
      (br $again)))
)
