"""The runtime of agents in Python, as files: see `agentfactory build`."""
