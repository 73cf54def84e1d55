;; Asks for 16 MiB of randomness in one call.
(module
  (import "wasi_snapshot_preview1" "random_get"
    (func $random_get (param i32 i32) (result i32)))
  (memory (export "memory") 512)
  (func (export "_start")
    (loop $again
      (if (call $random_get (i32.const 0) (i32.const 16777216)) (then unreachable))
      (br $again)))
)
