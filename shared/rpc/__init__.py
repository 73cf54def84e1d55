"""Everything about gRPC that is not a service: errors on the wire, identity, interceptors, channels, TLS."""
