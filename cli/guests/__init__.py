"""What turns an author's folder into a module: collects, starts the runtime once, saves it with the agent loaded."""
