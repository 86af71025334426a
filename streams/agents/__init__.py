"""The agents: a loop and a call each. They see ports and the pure pipeline, never a store or a client library."""
