;; The same of references to the host's values.
(module
  (memory (export "memory") 1)
  (table 2000000 externref)
  (func (export "_start"))
)
