#!/usr/bin/env python3
"""Makes the test vectors of crypto/*/testdata from docs/protocol.md, sharing no code with the Go packages.

Needs Python's cryptography >= 48 (for ML-KEM). Run it in this directory: python3 vectors.py
Everything but the KEM's encapsulation is deterministic: a second run changes keyschedule/testdata/kem.json only.
"""
import hashlib
import hmac
import json
import pathlib
import struct

from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ROOT = pathlib.Path(__file__).resolve().parent.parent


def save(path, value):
    out = ROOT / path
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(value, indent=1) + "\n")


def pattern(n, start=0):
    return bytes((start + i) % 251 for i in range(n))


def rnd(name, n):
    """n bytes that look random and are the same in every run."""
    return hashlib.shake_256(name.encode()).digest(n)


def frame(label, fields):
    return b"".join(struct.pack(">Q", len(f)) + f for f in [label.encode(), *fields])


def h384(label, *fields):
    return hashlib.sha384(frame(label, fields)).digest()


def extract(salt, ikm):
    return hmac.new(salt or bytes(48), ikm, hashlib.sha384).digest()


def expand(prk, info, length):
    out, block, i = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([i]), hashlib.sha384).digest()
        out, i = out + block, i + 1
    return out[:length]


def transcript():
    cases = [
        ("a label alone", "safeconduct/v1/ctx", []),
        ("no label", "", []),
        ("one empty field", "safeconduct/v1/ctx", [b""]),
        ("two fields", "safeconduct/v1/ctx", [b"ab", b"c"]),
        ("the same bytes split elsewhere", "safeconduct/v1/ctx", [b"a", b"bc"]),
        ("a field that looks like a length", "l", [struct.pack(">Q", 1)]),
        ("a long field", "safeconduct/v1/th1", [pattern(1000), bytes(32)]),
    ]
    save("transcript/testdata/transcript.json", [
        {"name": n, "label": label, "fields": [f.hex() for f in fields], "h384": h384(label, *fields).hex(),
         "h512": hashlib.sha512(frame(label, fields)).hexdigest()} for n, label, fields in cases])


def keyschedule():
    cases = []
    for name in ("one session", "another session"):
        seed_s, seed_d, th2, th3 = (rnd(name + what, n) for what, n in (("S", 32), ("D", 32), ("th2", 48), ("th3", 48)))
        prk = extract(th2, seed_s + seed_d)
        phase = {p: expand(prk, b"safeconduct/v1/" + p.encode() + th2, 32)
                 for p in ("confirm-S", "confirm-D", "channel-S", "channel-D")}
        final = {p: expand(prk, b"safeconduct/v1/" + p.encode() + th3, 32)
                 for p in ("state", "image", "secret", "stream", "close", "exporter")}
        part = expand(final["image"], b"safeconduct/v1/image-part" + h384("safeconduct/v1/image-part", b"nv.img", struct.pack(">Q", 1 << 20), b"\x01"), 32)
        exported = expand(final["exporter"], b"safeconduct/v1/export" + h384("safeconduct/v1/export", b"tunnel", b"context"), 32)
        cases.append({
            "name": name, "seed_s": seed_s.hex(), "seed_d": seed_d.hex(), "th2": th2.hex(), "th3": th3.hex(), "prk": prk.hex(),
            "keys": {p: k.hex() for p, k in (phase | final).items()},
            "confirm_s": hmac.new(phase["confirm-S"], th2, hashlib.sha384).hexdigest(),
            "confirm_d": hmac.new(phase["confirm-D"], th2, hashlib.sha384).hexdigest(),
            "image_part_nv_img_1048576_last": part.hex(), "export_tunnel_context": exported.hex()})
    save("keyschedule/testdata/schedule.json", cases)


def kem():
    """HPKE base mode, MLKEM768-X25519 (0x647a), HKDF-SHA384, AES-256-GCM: RFC 9180 and draft-ietf-hpke-pq."""
    def xwing(seed):
        d = hashlib.shake_256(seed).digest(96)
        return mlkem.MLKEM768PrivateKey.from_seed_bytes(d[:64]), x25519.X25519PrivateKey.from_private_bytes(d[64:])

    def seal(public, info, plaintext):
        ss_m, ct_m = mlkem.MLKEM768PublicKey.from_public_bytes(public[:1184]).encapsulate()
        eph = x25519.X25519PrivateKey.generate()
        ct_x = eph.public_key().public_bytes_raw()
        ss_x = eph.exchange(x25519.X25519PublicKey.from_public_bytes(public[1184:]))
        shared = hashlib.sha3_256(ss_m + ss_x + ct_x + public[1184:] + rb"\./" + rb"/^" + b"\\").digest()
        suite = b"HPKE" + struct.pack(">HHH", 0x647A, 2, 2)

        def lextract(salt, label, ikm):
            return extract(salt, b"HPKE-v1" + suite + label + ikm)

        def lexpand(prk, label, context, n):
            return expand(prk, struct.pack(">H", n) + b"HPKE-v1" + suite + label + context, n)
        context = b"\0" + lextract(b"", b"psk_id_hash", b"") + lextract(b"", b"info_hash", info)
        secret = lextract(shared, b"secret", b"")
        key, nonce = lexpand(secret, b"key", context, 32), lexpand(secret, b"base_nonce", context, 12)
        return ct_m + ct_x + AESGCM(key).encrypt(nonce, plaintext, b"")

    kem_seed, seed, th1 = rnd("kem", 32), rnd("seed", 32), rnd("th1", 48)
    m, x = xwing(kem_seed)
    public = m.public_key().public_bytes_raw() + x.public_key().public_bytes_raw()
    cases = []
    for direction in ("S->D", "D->S"):
        info = th1 + direction.encode()
        cases.append({"name": direction, "kem_seed": kem_seed.hex(), "public": public.hex(), "info": info.hex(),
                      "seed": seed.hex(), "sealed": seal(public, info, seed).hex()})
    save("keyschedule/testdata/kem.json", cases)


def channel():
    key_s, key_d, context = rnd("key S", 32), rnd("key D", 32), rnd("ctx", 48)
    out = []
    for direction, key in (("S->D", key_s), ("D->S", key_d)):
        for counter, plaintext in enumerate((b"M1", b"", pattern(300))):
            aad = context + struct.pack(">Q", counter) + direction.encode()
            out.append({"direction": direction, "counter": counter, "plaintext": plaintext.hex(),
                        "ciphertext": AESGCM(key).encrypt(struct.pack(">LQ", 0, counter), plaintext, aad).hex()})
    save("channel/testdata/channel.json", {"key_s": key_s.hex(), "key_d": key_d.hex(), "context": context.hex(), "messages": out})


def statestream():
    key, session, salt = rnd("state", 32), rnd("session", 16), rnd("salt", 16)

    def header(kind=1, type_=2, direction=1, segment=4096, version=1, magic=b"SCST"):
        return magic + bytes([version, kind, type_, direction]) + struct.pack(">L", segment) + session + salt

    def record(head, sequence, plaintext, last=False):
        stream_key = expand(key, b"safeconduct/v1/statestream" + head, 32)
        prefix = struct.pack(">QL", sequence, len(plaintext) | (last << 31))
        nonce = bytes(3) + struct.pack(">QB", sequence, last)
        return prefix + AESGCM(stream_key).encrypt(nonce, plaintext, head + prefix)

    def build(plaintext, head=None, total=None, sizes=None):
        head = head or header()
        segment = struct.unpack(">L", head[8:12])[0]
        sizes = sizes or [min(segment, len(plaintext) - i) for i in range(0, len(plaintext), segment)]
        parts, at = [head], 0
        for i, n in enumerate(sizes):
            parts.append(record(head, i, plaintext[at:at + n]))
            at += n
        total = at if total is None else total
        return parts + [record(head, len(sizes), struct.pack(">Q", total), True)]

    def flip(parts, part, offset):
        b = bytearray(parts[part])
        b[offset] ^= 1
        return parts[:part] + [bytes(b)] + parts[part + 1:]

    two = build(pattern(4096 + 100))
    h, a, b, end = two
    good = [("no plaintext", 0), ("one byte", 1), ("one byte less than a segment", 4095), ("exactly one segment", 4096),
            ("one byte more than a segment", 4097), ("a segment and a part", 4196)]
    cases = [{"name": n, "length": size, "stream": b"".join(build(pattern(size))).hex(), "error": ""} for n, size in good]
    bad = [
        ("nothing at all", [], "truncated"),
        ("a part of the header", [h[:20]], "truncated"),
        ("the header alone", [h], "truncated"),
        ("without its end record", [h, a, b], "truncated"),
        ("cut inside the end record", [h, a, b, end[:-1]], "truncated"),
        ("cut inside a data record", [h, a[:500]], "truncated"),
        ("cut inside a prefix", [h, a, b[:5]], "truncated"),
        ("another magic", build(b"x", header(magic=b"SCSX")), "header"),
        ("another version", build(b"x", header(version=2)), "version"),
        ("a kind that does not exist", build(b"x", header(kind=9)), "header"),
        ("a direction that does not exist", build(b"x", header(direction=3)), "header"),
        ("segments too large", build(b"x", header(segment=1 << 20)), "header"),
        ("segments of an odd size", build(b"x", header(segment=5000)), "header"),
        ("another kind", build(b"x", header(kind=2)), "wrong stream"),
        ("another type", build(b"x", header(type_=1)), "wrong stream"),
        ("the other direction", build(b"x", header(direction=2)), "wrong stream"),
        ("another session", flip(two, 0, 12), "wrong stream"),
        ("another salt", flip(two, 0, 28), "not authentic"),
        ("another segment size in the header", flip(two, 0, 9), "not authentic"),
        ("a flipped bit in a data record", flip(two, 1, 100), "not authentic"),
        ("a flipped bit in a tag", flip(two, 2, len(b) - 1), "not authentic"),
        ("a flipped bit in a sequence number", flip(two, 1, 7), "not authentic"),
        ("a flipped bit in the end record", flip(two, 3, 15), "not authentic"),
        ("a record that claims no bytes", [h, bytes(12) + bytes(16), end], "not authentic"),
        ("an authentic record of no bytes", build(b"", sizes=[0]), "not authentic"),
        ("a data record passed off as the end", [h, b"\0" * 8 + b"\x80\0\0\x08" + a[12:36]], "not authentic"),
        ("two records swapped", [h, b, a, end], "reordered"),
        ("a record twice", [h, a, a, b, end], "reordered"),
        ("a record left out", [h, b, end], "reordered"),
        ("the last data record left out", [h, a, end], "reordered"),
        ("the end record alone", [h, end], "reordered"),
        ("a byte after the end", [*two, b"\0"], "trailing"),
        ("the stream twice", two + two, "trailing"),
        ("an end record that says too much", build(pattern(10), total=11), "malformed"),
        ("an end record that says too little", build(pattern(10), total=9), "malformed"),
        ("a short record in the middle", build(pattern(200), sizes=[100, 100]), "malformed"),
    ]
    cases += [{"name": n, "length": 0, "stream": b"".join(parts).hex(), "error": e} for n, parts, e in bad]
    save("statestream/testdata/statestream.json", {
        "key": key.hex(), "session": session.hex(), "salt": salt.hex(), "kind": 1, "type": 2, "direction": 1, "segment": 4096,
        "streams": cases})


def sealed():
    def text(s):
        return bytes([len(s)]) + s.encode()
    cases = []
    for name, mode, kind, blob, generation, plaintext in (
            ("a passphrase", "intel", "escrow", "5d5a7a1e-0000-4000-8000-000000000001", 1, b"correct horse"),
            ("nothing", "simulated", "escrow", "empty", 2, b""),
            ("a receipt", "simulated", "receipt", "Node.1_a", 1 << 40, pattern(1000))):
        seal_key, key_info, salt = rnd("seal key", 16), rnd("key info", 40), rnd("blob salt", 32)
        head = (b"SCSEALED\x01" + text(mode) + text(kind) + text(blob) + struct.pack(">QH", generation, len(key_info)) + key_info + salt)
        okm = expand(extract(salt, seal_key), b"safeconduct/v1/sealed" + text(mode) + text(kind), 44)
        cases.append({"name": name, "mode": mode, "kind": kind, "blob_name": blob, "generation": generation, "seal_key": seal_key.hex(),
                      "key_info": key_info.hex(), "salt": salt.hex(), "plaintext": plaintext.hex(),
                      "blob": (head + AESGCM(okm[:32]).encrypt(okm[32:], plaintext, head)).hex()})
    save("sealed/testdata/sealed.json", cases)


if __name__ == "__main__":
    for make in (transcript, keyschedule, kem, channel, statestream, sealed):
        make()
