;; Calls its node with requests of 100 KB.
(module
  (import "agentfactory" "call" (func $call (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (loop $again
      (drop (call $call (i32.const 0) (i32.const 100000) (i32.const 100000) (i32.const 1024)))
      (br $again)))
)
