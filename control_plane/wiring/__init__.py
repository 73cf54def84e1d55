"""Second half of the composition root: settings → adapters → services, one file for each concern."""
