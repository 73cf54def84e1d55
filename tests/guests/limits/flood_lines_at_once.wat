;; Writes 20,000 empty lines to stderr in one call.
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (memory.fill (i32.const 4096) (i32.const 10) (i32.const 20000))
    (i32.store (i32.const 0) (i32.const 4096))
    (i32.store (i32.const 4) (i32.const 20000))
    (loop $again
      (if (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 1024)) (then unreachable))
      (br $again)))
)
