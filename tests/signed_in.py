"""The app as on a Space with sign-in: a proxy that speaks TLS before it, and an OpenID provider that knows alice.

with Provider(hub.user("alice", role="oauth")) as provider, serve(runs, **on_a_space(provider, hub, home)) as url:
    with Proxy(url) as proxy, chromium(proxy.rules) as browser: ...   # https://tuner-tuner.hf.space
"""

import asyncio
import contextlib
import datetime
import json
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hub_double import Hub
from joserfc import jwt
from joserfc.jwk import RSAKey

HOST = "tuner-tuner.hf.space"
SPACE = {"SPACE_ID": "tuner/tuner", "SPACE_HOST": HOST, "SYSTEM": "spaces"}
SPACE |= {"OAUTH_CLIENT_ID": "tuner", "OAUTH_CLIENT_SECRET": "secret", "OAUTH_SCOPES": "openid profile"}
PROXIED = b"X-Forwarded-Proto: https\r\nX-Forwarded-Host: %s\r\nConnection: close\r\n" % HOST.encode()


class Server:
    """An HTTP server of one test."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"owner": self}))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()


class Answers(BaseHTTPRequestHandler):
    """What all of these servers have in common."""

    def log_message(self, *args) -> None:
        """Keep the test's output quiet."""

    def reply(self, content: str, kind: str = "text/html") -> None:
        """Answer with this content."""
        data = content.encode()
        self.send_response(200)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class _Asked(Answers):
    def do_GET(self) -> None:
        provider, split = self.owner, urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        if split.path == "/oauth/authorize":
            provider.nonce = query.get("nonce")
            back = query["redirect_uri"] + ("&" if "?" in query["redirect_uri"] else "?")
            back += urlencode({"code": "c0de", "state": query["state"]})
            self.reply(f'<a id="authorize" href="{back.replace("&", "&amp;")}">Authorize</a>')
        elif split.path == "/oauth/jwks":
            self.reply(json.dumps({"keys": [provider.key.as_dict(private=False)]}), "application/json")
        else:
            places = {"authorization": "authorize", "token": "token", "userinfo": "userinfo"}
            known = {f"{name}_endpoint": f"{provider.url}/oauth/{place}" for name, place in places.items()}
            known |= {"issuer": provider.url, "jwks_uri": f"{provider.url}/oauth/jwks"}
            self.reply(json.dumps(known), "application/json")

    def do_POST(self) -> None:
        provider, now = self.owner, int(time.time())
        self.rfile.read(int(self.headers["Content-Length"]))
        who = {"sub": "1", "name": "Alice", "preferred_username": "alice", "picture": "", "nonce": provider.nonce}
        who |= {"iss": provider.url, "aud": "tuner", "iat": now, "exp": now + 3600}
        who["profile"] = "https://huggingface.co/alice"
        signed = jwt.encode({"alg": "RS256", "kid": provider.key.kid}, who, provider.key)
        given = {"access_token": provider.token, "token_type": "bearer", "expires_in": 3600, "id_token": signed}
        self.reply(json.dumps(given | {"scope": "openid profile"}), "application/json")


class Provider(Server):
    """Signs in alice, whose token is this one, with one click."""

    def __init__(self, token: str):
        super().__init__(_Asked)
        self.token, self.nonce = token, None
        self.key = RSAKey.generate_key(2048, auto_kid=True)


class Site(Server):
    """Somebody's site, with one page; `seen` are the paths that were asked for."""

    def __init__(self, page: str):
        seen: list[str] = []

        class Shows(Answers):
            def do_GET(self) -> None:
                seen.append(self.path)
                self.reply(page)

        super().__init__(Shows)
        self.seen = seen


class Proxy:
    """A Space's proxy: TLS outside, plain HTTP inside, and headers that tell of it."""

    def __init__(self, url: str, folder: Path):
        self.port = urlsplit(url).port
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(_certificate(folder))
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.rules = f"MAP {HOST} 127.0.0.1:{self.listening.getsockname()[1]}, MAP *.example 127.0.0.1"
        self.loop = asyncio.new_event_loop()
        self.seen: list[str] = []  # the requests, without their bodies

    def __enter__(self):
        self.loop.run_until_complete(asyncio.start_server(self._serve, sock=self.listening, ssl=self.context))
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)

    async def _serve(self, browser: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            line, rest = await browser.readline(), await browser.readuntil(b"\r\n\r\n")
            self.seen.append((line + rest).decode("latin-1"))
            app, there = await asyncio.open_connection("127.0.0.1", self.port)
            there.write(line + PROXIED + rest.replace(b"Connection: keep-alive\r\n", b"", 1))
            sending = asyncio.create_task(_copy(browser, there))
            await _copy(app, back)
            sending.cancel()
            there.close()
        back.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # whoever refuses a request need not read it to its end, but answers
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
        target.close()


def _certificate(folder: Path) -> Path:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
    kind, pem = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
    file = folder / "proxy.pem"
    secret = key.private_bytes(pem, kind, serialization.NoEncryption())
    file.write_bytes(secret + made.sign(key, hashes.SHA256()).public_bytes(pem))
    return file


def on_a_space(provider: Provider, hub: Hub, home: Path) -> dict[str, str]:
    """The environment of the app on a Space, whose owner has a token of its own."""
    asks = {name: value for name, value in hub.env(home).items() if name.startswith(("HF_", "NO_PROXY"))}
    return SPACE | asks | {"OPENID_PROVIDER_URL": provider.url, "GRADIO_SERVER_NAME": "127.0.0.1"}
