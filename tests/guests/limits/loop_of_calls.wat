;; Never ends, by calls through a table.
(module
  (memory (export "memory") 1)
  (type $t (func))
  (table 1 1 funcref)
  (elem (i32.const 0) $nothing)
  (func $nothing)
  (func (export "_start")
    (loop $again (call_indirect (type $t) (i32.const 0)) (br $again)))
)
