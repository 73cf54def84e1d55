;; Grows a table until that is refused; the engine answers -1 and tells nobody.
(module
  (memory (export "memory") 1)
  (table $t 1 externref)
  (func (export "_start")
    (loop $again
      (if (i32.eq (table.grow $t (ref.null extern) (i32.const 4096)) (i32.const -1)) (then unreachable))
      (br $again)))
)
