;; Never ends, in the engine's own bulk operations over 32 MiB.
(module
  (memory (export "memory") 512)
  (func (export "_start")
    (loop $again (memory.fill (i32.const 0) (i32.const 7) (i32.const 33554432)) (br $again)))
)
