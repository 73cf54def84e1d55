"""How cost grows with nodes, replicas and stored history: ``make bench-scale``."""
