"""What all tests share. Its place also puts this folder on the import path, for `support` and `postgres`."""

import os

# Two workers on two cores: threads of a matrix product that wait for each other in a loop slow everybody down.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ATOLL_THREADS": "1"}

from postgres import postgres_server as postgres_server
