;; Never ends, asking for no page again and again.
(module
  (memory (export "memory") 1)
  (func (export "_start")
    (loop $again (drop (memory.grow (i32.const 0))) (br $again)))
)
