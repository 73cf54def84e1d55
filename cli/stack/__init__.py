"""Everything on one machine: an embedded Postgres, a control plane and a node, in order."""
