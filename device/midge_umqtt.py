"""umqtt.simple's face on midge_client: programs written for it run with only their import changed, and don't hang.
It must not do more than that face: who wants more uses midge_client itself."""
# What differs: every wait has an end. `timeout` (seconds, an attribute) for what the server must answer, after which
# OSError(ETIMEDOUT) is raised; wait_msg() asks by PINGREQ whether the server is there when nothing comes for
# `keepalive` seconds (60 if it is 0). A packet leaves in one write, inbound QoS 2 is completed, payloads may be str.

import select

from midge_client import Client, MQTTError, MQTTTimeout, _encode, _header, const, ticks_add, ticks_diff, ticks_ms

_SUBSCRIBE = const(0x82)
_ETIMEDOUT = const(110)
_KEEP_ALIVE_S = const(60)


class MQTTException(Exception):
    pass


class MQTTClient:
    def __init__(self, client_id, server, port=0, user=None, password=None, keepalive=0, ssl=None, ssl_params=None):
        if port == 0:
            port = 8883 if ssl else 1883
        if ssl is True:  # umqtt.simple up to 1.3
            import ssl as tls
            ssl = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
            ssl.verify_mode = (ssl_params or {}).get("cert_reqs", tls.CERT_NONE)
        self.client_id = client_id
        self.sock = None
        self.server = server
        self.port = port
        self.ssl = ssl
        self.pid = 0
        self.cb = None
        self.user = user
        self.pswd = password
        self.keepalive = keepalive
        self.lw_topic = None
        self.lw_msg = None
        self.lw_qos = 0
        self.lw_retain = False
        self.timeout = 10

    def set_callback(self, f):
        self.cb = f

    def set_last_will(self, topic, msg, retain=False, qos=0):
        self.lw_topic = topic
        self.lw_msg = msg
        self.lw_qos = qos
        self.lw_retain = retain

    def connect(self, clean_session=True, timeout=None):
        will = (self.lw_topic, self.lw_msg, self.lw_qos, self.lw_retain) if self.lw_topic else None
        self._client = c = Client(self.client_id, self.server, self.port, self.user, self.pswd or None, self.keepalive,
                                  clean_session, will, tls=self.ssl)
        c._closed = False
        c.keepalive = self.keepalive or _KEEP_ALIVE_S
        until = self._deadline(timeout)
        c._stream = self.sock = c._dial()
        self._poller = select.poll()
        self._poller.register(self.sock, select.POLLOUT)
        if not self._poller.poll(max(ticks_diff(until, ticks_ms()), 0)):
            raise OSError(_ETIMEDOUT)
        c._begin()
        while not c.connected:
            self._turn(until)
        return int(c.session_present)

    def disconnect(self):
        self._client._tx.extend(b"\xe0\0")  # DISCONNECT
        self._flush()
        self.sock.close()

    def ping(self):
        self._client._tx.extend(b"\xc0\0")  # PINGREQ
        self._client._ping_at = ticks_ms()
        self._flush()

    def publish(self, topic, msg, retain=False, qos=0):
        c = self._client
        topic = c._topics.get(topic) or c._encode_topic(topic)
        msg = _encode(msg)
        header = _header(qos, retain)
        if qos:
            message = c.outbox.add(header, topic, msg)
            c._pump()
            self._wait_for(message)
        else:
            c._put_publish(header, 0, topic, msg, b"")
            self._flush()

    def subscribe(self, topic, qos=0):
        assert self.cb is not None, "Subscribe callback is not set"
        c = self._client
        message = c._ask(_SUBSCRIBE, {_encode(topic): qos})
        self._wait_for(message)
        if message.code > 127:
            raise MQTTException(message.code)

    # Blocks until something has come; calls the callback if it was a message.
    def wait_msg(self):
        c = self._client
        while not self._deliver():
            now = ticks_ms()
            if c._ping_at is None and c._ping_ms(now) <= 0:
                self.ping()
            until = ticks_add(now, c._ping_ms(now))
            if self._turn(until, c._ping_at is None) and not c._rx_end:
                self._deliver()
                return None

    def check_msg(self):
        if not self._deliver():
            self._turn(ticks_ms(), True)
            self._deliver()

    # ------------------------------------------------------------------------------------------------------

    def _deadline(self, timeout=None):
        return ticks_add(ticks_ms(), int((timeout or self.timeout) * 1000))

    # Waits for the answer to it, and hands on what comes meanwhile. What isn't answered in time is not sent again: the
    # caller is told, and will.
    def _wait_for(self, message):
        until = self._deadline()
        message.held = True
        try:
            while message.state:
                self._turn(until)
                while self._deliver():
                    pass
        except BaseException:
            if message.state:
                self._client.outbox.remove(message)
            raise

    # One message to the callback. True if there was one.
    def _deliver(self):
        c = self._client
        message = c._take()
        if not message:
            return False
        if c._stalled:
            c._parse()
        self._flush()
        if self.cb:
            self.cb(message[0].encode(), message[1])
        return True

    def _flush(self):
        until = self._deadline()
        while self._client._tx:
            self._client._flush()
            if self._client._tx:
                self._poll(select.POLLOUT, until)

    # Writes what there is, waits until `until`, takes what came. True if something came.
    def _turn(self, until, may_end=False):
        try:
            self._flush()
            if not self._poll(select.POLLIN, until, may_end):
                return False
            return self._client._receive()
        except MQTTTimeout:
            raise OSError(_ETIMEDOUT)
        except MQTTError as error:
            if error.code:
                raise MQTTException(error.code)
            raise OSError(-1)

    def _poll(self, events, until, may_end=False):
        self._poller.modify(self.sock, events)
        ready = self._poller.poll(max(ticks_diff(until, ticks_ms()), 0))
        if not ready and not may_end:
            raise OSError(_ETIMEDOUT)
        return ready
