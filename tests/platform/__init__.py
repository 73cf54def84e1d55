"""What an operator installs, on the real platform: `make test-platform`. Needs root and a machine of its own."""
