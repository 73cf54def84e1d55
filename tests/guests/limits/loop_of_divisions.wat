;; Never ends, dividing: instructions that take longer than most.
(module
  (memory (export "memory") 1)
  (func (export "_start") (local $value i64)
    (local.set $value (i64.const 0x7fffffffffffffff))
    (loop $again
      (local.set $value (i64.sub (i64.const -1)
        (i64.div_u (local.get $value) (i64.or (i64.const 3) (i64.rem_u (local.get $value) (i64.const 7))))))
      (br $again)))
)
