"""The running system: Kafka in, Kafka out, state in Qdrant. The rules live in `models.domain`; here they are wired."""
