;; Writes 32 KiB to one file, again and again.
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func $must (param i32) (if (local.get 0) (then unreachable)))
  (global $count (mut i32) (i32.const 0))
  (func $next_name (local $at i32)
    (loop $digit
      (i32.store8 (i32.add (i32.const 64) (local.get $at))
        (i32.add (i32.const 97) (i32.and (i32.const 15)
          (i32.shr_u (global.get $count) (i32.mul (i32.const 4) (local.get $at))))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $digit (i32.lt_u (local.get $at) (i32.const 8))))
    (global.set $count (i32.add (global.get $count) (i32.const 1))))
  (func (export "_start")
    (call $next_name)
    (call $must (call $path_open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 8) (i32.const 1)
      (i64.const -1) (i64.const 0) (i32.const 0) (i32.const 32)))
    (i32.store (i32.const 0) (i32.const 0))
    (i32.store (i32.const 4) (i32.const 32768))
    (loop $again
      (call $must (call $fd_write (i32.load (i32.const 32)) (i32.const 0) (i32.const 1) (i32.const 40)))
      (br $again)))
)
