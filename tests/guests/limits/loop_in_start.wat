;; Never ends, in the module's start function: before the entry point and before its memory is known.
(module
  (memory (export "memory") 1)
  (func $begin (loop $again (br $again)))
  (start $begin)
  (func (export "_start"))
)
