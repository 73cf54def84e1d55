;; Never ends, filling a table of 100,000 elements.
(module
  (memory (export "memory") 1)
  (table $many 100000 funcref)
  (func (export "_start")
    (loop $again (table.fill $many (i32.const 0) (ref.null func) (i32.const 100000)) (br $again)))
)
