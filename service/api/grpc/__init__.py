"""The gRPC services of both protocols, on a port of their own. grpc is imported when the port is opened."""
