"""REST beside gRPC: a client of the control plane that owns no data, no right and no rule of its own."""
