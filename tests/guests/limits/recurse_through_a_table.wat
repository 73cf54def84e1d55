;; Calls itself through a table without end.
(module
  (memory (export "memory") 1)
  (type $t (func))
  (table 1 1 funcref)
  (elem (i32.const 0) $f)
  (func $f (export "_start") (call_indirect (type $t) (i32.const 0)) (call_indirect (type $t) (i32.const 0)))
)
