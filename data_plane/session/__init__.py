"""The node's one stream to the control plane: orders down, receipts and heartbeats up. Judges no order."""
