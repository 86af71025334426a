"""The pure core: events in, user states and ranked lists out. No I/O, no clock, no hidden randomness."""
