"""SCRAM-SHA-256 with a client of somebody else's: MQTT.js (npm), and the SCRAM of node's own crypto."""

import os
import subprocess
from pathlib import Path

import pytest

from brokers import start_host
from midge.access.passwords import make_hash

from .bridging import node_modules

CLIENT = """
const mqtt = require('mqtt'), crypto = require('node:crypto');
const [port, user, password] = process.argv.slice(1);
const METHOD = 'SCRAM-SHA-256';
const hmac = (key, text) => crypto.createHmac('sha256', key).update(text).digest();
let bare, expected;
function first() {
  bare = `n=${user},r=${crypto.randomBytes(12).toString('hex')}`;
  return Buffer.from('n,,' + bare);
}
function final(challenge) {
  const text = challenge.toString();
  const part = Object.fromEntries(text.split(',').map((one) => [one[0], one.slice(2)]));
  const salted = crypto.pbkdf2Sync(password, Buffer.from(part.s, 'base64'), Number(part.i), 32, 'sha256');
  const clientKey = hmac(salted, 'Client Key');
  const stored = crypto.createHash('sha256').update(clientKey).digest();
  const start = `c=${Buffer.from('n,,').toString('base64')},r=${part.r}`;
  const message = `${bare},${text},${start}`;
  const signature = hmac(stored, message);
  expected = 'v=' + hmac(hmac(salted, 'Server Key'), message).toString('base64');
  return Buffer.from(`${start},p=${Buffer.from(clientKey.map((byte, at) => byte ^ signature[at])).toString('base64')}`);
}
const check = (data, what) => {
  console.log(data.toString() === expected ? what : `wrong signature: ${what}`);
};
const auth = (reasonCode, data) => ({
  cmd: 'auth', reasonCode, properties: { authenticationMethod: METHOD, authenticationData: data },
});
const client = mqtt.connect(`mqtt://127.0.0.1:${port}`, {
  protocolVersion: 5, reconnectPeriod: 0,
  properties: { authenticationMethod: METHOD, authenticationData: first() },
});
client.handleAuth = (packet, done) => {
  if (packet.reasonCode === 0x18) return done(null, auth(0x18, final(packet.properties.authenticationData)));
  check(packet.properties.authenticationData, 'again');  // MQTT.js has no name for the end of a re-authentication
  client.publish('a', 'x', { qos: 1 }, (error) => { console.log(error || 'published'); client.end(); });
};
client.on('connect', (packet) => {
  check(packet.properties.authenticationData, 'let in');
  client._sendPacket(auth(0x19, first()));
});
client.on('error', (error) => { console.log(`refused: ${error.code}`); client.end(); });
"""


@pytest.mark.parametrize(
    ("user", "password", "lines"),
    [
        ("anna", "secret", ["let in", "again", "published"]),
        ("anna", "wrong", ["refused: 134"]),
        ("nobody", "secret", ["refused: 134"]),
    ],
)
def test_mqtt_js_is_let_in_and_authenticates_again(
    tmp_path: Path, user: str, password: str, lines: list[str]
) -> None:
    modules = node_modules("mqtt")
    (tmp_path / "passwd").write_text(f"anna:{make_hash(b'secret', 'scram-sha-256')}\n")
    (tmp_path / "midge.toml").write_text('[access]\npassword_file = "passwd"\n')
    with start_host("--config", tmp_path / "midge.toml") as broker:
        command = ["node", "-e", CLIENT, str(broker.port), user, password]
        env = {**os.environ, "NODE_PATH": str(modules)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=env, check=False)
    assert done.stdout.split("\n")[: len(lines)] == lines, (done.stdout, done.stderr)
