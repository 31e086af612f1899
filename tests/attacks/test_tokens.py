"""Signed tokens: what is let in, what is refused, and what a context is worth elsewhere."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import errors

from tests.attacks.arena import KEY, SECRET, base64url, claims, open_arena, sign

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.attacks.arena import Arena, Claims, Connection
    from tests.conftest import Databases

OWN = "tenant-0"


@pytest.fixture(scope="module")
def arena(databases: Databases, template: str) -> Iterator[Arena]:
    with open_arena(databases, template, size=2) as made:
        yield made


@pytest.fixture
def client(arena: Arena) -> Iterator[Connection]:
    """A login that was granted no tenant."""
    with arena.login(arena.token_role) as connection:
        yield connection


def tenant(connection: Connection) -> str | None:
    """Whom the caller acts as; None where functions refuse him and tables are empty."""
    try:
        # Its own savepoint, or the error would end the transaction with what it has set.
        with connection.transaction():
            row = connection.execute("select rag.current_tenant()").fetchone()
    except (errors.InvalidAuthorizationSpecification, psycopg.DatabaseError) as error:
        if error.sqlstate not in ("28000", "RG001") or documents(connection) != "[]":
            raise
        return None
    assert row is not None
    return str(row[0])


def documents(connection: Connection) -> str:
    return repr(connection.execute("select content, uri from rag.documents").fetchall())


def raw(header: str, payload: str, secret: bytes = SECRET) -> str:
    """A token of two parts as they are, signed."""
    body = f"{header}.{payload}"
    return f"{body}.{base64url(hmac.new(secret, body.encode(), hashlib.sha256).digest())}"


HEAD = {"alg": "HS256", "typ": "JWT", "kid": KEY}


def good() -> dict[str, str]:
    """Tokens that are as they should be, made now."""
    return {
        "as it should be": sign(claims(OWN)),
        "without a kid": sign(claims(OWN), header={"alg": "HS256"}),
        "typ in lower case": sign(claims(OWN), header={**HEAD, "typ": "jwt"}),
        "more in the header": sign(claims(OWN), header={**HEAD, "x5t": "x"}),
        "one audience of many": sign(claims(OWN, aud=["other", "ragdb"])),
        "more claims": sign(claims(OWN, sub="somebody", iat=0, scope=["a", {"b": 1}])),
        "it has begun": sign(claims(OWN, nbf=time.time() - 10)),
        "it begins within the leeway": sign(claims(OWN, nbf=time.time() + 3)),
        "a fraction of a second": sign(claims(OWN, exp=round(time.time() + 600, 3))),
    }


def bad() -> dict[str, str]:
    """Tokens that no one should take, made now."""
    late = time.time() + 600
    return {
        "empty": "",
        "one part": "x",
        "two parts": "x.y",
        "four parts": sign(claims(OWN)) + ".x",
        "no signature": sign(claims(OWN)).rsplit(".", 1)[0] + ".",
        "a short signature": sign(claims(OWN))[:-1],
        "padding": sign(claims(OWN)) + "=",
        "a line end behind": sign(claims(OWN)) + "\n",
        "a space before": " " + sign(claims(OWN)),
        "too long": sign(claims(OWN, more="x" * 10000)),
        "not base64": raw("{}", "{}"),
        "no JSON": raw(base64url(b"{"), base64url(b"{}")),
        "no UTF-8": raw(base64url(b'{"alg": "\xff"}'), base64url(b"{}")),
        "a null character": raw(base64url(b'{"alg": "HS256", "kid": "\\u0000"}'), base64url(b"{}")),
        "deep": raw(base64url(b"[" * 700), base64url(b"[" * 5000)),
        "the header is an array": sign(claims(OWN), header=b'["HS256"]'),
        "alg none": sign(claims(OWN), header={**HEAD, "alg": "none"}),
        "alg none, unsigned": sign(claims(OWN), header={"alg": "none"}).rsplit(".", 1)[0] + ".",
        "alg NONE": sign(claims(OWN), header={**HEAD, "alg": "NONE"}),
        "alg RS256": sign(claims(OWN), header={**HEAD, "alg": "RS256"}),
        "alg HS512": sign(claims(OWN), header={**HEAD, "alg": "HS512"}),
        "alg hs256": sign(claims(OWN), header={**HEAD, "alg": "hs256"}),
        "alg an array": sign(claims(OWN), header={**HEAD, "alg": ["HS256"]}),
        "alg null": sign(claims(OWN), header={**HEAD, "alg": None}),
        "no alg": sign(claims(OWN), header={"kid": KEY}),
        "alg twice": sign(claims(OWN), header=b'{"alg": "none", "alg": "HS256"}'),
        "crit": sign(claims(OWN), header={**HEAD, "crit": ["b64"], "b64": False}),
        "another type": sign(claims(OWN), header={**HEAD, "typ": "JWE"}),
        "another key": sign(claims(OWN), secret=b"x" * 32),
        "an empty secret": sign(claims(OWN), secret=b""),
        "the inner block as a secret": sign(claims(OWN), secret=bytes(b ^ 0x36 for b in SECRET)),
        "an unknown kid": sign(claims(OWN), header={**HEAD, "kid": "missing"}),
        "an injected kid": sign(claims(OWN), header={**HEAD, "kid": f"{KEY}' or true --"}),
        "kid a number": sign(claims(OWN), header={**HEAD, "kid": 1}),
        "kid null": sign(claims(OWN), header={**HEAD, "kid": None}),
        "claims of another token": ".".join(
            [
                sign(claims(OWN)).split(".")[0],
                base64url(json.dumps(claims("tenant-1")).encode()),
                sign(claims(OWN)).split(".")[2],
            ]
        ),
        "claims are an array": sign(b"[]"),
        "tenant twice": sign(
            f'{{"tenant":"tenant-1","tenant":"{OWN}","aud":"ragdb","exp":{late}}}'.encode()
        ),
        "a null character in a claim": sign(
            f'{{"tenant":"\\u0000","aud":"ragdb","exp":{late}}}'.encode()
        ),
        "no exp": sign(claims(OWN, exp=None)),
        "exp null": sign(f'{{"tenant":"{OWN}","aud":"ragdb","exp":null}}'.encode()),
        "exp a string": sign(claims(OWN, exp=str(late))),
        "exp is huge": sign(f'{{"tenant":"{OWN}","aud":"ragdb","exp":1e400}}'.encode()),
        "exp is negative": sign(claims(OWN, exp=-1)),
        "expired": sign(claims(OWN, exp=time.time() - 30)),
        "for longer than the key allows": sign(claims(OWN, exp=time.time() + 2 * 86400)),
        "not yet": sign(claims(OWN, nbf=time.time() + 120)),
        "nbf a string": sign(claims(OWN, nbf="now")),
        "no aud": sign(claims(OWN, aud=None)),
        "another aud": sign(claims(OWN, aud="ragdb2")),
        "aud an object": sign(claims(OWN, aud={"ragdb": 1})),
        "aud has it deeper": sign(claims(OWN, aud=[["ragdb"]])),
        "aud a prefix": sign(claims(OWN, aud="rag")),
        "no tenant": sign(claims(OWN, tenant=None)),
        "tenant is a number": sign(claims(OWN, tenant=1)),
        "an unknown tenant": sign(claims("missing")),
        "tenant in upper case": sign(claims(OWN.upper())),
        "tenant with a space": sign(claims(OWN + " ")),
        "for another role": sign(claims(OWN, role="postgres")),
        "role null": sign(f'{{"tenant":"{OWN}","aud":"ragdb","exp":{late},"role":null}}'.encode()),
    }


@pytest.mark.parametrize("which", good())
def test_a_good_token_lets_in_until_the_transaction_ends(client: Connection, which: str) -> None:
    with client.transaction():
        assert client.execute("select rag.authenticate(%s)", [good()[which]]).fetchone() == (OWN,)
        assert tenant(client) == OWN
    assert tenant(client) is None


@pytest.mark.parametrize("which", [*bad(), "null"])
def test_a_bad_token_is_refused_and_says_nothing(client: Connection, which: str) -> None:
    token = bad().get(which)
    with pytest.raises(errors.InvalidAuthorizationSpecification) as refusal:
        client.execute("select rag.authenticate(%s)", [token])
    said = str(refusal.value)
    assert "the token is refused" in said
    assert token is None or len(token) < 20 or token not in said
    assert tenant(client) is None


def test_every_bit_of_a_token_counts(client: Connection) -> None:
    good = sign(claims(OWN))
    for place in range(0, len(good), 3):
        changed = "A" if good[place] != "A" else "B"
        with pytest.raises(errors.InvalidAuthorizationSpecification):
            client.execute(
                "select rag.authenticate(%s)", [good[:place] + changed + good[place + 1 :]]
            )
    # The last character has two bits that mean nothing; they have to be right all the same.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = alphabet[alphabet.index(good[-1]) ^ 1]
    with pytest.raises(errors.InvalidAuthorizationSpecification):
        client.execute("select rag.authenticate(%s)", [good[:-1] + twin])
    # And the whole of it is good.
    client.execute("select rag.authenticate(%s)", [good])


@pytest.mark.parametrize("length", [32, 63, 64, 65, 200])
def test_secrets_of_any_length_sign_as_rfc_2104_says(
    arena: Arena, client: Connection, length: int
) -> None:
    secret = bytes(n % 251 for n in range(length))
    arena.owner.execute("select rag.add_token_key(%s, %s)", [f"of {length}", secret])
    token = sign(claims(OWN), secret=secret, header={"alg": "HS256", "kid": f"of {length}"})
    assert client.execute("select rag.authenticate(%s)", [token]).fetchone() == (OWN,)
    arena.owner.execute("select rag.retire_token_key(%s)", [f"of {length}"])


def test_keys_are_rotated_and_a_retired_one_ends_what_it_let_in(
    arena: Arena, client: Connection
) -> None:
    row = arena.owner.execute("select rag.add_token_key('next')").fetchone()
    assert row is not None
    assert len(row[0]) == 32
    token = sign(claims(OWN), secret=row[0], header={"alg": "HS256", "kid": "next"})
    # The right secret under another key's name does not count.
    with pytest.raises(errors.InvalidAuthorizationSpecification):
        client.execute("select rag.authenticate(%s)", [sign(claims(OWN), secret=row[0])])
    client.execute("select rag.authenticate(%s, is_local => false)", [token])
    assert tenant(client) == OWN
    names = arena.owner.execute("select k.name from rag.list_token_keys() as k").fetchall()
    assert names == [(KEY,), ("next",)]
    assert arena.owner.execute("select rag.retire_token_key('next')").fetchone() == (True,)
    assert tenant(client) is None
    with pytest.raises(errors.InvalidAuthorizationSpecification):
        client.execute("select rag.authenticate(%s)", [token])
    assert arena.owner.execute("select rag.retire_token_key('next')").fetchone() == (False,)


def test_a_key_for_one_tenant_opens_no_other(arena: Arena, client: Connection) -> None:
    [[secret]] = arena.owner.execute(
        "select rag.add_token_key('narrow', tenants => '{tenant-1}')"
    ).fetchall()
    header: Claims = {"alg": "HS256", "kid": "narrow"}
    with pytest.raises(errors.InvalidAuthorizationSpecification):
        client.execute(
            "select rag.authenticate(%s)", [sign(claims(OWN), secret=secret, header=header)]
        )
    with client.transaction():
        client.execute(
            "select rag.authenticate(%s)", [sign(claims("tenant-1"), secret=secret, header=header)]
        )
        assert tenant(client) == "tenant-1"
    arena.owner.execute("select rag.retire_token_key('narrow')")


@pytest.mark.parametrize(
    ("call", "state"),
    [
        ("rag.add_token_key(null)", "22023"),
        ("rag.add_token_key('')", "22023"),
        ("rag.add_token_key('attacks')", "42710"),
        ("rag.add_token_key('k', 'short')", "22023"),
        ("rag.add_token_key('k', repeat('a', 64)::bytea)", "22023"),
        ("rag.add_token_key('k', audience => null)", "22023"),
        ("rag.add_token_key('k', tenants => '{missing}')", "RG002"),
        ("rag.add_token_key('k', max_lifetime => '0')", "22023"),
        ("rag.retire_token_key(null)", "22023"),
    ],
)
def test_keys_that_cannot_be_are_refused(arena: Arena, call: str, state: str) -> None:
    with pytest.raises(psycopg.Error) as refusal:
        arena.owner.execute(f"select {call}".encode())
    assert refusal.value.sqlstate == state


def test_a_context_is_worth_nothing_to_anybody_else(arena: Arena, client: Connection) -> None:
    def seal(connection: Connection) -> str:
        row = connection.execute("select current_setting('rag.authenticated')").fetchone()
        assert row is not None
        return str(row[0])

    def put(connection: Connection, value: str) -> None:
        connection.execute("select set_config('rag.authenticated', %s, false)", [value])

    token = sign(claims(OWN))
    with client.transaction():
        client.execute("select rag.authenticate(%s)", [token])
        local = seal(client)
    # In the next transaction of the same session, which under a pooler is another client's.
    put(client, local)
    assert tenant(client) is None
    client.execute("select rag.authenticate(%s, false)", [token])
    session = seal(client)
    assert tenant(client) == OWN
    with arena.login(arena.token_role) as other:
        for value in (local, session):
            put(other, value)
            assert tenant(other) is None
    with arena.login(arena.role) as another_role:
        # Who holds a seal that is not good is nobody, also where he was granted a tenant.
        another_role.execute("select rag.set_tenant(%s)", [OWN])
        put(another_role, session)
        assert tenant(another_role) is None
    kid, tenant_id, expires, scope, mac = session.split(".")
    for changed in (
        f"{kid}.{arena.foreign[0].tenant_id}.{expires}.{scope}.{mac}",
        f"{kid}.{tenant_id}.{int(expires) + 1}.{scope}.{mac}",
        f"{kid}.{tenant_id}.{expires}.t.{mac}",
        f"{kid}.{tenant_id}.{expires}.{scope}.{mac[:-1]}0",
        f"{kid}.{tenant_id}.{expires}.{scope}.{mac.upper()}",
        f"0{kid}.{tenant_id}.{expires}.{scope}.{mac}",
        f"{kid}.{tenant_id}.{expires}.{scope}.",
        mac,
        "-",
    ):
        if changed == session:
            continue
        put(client, changed)
        assert tenant(client) is None, changed
    put(client, session)
    assert tenant(client) == OWN


def test_set_role_is_another_caller(arena: Arena) -> None:
    arena.owner.execute(f"grant {arena.token_role} to {arena.service_role}".encode())
    with arena.login(arena.service_role) as service, service.transaction():
        service.execute("select rag.authenticate(%s)", [sign(claims(OWN))])
        assert tenant(service) == OWN
        service.execute(f"set local role {arena.token_role}".encode())
        assert tenant(service) is None


def test_the_context_ends_when_the_token_does(client: Connection) -> None:
    # The leeway is 10 s: this one expired 8.5 s ago.
    token = sign(claims(OWN, exp=time.time() - 8.5))
    client.execute("select rag.authenticate(%s, false)", [token])
    assert tenant(client) == OWN
    deadline = time.monotonic() + 30
    while tenant(client) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_ends_a_context(client: Connection) -> None:
    token = sign(claims(OWN))
    for end in ("reset rag.authenticated", "reset all", "discard all"):
        client.execute("select rag.authenticate(%s, false)", [token])
        assert tenant(client) == OWN
        client.execute(end.encode())
        assert tenant(client) is None, end
    # A rollback takes back what was said in it, and no more.
    client.execute("select rag.authenticate(%s, false)", [token])
    with client.transaction(force_rollback=True):
        client.execute("select rag.authenticate(%s, false)", [sign(claims("tenant-1"))])
        assert tenant(client) == "tenant-1"
    assert tenant(client) == OWN
    client.execute("discard all")
    with client.transaction():
        with client.transaction(force_rollback=True):
            client.execute("select rag.authenticate(%s)", [token])
            assert tenant(client) == OWN
        assert tenant(client) is None
        with client.transaction():
            client.execute("select rag.authenticate(%s)", [token])
        assert tenant(client) == OWN
        client.execute("set local rag.authenticated = ''")
        assert tenant(client) is None
    # set_tenant has done with the token, if only to be refused.
    with client.transaction():
        client.execute("select rag.authenticate(%s)", [token])
        with pytest.raises(errors.InsufficientPrivilege), client.transaction():
            client.execute("select rag.set_tenant('tenant-1')")
        assert tenant(client) == OWN
    # The setting by hand is not asked where a token was.
    with client.transaction():
        client.execute("select rag.authenticate(%s)", [token])
        client.execute("set local rag.tenant = 'tenant-1'")
        assert tenant(client) == OWN


def test_another_session_of_the_same_pid_is_another_one(arena: Arena, client: Connection) -> None:
    """Over a socket a backend has no port, and its pid comes again; its number does not."""
    token = sign(claims(OWN))
    client.execute("select rag.authenticate(%s, false)", [token])
    [copied] = client.execute("select current_setting('rag.authenticated')").fetchone() or ("",)
    # Again, it keeps its number, so that what was sealed before holds on.
    with client.transaction(force_rollback=True):
        client.execute("select rag.authenticate(%s, false)", [token])
    assert tenant(client) == OWN
    for forge in (
        "select nextval('rag.session_ids')",
        "select setval('rag.session_ids', 1)",
        "select currval('rag.session_ids')",
        "select last_value from rag.session_ids",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            client.execute(forge.encode())
    # A backend that begins knows of no numbers.
    client.execute("discard sequences")
    for statement in ("select rag.current_tenant()", "select content from rag.documents"):
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            client.execute(statement.encode())
    # Nor does its own token make the copy of another session's good.
    client.execute("select rag.authenticate(%s, false)", [sign(claims("tenant-1"))])
    assert tenant(client) == "tenant-1"
    client.execute("select set_config('rag.authenticated', %s, false)", [copied])
    assert tenant(client) is None
    with arena.login(arena.token_role) as other:
        other.execute("select rag.authenticate(%s, false)", [token])
        other.execute("select set_config('rag.authenticated', %s, false)", [copied])
        assert tenant(other) is None
    client.execute("discard all")
    with client.transaction():
        client.execute("set transaction read only")
        with pytest.raises(errors.ReadOnlySqlTransaction, match="gives a session no number"):
            client.execute("select rag.authenticate(%s, false)", [token])


def test_a_token_works_in_a_read_only_transaction(client: Connection) -> None:
    with client.transaction():
        client.execute("set transaction read only")
        client.execute("select rag.authenticate(%s)", [sign(claims(OWN))])
        assert client.execute("select uri from rag.search('common words')").fetchall()


def test_nobody_reads_keys(arena: Arena, client: Connection) -> None:
    calls = (
        "select * from rag.token_keys",
        "select rag.list_token_keys()",
        "select rag.add_token_key('mine')",
        "select rag.retire_token_key('attacks')",
        "select rag._seal('x', 1, 1, 1, 1)",
        "select rag._verified_key('x')",
        "select rag._unsealed_tenant('x')",
    )
    for call in calls:
        with pytest.raises(errors.InsufficientPrivilege):
            client.execute(call.encode())
    shown = arena.owner.execute("select * from rag.list_token_keys()").fetchall()
    assert repr(SECRET) not in repr(shown)
    with client.transaction():
        client.execute("select rag.authenticate(%s)", [sign(claims(OWN))])
        assert arena.foreign[0].canary not in documents(client)
        assert arena.own.canary in documents(client)
