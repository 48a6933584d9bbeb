"""A gRPC server that answers GetStatus after a while, with the request id that
it was sent as its version; a process of its own,
for a server in a process that eventlet has patched would hang it.

    python3 -m nova_safeconduct.tests.slow_node SOCKET SECONDS
"""

from concurrent import futures
import sys
import time

import grpc

from nova_safeconduct.rpc import admin_pb2
from nova_safeconduct.rpc import admin_pb2_grpc


class Admin(admin_pb2_grpc.AdminServiceServicer):

    def __init__(self, seconds):
        self.seconds = seconds
        self.calls = 0

    def GetStatus(self, request, context):
        self.calls += 1
        time.sleep(self.seconds)
        metadata = dict(context.invocation_metadata())
        return admin_pb2.GetStatusResponse(
            host='slow', open_sessions=self.calls,
            version=metadata.get('x-openstack-request-id', ''))


def main():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64))
    admin_pb2_grpc.add_AdminServiceServicer_to_server(
        Admin(float(sys.argv[2])), server)
    server.add_insecure_port('unix:' + sys.argv[1])
    server.start()
    print('ready', flush=True)
    sys.stdin.read()  # until the test closes it
    server.stop(0)


if __name__ == '__main__':
    main()
