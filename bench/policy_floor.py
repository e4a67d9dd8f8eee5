"""The least that policy.py can measure: a blocking socket that sends back what it got. `policy_floor.py PORT`"""

import socket
import sys

with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    while True:
        robot, _ = server.accept()
        robot.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with robot:
            while data := robot.recv(4096):
                robot.sendall(data)
