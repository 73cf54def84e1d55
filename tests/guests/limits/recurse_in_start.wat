;; Calls itself without end in the module's start function.
(module
  (memory (export "memory") 1)
  (func $f (call $f) (call $f))
  (start $f)
  (func (export "_start"))
)
