"""gRPC's health service by gRPC's own library: `health_service.py PORT`.

Takes a line `NAME STATUS` on its standard input for what it answers of a service from then on, and
says `done: NAME STATUS`. The server as a whole is the name "-", and serves; of a name that it was
not told it knows nothing. The two messages are written and read by hand: Debian has no package
with the code that is generated for them.
"""

import sys
from concurrent import futures

import grpc

STATUS = {"UNKNOWN": 0, "SERVING": 1, "NOT_SERVING": 2}
services = {"": "SERVING"}


def name_of(request):
    """The field `service` (1, of a length) of a HealthCheckRequest."""
    if not request:
        return ""
    assert request[0] == 0x0A and request[1] == len(request) - 2 < 0x80, request
    return request[2:].decode()


def check(request, context):
    name = name_of(request)
    if name not in services:
        context.abort(grpc.StatusCode.NOT_FOUND, "unknown service " + name)
    status = STATUS[services[name]]
    # The field `status` (1, a number) of a HealthCheckResponse, left out where it is zero.
    return bytes([0x08, status]) if status else b""


def main():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    methods = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    handler = grpc.method_handlers_generic_handler("grpc.health.v1.Health", methods)
    server.add_generic_rpc_handlers((handler,))
    if not server.add_insecure_port("0.0.0.0:" + sys.argv[1]):
        sys.exit("cannot listen")
    server.start()
    for line in sys.stdin:
        name, status = line.split()
        if status not in STATUS:
            sys.exit("no such status: " + status)
        services["" if name == "-" else name] = status
        print("done:", name, status, flush=True)


main()
