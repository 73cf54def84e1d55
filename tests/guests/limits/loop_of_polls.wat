;; Never ends, asking of 1,024 descriptors at once whether they are ready.
(module
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (func (export "_start") (local $at i32)
    (loop $each
      ;; event 1, fd_read, of descriptor 0
      (i32.store8 offset=8 (local.get $at) (i32.const 1))
      (local.set $at (i32.add (local.get $at) (i32.const 48)))
      (br_if $each (i32.lt_u (local.get $at) (i32.const 49152))))
    (loop $again
      (drop (call $poll_oneoff (i32.const 0) (i32.const 65536) (i32.const 1024) (i32.const 131072)))
      (br $again)))
)
