"""What turns an author's folder into a module: starts the runtime once and saves it with the agent loaded."""
