"""The whole service in process: a real gRPC server on a loopback port around a fake engine."""
