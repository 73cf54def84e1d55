;; Two functions call each other without end.
(module
  (memory (export "memory") 1)
  (func $f (export "_start") (call $g) (call $g))
  (func $g (call $f) (call $f))
)
