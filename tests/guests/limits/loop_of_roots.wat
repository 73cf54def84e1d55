;; Never ends, in floating point.
(module
  (memory (export "memory") 1)
  (global $x (mut f64) (f64.const 2))
  (func (export "_start")
    (loop $again (global.set $x (f64.sqrt (f64.add (global.get $x) (f64.const 3)))) (br $again)))
)
