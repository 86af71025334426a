"""The networks' serving forms: ONNX Runtime sessions behind the ports of `models.domain.ports`. Never imports torch."""
