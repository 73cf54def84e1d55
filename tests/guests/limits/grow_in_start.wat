;; Asks for too much in the module's start function.
(module
  (memory (export "memory") 1)
  (func $begin (loop $again
    (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then unreachable))
    (br $again)))
  (start $begin)
  (func (export "_start"))
)
