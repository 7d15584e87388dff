"""First-party plugin: what the weights of a checkpoint look like, and how they changed."""
