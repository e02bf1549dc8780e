"""A SOCKS5 proxy (RFC 1928, RFC 1929) that asks for a name and a password, in a thread.

Knows nothing of what goes through it. Addresses may be names and IPv4.
"""

import socket
import threading


class SocksProxy:
    """`asked` are the addresses that clients wanted to be connected with."""

    def __init__(self, name: str, password: str) -> None:
        self._credentials = name.encode(), password.encode()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.asked: list[tuple[str, int]] = []

    def __enter__(self) -> "SocksProxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as file:
            file.read(file.read(2)[1])  # the methods that the client has
            client.sendall(b"\x05\x02")
            file.read(1)
            name = file.read(file.read(1)[0])
            password = file.read(file.read(1)[0])
            is_right = (name, password) == self._credentials
            client.sendall(b"\x01\x00" if is_right else b"\x01\x01")
            if not is_right:
                return
            kind = file.read(4)[3]
            host = file.read(file.read(1)[0]).decode() if kind == 3 else socket.inet_ntoa(file.read(4))
            port = int.from_bytes(file.read(2), "big")
            self.asked.append((host, port))
            with socket.create_connection((host, port)) as server:
                client.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
                threading.Thread(target=_copy, args=(server, client), daemon=True).start()
                _copy(client, server)


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # one of them is gone
