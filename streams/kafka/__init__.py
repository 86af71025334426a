"""The Kafka edge: connection, topics, reading and publishing. Knows bytes and offsets, not what they mean."""
