"""Who asks: the visitor behind a request, and what that visitor may use."""

import functools
import inspect
import ipaddress
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from inspect import Parameter

import gradio as gr
from starlette.requests import HTTPConnection


@dataclass(frozen=True)
class Visitor:
    """Somebody at a page or with an API client. Whoever is not signed in has neither an account nor a token."""

    session: str = ""  # Gradio's name for the page that was opened, or for the API client
    address: str = ""  # on the network; everybody in one classroom may share it
    account: str | None = None  # its id at the Hub; a name can be given up, and taken by somebody else
    token: str | None = field(default=None, repr=False)  # the visitor's own, for the Hub; it is stored nowhere
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)  # of the visitor's runs, by id
    by_link: frozenset[str] = frozenset()  # runs that came with an owner's link, and were not resumed here since


ANYBODY = Visitor()


def with_token(visitor: Visitor, typed: str | None) -> Visitor:
    """The visitor with a token that was typed in; the sign-in's stays if none was."""
    return replace(visitor, token=(typed or "").strip() or visitor.token)


def with_secret(visitor: Visitor, run: str, secret: str) -> Visitor:
    """The visitor with the secret of one run."""
    return replace(visitor, secrets={str(run): str(secret)})


# What Gradio passes to a handler that asks for it by type.
GIVEN = {"request": gr.Request, "signed_in": gr.OAuthToken | None, "profile": gr.OAuthProfile | None}

_PLAIN = Parameter.POSITIONAL_OR_KEYWORD


def for_visitor(function: Callable) -> Callable:
    """The event handler or endpoint that calls `function` with the request's Visitor as `visitor`."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.name != "visitor"]
    place = sum(p.kind is _PLAIN for p in own)  # before *values, where Gradio stops looking
    own[place:place] = [Parameter(name, _PLAIN, annotation=kind, default=None) for name, kind in GIVEN.items()]

    def bound(values: tuple) -> Callable:
        given = values[place : place + len(GIVEN)]
        return functools.partial(function, *values[:place], *values[place + len(GIVEN) :], visitor=_visitor(*given))

    if inspect.isasyncgenfunction(function):

        async def handler(*values) -> AsyncIterator:
            async for value in bound(values)():
                yield value

    elif inspect.iscoroutinefunction(function):

        async def handler(*values):
            return await bound(values)()

    elif inspect.isgeneratorfunction(function):

        def handler(*values) -> Iterator:
            yield from bound(values)()

    else:

        def handler(*values):
            return bound(values)()

    functools.update_wrapper(handler, function)
    del handler.__wrapped__  # or Gradio would read that one's types
    handler.__signature__ = signature.replace(parameters=own)
    handler.__annotations__ = {p.name: p.annotation for p in own if p.annotation is not p.empty}
    return handler


def _visitor(request: gr.Request, signed_in: gr.OAuthToken | None, profile: gr.OAuthProfile | None) -> Visitor:
    return Visitor(
        session=request.session_hash or "",
        address=network_address(request),
        account=profile.get("sub") if profile else None,
        token=signed_in.token if signed_in else None,
    )


def network_address(request: gr.Request | HTTPConnection) -> str:
    """The address that the request came from, or its network of 48 bits where one visitor may have all of that.

    On a Space every request comes through the platform's proxies. Each appends the address that it was called from to
    X-Forwarded-For, and only what the visitor wrote there stands before the visitor's own.
    """
    peer = getattr(request.client, "host", "") or ""
    forwarded = request.headers.get("x-forwarded-for", "") if "SPACE_ID" in os.environ else ""
    hops = [hop.strip() for hop in forwarded.split(",") if hop.strip()]
    # Back to the first hop that is not the platform's own. One that can't be read hides whoever stands before it.
    hop = next((hop for hop in reversed([*hops, peer]) if not _is_private(hop)), peer)
    address = _address(hop)
    if address and address.version == 6 and address.is_global:
        return f"{ipaddress.ip_network((address, 48), strict=False)}"
    return f"{address or peer}"


def _address(hop: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that an entry of X-Forwarded-For is, perhaps with a port; IPv4 in the form of IPv6 is IPv4."""
    host = hop.partition("]")[0].removeprefix("[") if hop.startswith("[") else hop
    host = host.partition(":")[0] if host.count(":") == 1 else host
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_private(hop: str) -> bool:
    address = _address(hop)
    return address is not None and not address.is_global
