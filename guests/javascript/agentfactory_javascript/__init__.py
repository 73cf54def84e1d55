"""The runtime of agents in JavaScript, as files: see `agentfactory build`."""
