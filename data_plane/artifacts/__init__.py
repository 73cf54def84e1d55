"""Gets templates and their compiled modules, and vouches for every byte that a worker loads. Runs nothing."""
