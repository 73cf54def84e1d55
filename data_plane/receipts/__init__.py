"""Signs what happened and keeps it on disk until the control plane has it. Never decides what happened."""
