"""A database of many tenants with a canary each, and logins that attack it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from tests.conftest import as_user, drop_role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Databases

Connection = psycopg.Connection[tuple[Any, ...]]
Claims = dict[str, object]

# Both belong to the whole server.
_numbers = count(1)

SECRET = hashlib.sha256(b"a secret of the tests").digest()
KEY = "attacks"


@dataclass
class Tenant:
    """A tenant, the word that is in all of its data, and ids that an attacker may have learned."""

    name: str
    canary: str
    tenant_id: int
    documents: list[int] = field(default_factory=list[int])
    chunks: list[int] = field(default_factory=list[int])


@dataclass
class Arena:
    """A database; the first tenant is the attacker's, the others are to be kept from him.

    role may act as the first tenant, token_role as nobody without a token, service_role as all;
    schema belongs to role.
    """

    url: str
    owner: Connection
    tenants: list[Tenant]
    role: str
    token_role: str
    service_role: str
    schema: str

    @property
    def own(self) -> Tenant:
        """The attacker's tenant."""
        return self.tenants[0]

    @property
    def foreign(self) -> list[Tenant]:
        """Those whose canaries must not come out."""
        return self.tenants[1:]

    def login(self, role: str) -> Connection:
        """A connection in autocommit."""
        return psycopg.connect(as_user(self.url, role), autocommit=True, prepare_threshold=None)

    def possessions(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of the foreign tenants by table, with the versions of the rows."""
        tables = self.owner.execute(
            "select c.oid::regclass::text from pg_class as c join pg_attribute as a "
            "on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped "
            "where c.relnamespace = 'rag'::regnamespace and c.relkind in ('r', 'p') order by 1"
        ).fetchall()
        ids = [tenant.tenant_id for tenant in self.foreign]
        query = (
            "select t.tableoid, t.ctid::text, t::text from {} as t "
            "where tenant_id = any(%s) order by 1, 2"
        )
        return {
            name: self.owner.execute(query.replace("{}", name).encode(), [ids]).fetchall()
            for (name,) in tables
        }


def base64url(data: bytes) -> str:
    """Base64 as a JWT has it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(
    claims: Claims | bytes, *, secret: bytes = SECRET, header: Claims | bytes | None = None
) -> str:
    """A JWT of these claims, or of these very bytes, signed HS256."""
    given = {"alg": "HS256", "typ": "JWT", "kid": KEY} if header is None else header
    parts = [
        base64url(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (given, claims)
    ]
    body = ".".join(parts)
    return f"{body}.{base64url(hmac.new(secret, body.encode(), hashlib.sha256).digest())}"


def claims(tenant: str, /, **changed: object) -> Claims:
    """What a good token says; a change to None leaves the claim out."""
    said: Claims = {"tenant": tenant, "aud": "ragdb", "exp": time.time() + 600, **changed}
    return {name: value for name, value in said.items() if value is not None}


def vector(chance: random.Random, size: int = 384) -> str:
    """A random vector as text."""
    return "[" + ",".join(f"{chance.uniform(-1, 1):.3f}" for _ in range(size)) + "]"


def embed(connection: Connection, chance: random.Random, model: str | None = None) -> None:
    """Embed all that waits, each text with a vector of its own."""
    while jobs := connection.execute(
        "select c.lease_token, c.job_id from rag.claim_jobs('attacks', 100, models => %s) as c",
        [None if model is None else [model]],
    ).fetchall():
        connection.execute(
            "select rag.complete_jobs(%s, %s, (%s::text[])::vector[])",
            [jobs[0][0], [job for _, job in jobs], [vector(chance) for _ in jobs]],
        )


def _plant(connection: Connection, tenant: Tenant, *, everywhere: bool) -> None:
    """Put the canary into documents, or into everything that a tenant can have."""
    word = tenant.canary
    execute = connection.execute
    execute("select rag.set_tenant(%s)", [tenant.name])
    execute("select rag.create_collection('shared-name')")
    execute("select rag.create_collection(%s, language => 'german')", [f"collection {word}"])
    documents = [
        {
            "content": f"# Heading {word}\n\nCommon words, refund and parcel {n}. {word} here.\n\n"
            f"## Below {word}\n\nMore common words of {word}.",
            "uri": ["known-uri", f"uri-{word}", f"second-{word}"][n],
            "title": f"Title {word} common",
            "metadata": {"lang": "en", "page": n, "owner": word, word: True},
        }
        for n in range(3)
    ]
    for collection in ("default", "shared-name") if everywhere else ("default",):
        execute("select * from rag.put_many(%s, %s)", [Jsonb(documents), collection])
    if everywhere:
        questions = [{"query": f"asks {word}", "uri": f"uri-{word}", "grade": 1}]
        execute("select rag.add_judgements(%s, %s)", [f"set {word}", Jsonb(questions)])
        execute("select rag.evaluate(%s)", [f"set {word}"])
        execute("select rag.prepare_query(%s)", [f"query {word}"])
    rows = execute(
        "select c.document_id, c.chunk_id from rag.chunks as c where c.tenant_id = %s",
        [tenant.tenant_id],
    ).fetchall()
    tenant.documents = sorted({document for document, _ in rows})
    tenant.chunks = [chunk for _, chunk in rows]


def _leave_work(connection: Connection, tenant: Tenant) -> None:
    """One job that waits and one that failed, with the canary in the text and the error."""
    connection.execute("select rag.set_tenant(%s)", [tenant.name])
    connection.execute("select rag.put(%s, 'fails')", [f"fails {tenant.canary}"])
    connection.execute(
        "select rag.fail_jobs(c.lease_token, array[c.job_id], %s, permanent => true) "
        "from rag.claim_jobs('attacks', 1) as c",
        [f"error {tenant.canary}"],
    )


@contextmanager
def open_arena(
    databases: Databases, template: str, *, size: int = 5, everywhere: bool = True
) -> Iterator[Arena]:
    """Make such a database of so many tenants, and drop its roles at the end.

    Their canaries are everywhere, or in documents only, which takes less time.
    """
    number = next(_numbers)
    chance = random.Random(number)
    url = databases.create(template)
    roles = [f"test_attacks_{kind}_{number}" for kind in ("app", "token", "service")]
    with psycopg.connect(url, autocommit=True) as owner:
        for role in roles:
            owner.execute(
                sql.SQL("create role {} login in role rag_app").format(sql.Identifier(role))
            )
        tenants: list[Tenant] = []
        for n in range(size):
            name = f"tenant-{n}"
            row = owner.execute("select rag.create_tenant(%s)", [name]).fetchone()
            assert row is not None
            # Letters only, so that no parser cuts it into parts.
            word = "canary" + "".join(chance.choices("bcdfghjklmnpqrstvwxz", k=10))
            tenants.append(Tenant(name, word, row[0]))
        for tenant in tenants:
            _plant(owner, tenant, everywhere=everywhere)
        embed(owner, chance)
        for tenant in tenants if everywhere else []:
            _leave_work(owner, tenant)
        schema = f"test_attacks_{number}"
        owner.execute(f"create schema {schema} authorization {roles[0]}".encode())
        owner.execute("select rag.add_token_key(%s, %s)", [KEY, SECRET])
        owner.execute("select rag.grant_tenant(%s, %s)", [roles[0], tenants[0].name])
        owner.execute("select rag.grant_all_tenants(%s)", [roles[2]])
        # So that the planner has samples of everybody's rows, which must not come out either.
        owner.execute("analyze")
        yield Arena(url, owner, tenants, roles[0], roles[1], roles[2], schema)
        for role in roles:
            drop_role(owner, role)
    databases.close(url)
