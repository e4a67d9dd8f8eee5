"""What all tests share. Its place also puts this folder on the import path, for `support` and `postgres`."""

from postgres import postgres_server as postgres_server
