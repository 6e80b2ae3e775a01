"""gRPC around classifying; with `client`, the only place that knows gRPC."""
