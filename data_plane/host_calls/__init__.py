"""What a guest may ask of its node through `agentfactory.call`, and how the node answers."""
