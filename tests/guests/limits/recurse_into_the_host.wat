;; Descends as deep as it may and then calls the host, again and again, on the way.
(module
  (import "wasi_snapshot_preview1" "clock_time_get"
    (func $clock_time_get (param i32 i64 i32) (result i32)))
  (memory (export "memory") 1)
  (func $f (export "_start") (drop (call $clock_time_get (i32.const 1) (i64.const 1) (i32.const 0))) (call $f) (call $f))
)
