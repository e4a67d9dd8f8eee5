"""The least that policy.py can measure: a blocking socket that sends back what it got. `policy_floor.py PORT`

The first four bytes say for how many microseconds (uint32, little-endian) the server works before it answers.
"""

import socket
import struct
import sys
import time

with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    while True:
        robot, _ = server.accept()
        robot.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with robot:
            while data := robot.recv(4096):
                until = time.perf_counter() + struct.unpack_from("<I", data)[0] * 1e-6
                while time.perf_counter() < until:
                    pass
                robot.sendall(data)
