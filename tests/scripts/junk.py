"""Junk for the TLS and WebSocket listeners: junk.py HOST PORT (garbage|churn|frames) COUNT.

Prints how many connections the far end closed, or reset, after what they were sent.
"""

import os
import socket
import ssl
import struct
import sys

HOST, PORT, KIND, COUNT = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
CONTEXT = ssl.create_default_context()
CONTEXT.check_hostname = False
CONTEXT.verify_mode = ssl.CERT_NONE


def connect():
    sock = socket.create_connection((HOST, PORT), timeout=10)
    sock.settimeout(10)
    return sock


def is_closed(sock):
    """Whether the far end ends it; whatever it says before does not matter."""
    try:
        while sock.recv(4096):
            pass
        return True
    except (ConnectionError, ssl.SSLError):
        return True
    except socket.timeout:
        return False


def garbage(n):
    # Random bytes; a record header with an absurd length; a hello that is cut short; HTTP.
    heads = [os.urandom(400), b"\x16\x03\x01\xff\xff" + os.urandom(300),
             b"\x16\x03\x01\x00\x10\x01\x00\x00\x0c" + bytes(12), b"GET / HTTP/1.1\r\n\r\n"]
    sock = connect()
    try:
        sock.sendall(heads[n % len(heads)])
    except ConnectionError:
        return True
    return is_closed(sock)


def churn(_):
    tls = CONTEXT.wrap_socket(connect())
    tls.close()
    return True


def frame(opcode, payload, masked=True, length=None, fin=True):
    length = len(payload) if length is None else length
    head = bytes([(0x80 if fin else 0) | opcode])
    bit = 0x80 if masked else 0
    if length < 126:
        head += bytes([bit | length])
    elif length < 1 << 16:
        head += bytes([bit | 126]) + struct.pack(">H", length)
    else:
        head += bytes([bit | 127]) + struct.pack(">Q", length)
    key = b"\1\2\3\4" if masked else b""
    body = bytes(b ^ key[i % 4] for i, b in enumerate(payload)) if masked else payload
    return head + key + body


FRAMES = [
    frame(0x3, b"reserved opcode"),
    frame(0x1, b"not masked", masked=False),
    frame(0x1, b"far too long", length=(1 << 63) - 1),
    frame(0x2, b"longer than any message", length=1 << 30),
    frame(0x9, b"x" * 126),
    frame(0x9, b"ping in pieces", fin=False),
    frame(0x0, b"continues nothing"),
    b"\xf1" + frame(0x1, b"reserved bits")[1:],
    frame(0x1, b"\xff\xfe\xfd no utf-8"),
    frame(0x8, b"\x03"),
]


def frames(n):
    tls = CONTEXT.wrap_socket(connect())
    tls.sendall(b"GET / HTTP/1.1\r\nHost: sbc.example.com\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: sip\r\n"
                b"Origin: https://phone.example.com\r\n\r\n")
    answer = tls.recv(4096)
    assert b" 101 " in answer, answer
    try:
        tls.sendall(FRAMES[n % len(FRAMES)])
    except (ConnectionError, ssl.SSLError):
        return True
    closed = is_closed(tls)
    if not closed:
        print("left open:", FRAMES[n % len(FRAMES)][:20])
    return closed


print(sum({"garbage": garbage, "churn": churn, "frames": frames}[KIND](n) for n in range(COUNT)))
