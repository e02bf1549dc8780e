"""Two ends of the cable's link with a bad line between them, on whatever interpreter runs this: SEED ERROR_RATE BYTES.

Prints "arrived N" when all bytes came through in order, each way, and what the line cost; or says what went wrong.
"""

import random
import sys

import midge_serial


class Line:
    """Flips bits, loses and doubles bytes, each with the given rate, and delays them by 1 to 20 ms."""

    def __init__(self, rate):
        self.rate = rate
        self.waiting = []  # (when, bytes)

    def put(self, data, now):
        sent = bytearray()
        for byte in data:
            if self.rate:
                for bit in range(8):
                    if random.random() < self.rate:
                        byte ^= 1 << bit
                if random.random() < self.rate:
                    continue
                if random.random() < self.rate:
                    sent.append(byte)
            sent.append(byte)
        if sent:
            self.waiting.append((now + random.randint(1, 20), bytes(sent)))

    def get(self, now):
        data = b""
        while self.waiting and self.waiting[0][0] <= now:
            data += self.waiting.pop(0)[1]
        return data


class End:
    def __init__(self, link):
        self.link = link
        self.link.on_open = self.take
        self.lane = None
        self.sent = b""
        self.received = b""
        self.most_under_way = 0

    def take(self, lane):
        self.lane = lane

    def step(self, now, total):
        if now % 10 == 0:
            self.link.tick(now)
        if self.lane:
            left = total - len(self.sent)
            chunk = bytes([random.getrandbits(8) for _ in range(min(50, left))])
            self.sent += chunk[: self.lane.write(chunk)]
            if now % 7 == 0:  # a reader that is slower than the line: the other side must wait for it
                self.received += self.lane.read(37)
        self.most_under_way = max(self.most_under_way, self.link._under_way)
        return self.link.data_to_send(now)


# Sends *total* bytes each way. *host* and *board*: Links; times in ms.
def exchange(host, board, seed, rate, total):
    random.seed(seed)
    host, board = End(host), End(board)
    down, up = Line(rate), Line(rate)
    now = 0
    while len(host.received) < total or len(board.received) < total:
        now += 1
        if now > 3_000_000:
            raise SystemExit("stuck: %d and %d bytes arrived" % (len(host.received), len(board.received)))
        host.link.receive_data(up.get(now), now)
        board.link.receive_data(down.get(now), now)
        if not board.lane:
            board.lane = board.link.open(1)
        down.put(host.step(now, total), now)
        up.put(board.step(now, total), now)
    if host.received != board.sent or board.received != host.sent:
        raise SystemExit("not what was sent")
    if host.most_under_way > 256:
        raise SystemExit("the board's buffer would have overflowed: %d bytes" % host.most_under_way)
    again = host.link.frames_again + board.link.frames_again
    print("arrived", total, "in", now, "ms;", again, "frames sent again,", board.link.frames_bad, "damaged")
    return again


if __name__ == "__main__":
    exchange(midge_serial.Link("host", 0, 4096), midge_serial.Link("board", 0, 256),
             int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
